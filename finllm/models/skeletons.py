"""Models without memory for their weights: what an adapter's config would make of a base model, before it is made."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from finllm.models import checked, conv1d

if TYPE_CHECKING:
    from peft import PeftConfig


def skeleton(config: PreTrainedConfig, attention: str | None = None) -> PreTrainedModel:
    """The model of a config without memory for its weights; no random number of the process is used up.

    `attention` is an implementation by transformers' name, whose package must be there.
    """
    asked = {} if attention is None else {"attn_implementation": attention}
    # What layers draw for their weights is drawn nowhere here, and takes most of the time all the same.
    with torch.random.fork_rng(devices=[]), torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False, **asked)
    model.tie_weights()  # which came with the drawing
    return model


def shapes_made(base: PreTrainedModel, config: PeftConfig) -> checked.Shapes | None:
    """The shapes of the tensors that an adapter of this config saves, found without memory for any of them.

    None for methods that look at numbers while they are built, of which there are none then.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    config = copy.deepcopy(config)
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # other beginnings compute with the base's weights, and have the same shapes
    kept = getattr(config, "rank_pattern", None) if str(config.peft_type.value) == "ADALORA" else None
    if kept:
        config.rank_pattern = None
    without_memory = skeleton(base.config)
    if not conv1d.has_conv1d(base):  # they were turned, or are in 4 bits
        conv1d.to_linear(without_memory)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            adapted = get_peft_model(without_memory, config)
            saved = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" in str(error).lower():
            return None
        raise
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    for name, ranks in (kept or {}).items():  # AdaLoRA saves the ranks that are left
        layer, left = f"base_model.model.{name.rpartition('.lora_E')[0]}", sum(map(bool, ranks))
        for part, side in ((".lora_E", 0), (".lora_A", 0), (".lora_B", 1)):
            if layer + part in shapes:
                shape = shapes[layer + part]
                shapes[layer + part] = (*shape[:side], left, *shape[side + 1 :])
    return shapes


def numbers_at_most(config: PeftConfig, base: PreTrainedModel) -> int:
    """More numbers than an adapter can have whose shapes cannot be told: its largest number times the widest side."""
    widest = max(max(parameter.shape, default=1) for parameter in base.parameters())
    return max((abs(number) for number in _numbers(config.to_dict())), default=1) * widest


def _numbers(value: Any) -> list[int]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        return [len(value), *(number for each in value if not isinstance(each, int) for number in _numbers(each))]
    return [value] if isinstance(value, int) else []
