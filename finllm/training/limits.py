"""Which values the recipe's keys may have. transformers and TRL look at a few of them, one at a time."""

from __future__ import annotations

import enum
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from transformers import get_scheduler

from finllm.models.values import (
    ABOVE_0,
    AT_LEAST_0,
    AT_LEAST_1,
    AT_LEAST_2,
    SEED,
    SHARE,
    Limit,
    beyond,
    shown,
    wrong_type,
)
from finllm.text.credentials import without_credentials
from finllm.training.unsupported import REASONS

LIMITS = {
    **dict.fromkeys(("learning_rate", "num_train_epochs", "logging_steps", "eval_steps", "lora_alpha"), ABOVE_0),
    **dict.fromkeys(
        ("weight_decay", "adam_epsilon", "max_grad_norm", "neftune_noise_alpha", "warmup_steps", "eval_delay",
         "save_steps", "dataloader_num_workers"), AT_LEAST_0,
    ),
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
         "max_tokens_per_batch", "max_train_samples", "max_eval_samples", "early_stopping_patience", "stop_at_step",
         "save_total_limit", "torch_empty_cache_steps", "eval_accumulation_steps", "dataloader_prefetch_factor",
         "ddp_timeout", "ddp_bucket_cap_mb", "pad_to_multiple_of"), AT_LEAST_1,
    ),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "lora_dropout", "base_dropout"), SHARE),
    **dict.fromkeys(("seed", "data_seed"), SEED),
    "max_length": AT_LEAST_2,
    "max_steps": Limit(lambda value: value >= 1 or value == -1, "at least 1, or -1 for num_train_epochs"),
}  # fmt: skip

OTHER_HINTS = {"report_to": str | list[str]}  # which TRL's parser could not have


def of_yaml(settings: Mapping[str, Any], parts: Sequence[type]) -> tuple[dict[str, Any], list[str]]:
    """The values of a YAML file as the fields of `parts` want them, and what is wrong with the types of others.

    YAML reads a plain `no` as false, and where a field has that word among its choices it is what was meant. A text is
    left to the parser, which reads `1e-4` as a number, and a key that is refused anyway to its reason.
    """
    hints = {name: hint for part in parts for name, hint in typing.get_type_hints(part).items()} | OTHER_HINTS
    found, problems = dict(settings), []
    for key, value in settings.items():
        if value is False and "no" in _choices(hints[key]):
            found[key] = "no"
        elif key not in REASONS and not isinstance(value, str) and (must := wrong_type(hints[key], value)) is not None:
            problems.append(f"{key} is {shown(key, value)}; it must be {must}")
    return found, problems


def _choices(hint: Any) -> set[str]:
    kinds = [each for each in typing.get_args(hint) if isinstance(each, type) and issubclass(each, enum.Enum)]
    return {member.value for kind in kinds for member in kind}


def beyond_limits(*parts: Any) -> Iterator[str]:
    """Numbers of the dataclasses `parts` that are beyond what their keys may have."""
    for part in parts:
        for known in fields(part):
            wrong = beyond(known.name, getattr(part, known.name), LIMITS.get(known.name)) if known.init else None
            if wrong is not None:
                yield wrong


def scheduler_problems(training: Any) -> Iterator[str]:
    """What keeps the learning rate's schedule from being made, as the trainer will make it."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        get_scheduler(
            training.lr_scheduler_type, optimizer, num_warmup_steps=1, num_training_steps=10,
            scheduler_specific_kwargs=training.lr_scheduler_kwargs,
        )  # fmt: skip
    except (TypeError, ValueError, AttributeError) as error:
        name, key = getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type), "lr_scheduler_kwargs"
        reason = without_credentials(str(error).rpartition("get_")[2])
        yield f"lr_scheduler_type is {name!r} and {key} {shown(key, training.lr_scheduler_kwargs)}: {reason}"
