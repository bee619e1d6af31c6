"""What a method does beside the optimizer's step, and the proof that all that trains has been reached by it.

AdaLoRA (and others of peft's, by `update_and_allocate`) moves its ranks about after every step, and some methods add a
term to the loss; neither transformers nor TRL does either. The proof: every tensor that trains is the optimizer's, has
had a gradient, and is at the end not what it was. One whose steps were all smaller than its own rounding is told.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from finllm.errors import UserError, at_most
from finllm.models.methods import known_method
from finllm.models.proofs import Proof

ENOUGH = 3  # steps after which what stood still is refused: LoRA's A has a gradient from the second on


def fingerprint(tensor: Tensor) -> int:
    """The sum of a tensor's bits, read as whole numbers: another one where it has moved, but for a rare chance."""
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int(tensor.view(bits).sum())  # in int64


class Learning(TrainerCallback):
    """Watches what trains until each tensor has had a gradient and has moved; lets a method do its own step."""

    def __init__(self) -> None:
        self.still: dict[str, int] = {}  # by name the fingerprint of what has not moved yet
        self.untouched: set[str] = set()  # what has had no gradient yet, or is none of the optimizer's
        self.count = self.steps = 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        trainable = {name: parameter for name, parameter in trainable.items() if type(parameter.data) is Tensor}
        self.still = {name: fingerprint(parameter) for name, parameter in trainable.items() if parameter.numel()}
        self.untouched, self.count, self.steps = {*self.still}, len(self.still), 0
        set_schedule(model, state.max_steps)

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.steps += any(group["lr"] > 0 for group in optimizer.param_groups)
        if self.untouched:
            steps = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            for name, parameter in model.named_parameters():
                if name in self.untouched and parameter.grad is not None and bool(parameter.grad.any()):
                    self.untouched -= {name} if id(parameter) in steps else set()

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.still:
            for name, parameter in model.named_parameters():
                if name in self.still and fingerprint(parameter) != self.still[name]:
                    del self.still[name]
        allocate(model, state.global_step + 1)

    def proof(self, model: Any) -> list[Proof]:
        """What was found, where steps were taken; a `UserError` where what should move stood still."""
        if self.count == 0 or self.steps == 0:
            return []
        config = getattr(model, "active_peft_config", None)
        method = known_method(str(config.peft_type.value)) if config is not None else None
        known = {name for name in self.still if method and method.silent and re.search(method.silent, name)}
        # Of a model's own weights some may have no part in these rows, as an expert that nobody was sent to.
        dead = sorted({*self.still} & self.untouched - known) if method else []
        if len(self.still) == self.count:
            dead = sorted(self.still)
        if dead and self.steps >= ENOUGH:
            raise UserError(
                f"{len(dead):,} of {self.count:,} trainable tensors are what they were before training, after "
                f"{self.steps:,} steps: {', '.join(at_most(dead, 3))}; raise learning_rate, or set dtype: float32 if "
                "the weights are coarser; the checkpoints are kept"
            )
        said = f"{self.count - len(self.still):,} of {self.count:,} trainable tensors have moved"
        if known:
            said += f"; {method.silent_because}"
        if small := sorted({*self.still} - known):
            said += f"; without a gradient, or with steps smaller than their rounding: {', '.join(at_most(small, 3))}"
        return [Proof("has learned", float(len(self.still)), float(len(known)), not small, said)]


def _tuner(model: Any) -> Any:
    return getattr(model, "base_model", None) if hasattr(model, "peft_config") else None


def set_schedule(model: Any, steps: int) -> None:
    """Tell AdaLoRA how many steps there are, as `fit_schedule`."""
    if hasattr(model, "peft_config"):
        fit_schedule(model.active_peft_config, steps)


def fit_schedule(config: Any, steps: int) -> None:
    """Give a config of AdaLoRA the number of steps; a `UserError` where its phases do not fit into them.

    Where nobody set them, ranks stay for a tenth of the steps and are final for the last fifth (its paper has similar
    shares in appendix C: a short warmup, a long rest).
    """
    if str(config.peft_type.value) == "ADALORA":
        config.total_step = steps
        if config.tinit == 0 and config.tfinal == 0 and steps >= 10:
            config.tinit, config.tfinal = steps // 10, steps // 5
        if config.tinit + config.tfinal >= steps:
            raise UserError(
                f"peft.tinit ({config.tinit:,}) and peft.tfinal ({config.tfinal:,}) together are not below the run's "
                f"{steps:,} steps, so AdaLoRA would never move a rank; lower them"
            )
        if config.target_r >= config.init_r:
            raise UserError(
                f"peft.target_r is {config.target_r:,} and peft.init_r {config.init_r:,}: AdaLoRA takes ranks away, so "
                "target_r must be below init_r"
            )


def allocate(model: Any, step: int) -> None:
    """The step of a method that moves its ranks about, after the optimizer's and before gradients are dropped."""
    tuner = _tuner(model)
    if hasattr(tuner, "update_and_allocate"):
        tuner.update_and_allocate(step)


def allocation_proof(model: Any) -> list[Proof]:
    """What AdaLoRA made of its ranks; a `UserError` where it moved none."""
    if not hasattr(model, "peft_config") or str(model.active_peft_config.peft_type.value) != "ADALORA":
        return []
    config = model.active_peft_config
    ranks = [sum(map(bool, kept)) for kept in (config.rank_pattern or {}).values()]
    if not ranks:
        raise UserError("AdaLoRA moved no rank: no step was taken; train for more steps")
    said = (
        f"AdaLoRA moved its ranks: {config.init_r} in each of {len(ranks):,} layers became {min(ranks)} to {max(ranks)}"
        f", {sum(ranks) / len(ranks):.1f} on average (target {config.target_r})"
    )
    figure = sum(ranks) / len(ranks)
    return [Proof("ranks moved", figure, float(config.target_r), figure < config.init_r, said)]


def own_term(model: Any, labels: Tensor | None = None) -> Tensor | float:
    """What a method adds to the loss of a step: AdaLoRA's orthogonality, KaSA's and MonteCLoRA's regularisers, the loss
    of Shadow's own small model; 0 for any other."""
    tuner = _tuner(model)
    if tuner is None:
        return 0.0
    config = model.active_peft_config
    kind = str(config.peft_type.value)
    if kind == "ADALORA":
        return config.orth_reg_weight * _orthogonality(model)
    if kind == "LORA" and config.kasa_config is not None:
        return tuner._get_kasa_loss()
    if kind == "LORA" and config.monteclora_config is not None:
        return tuner._get_monteclora_loss()
    if kind == "SHADOW" and labels is not None and config.auxiliary_loss_weight > 0:
        loss = tuner.shadow_auxiliary_loss(labels)
        return 0.0 if loss is None else config.auxiliary_loss_weight * loss
    return 0.0


def _orthogonality(model: Any) -> Tensor:
    """The mean over all A and B of ‖AAᵀ − I‖ or ‖BᵀB − I‖ (Zhang et al. 2023, eq. 4; as in peft, not squared)."""
    terms = []
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            product = parameter @ parameter.T if ".lora_A." in name else parameter.T @ parameter
            terms.append((product - torch.eye(len(product), device=product.device, dtype=product.dtype)).norm())
    return torch.stack(terms).mean()
