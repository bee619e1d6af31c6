"""What is proved of a method on the model at hand, before training: peft takes much that then does nothing.

    starts as the base    the adapted model gives rows the loss that the base model gave them
    variant               the layers hold what the config asks for, and are not plain LoRA
    gradients             every tensor that trains has a finite gradient, once the first zeros are left

The last is looked at beside the beginning, all trainable numbers moved a little: at it, half of LoRA has none.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from finllm.errors import UserError, at_most
from finllm.models.adapters import add_adapter, base_of
from finllm.models.methods import known_method
from finllm.models.partial import choose_weights
from finllm.models.proofs import PROVING, Proof, clipped, in_float32, is_exact, nll_of
from finllm.models.settings import MethodConfig

TOKENS, WHOLE = 24, 384  # of the row that is asked; of one that must hold what calls an adapter
LOOKED_AT = 8  # rows among which a long one is looked for
START, COARSE_START = 1e-4, 5e-2  # nats a token
NUDGE = 0.02  # a tensor is moved by this share of its root mean square,
LEAST = 0.5  # or of this, where it is smaller


def choose(
    model: PreTrainedModel, arguments: MethodConfig, rows: Sequence[Mapping[str, Any]]
) -> tuple[PreTrainedModel, list[Proof]]:
    """`model` with what is to be trained of it trainable and nothing else, and what was proved of it.

    That is an adapter, those of its own weights that `trainable` names, or all. As `adapt`.
    """
    if arguments.use_peft:
        return adapt(model, arguments, rows)
    return model, choose_weights(model, arguments.trainable) if arguments.trainable is not None else []


def adapt(
    model: PreTrainedModel, arguments: MethodConfig, rows: Sequence[Mapping[str, Any]]
) -> tuple[PreTrainedModel, list[Proof]]:
    """`model` with its adapter, and what was proved of it; a `UserError` where it would not do what its name says.

    `rows` are the run's own, of `input_ids` and `labels`. Seed before calling.
    """
    length = WHOLE if (arguments.peft or {}).get("alora_invocation_tokens") else TOKENS
    first = [rows[index] for index in range(min(LOOKED_AT, len(rows)))]
    probe = [clipped(max(first, key=lambda row: len(row["input_ids"])), length)]
    training = model.training
    with PROVING:
        before = _likelihood(model.eval(), probe)
    adapted = add_adapter(model, arguments, rows)
    proofs = []
    if getattr(base_of(adapted), "turned_conv1d", False):
        said = "Conv1D layers are linear ones with the same numbers, which this method needs; merged, they are Conv1D"
        proofs.append(Proof("linear layers", None, 0.0, True, said))
    proofs += _variant(adapted, _bits_of(arguments))
    bits = _bits_of(arguments)
    finer = f"set no {bits}" if bits else "set dtype: float32" if _has_coarse_numbers(adapted) else ""
    with PROVING, in_float32(adapted, beside=True):  # once for all of what follows
        try:
            after = _likelihood(adapted.eval(), probe)
        except Exception as error:  # of a method and layers that do not go together, any
            kind = str(adapted.active_peft_config.peft_type.value).lower()
            raise UserError(
                f"{kind} fails in the first pass through {type(base_of(adapted)).__name__}: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}; "
                + (f"load the base model without {bits}" if bits else "take other target_modules")
            ) from error
        proofs.append(_start(adapted, arguments, before, after, finer))
        adapted.train()  # some of a method's tensors have a part in training alone
        proofs.append(_gradients(adapted, probe))
    return adapted.train(training), proofs


def _has_coarse_numbers(model: PreTrainedModel) -> bool:
    return any(parameter.dtype != torch.float32 for parameter in model.parameters())


def _bits_of(arguments: MethodConfig) -> str:
    """The key by which the base model's weights are in few bits, or nothing."""
    return "load_in_4bit" if arguments.load_in_4bit else "load_in_8bit" if arguments.load_in_8bit else ""


@torch.no_grad()
def _likelihood(model: PreTrainedModel, probe: list[dict[str, list[int]]]) -> torch.Tensor:
    """Nats of each supervised token, in float32."""
    with in_float32(model, beside=True):
        return nll_of(model, probe).double()


def _start(
    adapted: PreTrainedModel, arguments: MethodConfig, before: torch.Tensor, after: torch.Tensor, finer: str
) -> Proof:
    """Within `in_float32`; `finer` is what makes this run compute more precisely, where anything does."""
    config = adapted.active_peft_config
    kind = str(config.peft_type.value)
    apart = float((before - after).abs().max())
    limit = START if is_exact(adapted) else COARSE_START
    if apart <= limit:
        return Proof(
            "starts as the base",
            apart,
            limit,
            True,
            f"the adapted model begins as the base, within {apart:.1g} nats a token",
        )
    given = arguments.peft or {}
    why = known_method(kind).starts_elsewhere
    if any(given.get(name) is False for name in ("init_weights", "init_lora_weights", "init_ia3_weights")):
        why = "it was asked to begin with random numbers"
    elif given.get("init_weights") == "xavier_uniform" or isinstance(given.get("init_weights"), str):
        why = f"it was asked to begin with {given['init_weights']}"
    elif given.get("kasa_config") is not None:
        why = "KaSA leaves the smallest singular values of the base out"
    if not why:
        fix = finer or "take another beginning (init_weights, init_lora_weights)"
        raise UserError(
            f"peft_type {kind.lower()} should begin as the base model and is {apart:.3g} nats a token away from it "
            f"(limit {limit:g}): what it would learn first is to undo that; {fix}"
        )
    said = f"the adapted model begins {apart:.2g} nats a token from the base: {why}"
    return Proof("starts as the base", apart, limit, False, said)


def _variant(adapted: PreTrainedModel, bits: str) -> Iterator[Proof]:
    """The variant of LoRA that was asked for is in every layer of it; a `UserError` where layers are plain LoRA."""
    from peft.tuners.lora.layer import LoraLayer

    config = adapted.active_peft_config
    if str(config.peft_type.value) != "LORA":
        return
    asked = []
    for known in dataclasses.fields(config):
        value = getattr(config, known.name)
        if (known.metadata.get("is_lora_variant") or known.name == "use_qalora") and value:  # which peft left untagged
            asked.append(known.name)
        elif known.name == "init_lora_weights" and value in known.metadata.get("lora_variants", ()):
            asked.append(f"init_lora_weights: {value}")
    if not asked:
        return
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    plain = [layer for layer in layers if adapted.active_adapter not in layer.lora_variant]
    if plain:
        raise UserError(
            f"{', '.join(asked)} is asked for and {len(plain):,} of {len(layers):,} adapted layers are plain LoRA all "
            f"the same: peft has no such variant on {type(plain[0].base_layer).__name__}; "
            + (f"take it out, or load the base model without {bits}" if bits else "take it out")
        )
    kinds = sorted({type(layer.lora_variant[adapted.active_adapter]).__name__ for layer in layers})
    said = f"{', '.join(asked)} is in all {len(layers):,} adapted layers ({', '.join(kinds)})"
    yield Proof("variant", float(len(plain)), 0.0, True, said)


@contextmanager
def nudged(model: torch.nn.Module) -> Iterator[None]:
    """Inside, what trains is moved a little from where it is, by fixed random numbers; afterwards it is what it was."""
    trainable = [
        parameter for parameter in model.parameters() if parameter.requires_grad and parameter.is_floating_point()
    ]
    held = [parameter.detach().clone() for parameter in trainable]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in trainable:
                size = max(float(parameter.float().square().mean().sqrt()), LEAST) if parameter.numel() else 0.0
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_((NUDGE * size * noise).to(parameter.device, parameter.dtype))
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(trainable, held, strict=True):
                parameter.copy_(before)


def _gradients(adapted: PreTrainedModel, probe: list[dict[str, list[int]]]) -> Proof:
    """Every trainable tensor has a finite gradient that is not zero, beside the beginning; else a `UserError`.

    Within `in_float32`.
    """
    trainable = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    method = known_method(str(adapted.active_peft_config.peft_type.value))
    if not trainable:
        raise UserError(f"{method.title} trains nothing in this model; take another method, or other target_modules")
    device = next(adapted.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), nudged(adapted):
        try:
            nll_of(adapted, probe).sum().backward()
            norms = {name: 0.0 if p.grad is None else float(p.grad.float().norm()) for name, p in trainable.items()}
        finally:
            for parameter in trainable.values():
                parameter.grad = None
    dead = [name for name, norm in norms.items() if not 0 < norm < float("inf") and trainable[name].numel()]
    known = [name for name in dead if method.silent and re.search(method.silent, name)]
    wrong = [name for name in dead if name not in known]
    if wrong or len(dead) == len(norms):
        raise UserError(
            f"{method.title}: {len(dead):,} of {len(norms):,} trainable tensors get no finite gradient on this run's "
            f"rows, so they would stay as they are: {', '.join(at_most(wrong or dead, 3))}; take them out of what is "
            "adapted, or take another method"
        )
    said = f"all {len(norms):,} trainable tensors get a finite gradient"
    if known:
        got = len(norms) - len(known)
        said = f"{got:,} of {len(norms):,} trainable tensors get a finite gradient; {method.silent_because}"
    return Proof("gradients of the method", float(len(known)), float(len(known)), True, said)
