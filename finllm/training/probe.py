"""Steps of a model with few layers and random weights, on a run's own rows: what `finllm.training.plan` adds up."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from finllm.cpu import joined, kernels, machine
from finllm.cpu.loss import add_supervised_head
from finllm.errors import UserError
from finllm.models.adapters import add_adapter
from finllm.models.base import count_parameters, load_base_model
from finllm.models.configs import check_size, with_layers
from finllm.models.dropout import set_dropout
from finllm.models.virtual import tokens_among_ids

TIMED = 6  # batches that are timed, twice: one in the middle of each sixth of the batches by size


@dataclass(frozen=True)
class Probe:
    """Steps of a model with few layers."""

    seconds: float
    optimizer_seconds: float
    first_seconds: float  # more than the same batch takes later, of the first two steps
    peak_memory_bytes: int  # of this process in these steps, or of the GPU; the second go left out
    gap_bytes: int  # of which batches of other sizes than the largest left between them
    held_bytes: int  # weights and optimizer state
    activation_bytes: int  # that the largest batch keeps for backward
    gradient_bytes: int
    total: int
    trainable: int


class Joined:
    """A step as it is taken on a CPU: rows end to end, supervised positions alone through the vocabulary."""

    def __init__(self, model: PreTrainedModel, whole: torch.nn.Module):
        if not joined.can_join(model):
            raise UserError(f"finllm plan knows models whose rows can be joined, and {type(model).__name__} is none")
        _train_in_float32(whole)
        add_supervised_head(model)
        model.set_attn_implementation(joined.NAME)
        kernels.use_in(whole)
        self._count = tokens_among_ids(whole)

    def batch(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        made = joined.join(rows, virtual=self._count)
        return {name: made[name] for name in ("input_ids", "labels", "position_ids", "parts")}

    def nll(self, whole: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return whole(**batch, use_cache=False, supervised_head=True).nll

    @staticmethod
    def size(rows: list[dict[str, Any]]) -> tuple[int, int]:
        """Positions that a batch of rows has, and of how many tokens: a beginning that rows share stands there once."""
        made = joined.join(rows)
        return made["input_ids"].numel(), int(made["lengths"].sum())


class Padded:
    """A step as it is taken on a GPU: rows padded on the right, TRL's head, which wants no logits of the prompt."""

    def __init__(self, model: PreTrainedModel, whole: torch.nn.Module):
        if whole is not model:  # a whole model on a GPU is as `dtype` says
            _train_in_float32(whole)
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))  # what SFTTrainer asks it for
        self._device = model.device

    def batch(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
        made = DataCollatorForLanguageModeling(pad_token_id=0)(rows)
        return {name: made[name].to(self._device) for name in ("input_ids", "labels")}

    def nll(self, whole: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return -whole(**batch, use_cache=False, fused_lm_head=True).log_probs.sum()

    @staticmethod
    def size(rows: list[dict[str, Any]]) -> tuple[int, int]:
        """Positions that a batch of rows has, and of how many tokens."""
        lengths = [len(row["input_ids"]) for row in rows]
        return len(rows) * max(lengths), sum(lengths)


def _train_in_float32(whole: torch.nn.Module) -> None:
    """As finllm.training.trainer does with what trains."""
    for parameter in whole.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data


def way_on(device: torch.device) -> type[Joined] | type[Padded]:
    """How a step is taken on a device, unless a model's proofs choose another; see finllm.training.proving."""
    return Joined if device.type == "cpu" else Padded


def probed(
    config,
    layers: int,
    recipe,
    training,
    model_arguments,
    timed: list[list[dict[str, Any]]],
    largest: list[dict[str, Any]],
) -> Probe:
    """Steps of a random model with so many layers on batches of rows: two of the `largest`, then the `timed` twice."""
    device = training.device
    model = _random(with_layers(config, layers), model_arguments, device)
    machine.give_back_freed_memory()
    machine.forget_peak()
    if recipe.base_dropout is not None:
        set_dropout(model, recipe.base_dropout)
    whole = add_adapter(model, model_arguments) if model_arguments.use_peft else model
    way = way_on(device)(model, whole)
    whole.train()
    batches = [way.batch(rows) for rows in (largest, *timed)]
    if training.activation_checkpointing:
        whole.activation_checkpointing_enable()
    trainable = [parameter for parameter in whole.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.0, fused=True)
    kept: dict[int, int] = {}  # storage: bytes

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        for part in (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,):  # SHiRA's are
            kept[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        return tensor.detach()

    seconds, optimizer_seconds, peaks = [], [], []
    # The second of the largest finds the optimizer's state there.
    for batch in (batches[0], *batches, *batches[1:]):
        counting = saved_tensors_hooks(keep, lambda tensor: tensor) if not seconds else nullcontext()
        start = machine.now()
        with counting, torch.autocast(device.type, torch.bfloat16, enabled=training.bf16):
            nll = way.nll(whole, batch)
        nll.backward()
        middle = machine.now()
        if training.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trainable, training.max_grad_norm)
        optimizer.step()
        seconds.append(middle - start)
        optimizer_seconds.append(machine.now() - middle)
        optimizer.zero_grad()
        peaks.append(machine.recent_peak_bytes())
    counted = count_parameters(whole)
    for parameter in whole.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in whole.parameters())
    states = (getattr(parameter, "quant_state", None) for parameter in whole.parameters())
    weights += sum(state.absmax.numel() * state.absmax.element_size() for state in states if state is not None)
    moments = sum(each.nbytes for held in optimizer.state.values() for each in held.values() if each.dim())
    faster = [min(pair) for pair in zip(seconds[2 : 2 + TIMED], seconds[2 + TIMED :], strict=True)]
    # What the largest takes where nothing is new, by the timed one that comes next to it.
    again = faster[-1] * batches[0]["input_ids"].numel() / batches[-1]["input_ids"].numel()
    return Probe(
        seconds=sum(faster) / len(faster),
        optimizer_seconds=min(optimizer_seconds[2:]),
        first_seconds=sum(seconds[:2]) - 2 * again + sum(optimizer_seconds[:2]) - 2 * min(optimizer_seconds[2:]),
        peak_memory_bytes=peaks[1 + TIMED],  # the second go adds what the allocator could not use again, by chance
        gap_bytes=peaks[1 + TIMED] - peaks[1],
        held_bytes=weights + moments,
        activation_bytes=sum(kept.values()),
        gradient_bytes=sum(parameter.numel() * parameter.element_size() for parameter in trainable),
        total=counted.total,
        trainable=counted.trainable,
    )


def _random(config, model_arguments, device: torch.device) -> PreTrainedModel:
    """A model of the config with random weights on a device, in the few bits that the run's will be in."""
    check_size(config)
    machine.attend_at_any_length()
    set_seed(0)
    asked = model_arguments.dtype
    dtype = getattr(torch, asked) if asked in ("bfloat16", "float16") else torch.float32
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype, trust_remote_code=False)
    if not (model_arguments.load_in_4bit or model_arguments.load_in_8bit):
        return model.to(device)
    with tempfile.TemporaryDirectory() as folder:  # weights become few bits as they are read
        model.save_pretrained(folder)
        del model
        return load_base_model(folder, model_arguments)
