"""Optimizers that know more than parameters: GaLore and APOLLO look for layers, LoRA+ and LoRA-FA for A and B of LoRA.

    galore_*, apollo_*   project the gradients of the linear layers' weights, GPT-2's Conv1D among them, to a low rank
    loraplus_lr_ratio    LoRA+: B learns so many times as fast as A (Hayou et al. 2024, arXiv 2402.12354)
    lora_fa              LoRA-FA: A stays as it was drawn (Zhang et al. 2023, arXiv 2308.03303)

transformers finds `nn.Linear` alone, so on GPT-2 it finds nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import Trainer
from transformers.pytorch_utils import Conv1D

from finllm.errors import UserError, at_most
from finllm.models.adapters import base_of

LOW_RANK = ("galore", "apollo")  # each an extra of pyproject.toml
EXTRAS = {**dict.fromkeys(LOW_RANK), "adamw_bnb": "qlora", "adamw_8bit": "qlora", "paged": "qlora", "lion": "qlora",
          "ademamix": "qlora", "rmsprop_bnb": "qlora"}  # fmt: skip


def low_rank(args: Any) -> str | None:
    """`galore` or `apollo` where the optimizer is of that family."""
    name = str(getattr(args.optim, "value", args.optim))
    return next((family for family in LOW_RANK if name.startswith(family)), None)


def class_and_settings(args: Any) -> tuple[type[Optimizer], dict[str, Any]]:
    """The optimizer that `args` names, and its settings, as transformers has them; its ValueError or ImportError too.

    Of GaLore and APOLLO `params` are two groups, of which the second has the settings of what is projected.
    """
    if low_rank(args) is None:
        return Trainer.get_optimizer_cls_and_kwargs(args)
    found = copy.copy(args)
    found.optim_target_modules = "all-linear"
    return Trainer.get_optimizer_cls_and_kwargs(found, nn.Sequential(nn.Linear(1, 1, bias=False)))


def problems(args: Any, method: Any) -> Iterator[str]:
    """What of the optimizer's keys cannot work, or would change nothing; `method` as in finllm.models.settings."""
    name, ratio = str(getattr(args.optim, "value", args.optim)), args.loraplus_lr_ratio
    usual = type(args)(output_dir=args.output_dir, use_cpu=args.use_cpu)
    if name.endswith("layerwise") or name.startswith(("lomo", "adalomo")):
        yield f"optim is {name!r}, which steps within backward, where no gradient can be clipped; take another"
        return
    if low_rank(args) and method.use_peft:
        yield f"optim is {name!r}, which projects whole weights, and under an adapter none trains; remove one of them"
    for key, value in (("lora_fa", args.lora_fa), ("loraplus_lr_ratio", ratio)):
        if value and getattr(method, "kind", None) != "LORA":
            yield f"{key} is {value!r} and is LoRA's own; add peft_type: lora or remove it"
    if args.lora_fa and ratio is not None:
        yield "lora_fa and loraplus_lr_ratio are two optimizers; remove one of them"
    if ratio is not None and not 0 < ratio < math.inf:
        yield f"loraplus_lr_ratio is {ratio!r}; B learns so many times as fast as A, so it must be above 0; try 16"
    if args.lora_fa and name != str(getattr(usual.optim, "value", usual.optim)):
        yield f"optim is {name!r} and lora_fa is an optimizer of its own; remove one of them"
    without = copy.copy(args)
    without.optim_args = None
    try:
        asked, plain = (class_and_settings(each) for each in (args, without))
    except (ImportError, ValueError) as error:
        extra = next((extra or begins for begins, extra in EXTRAS.items() if name.startswith(begins)), None)
        fix = f"; run: pip install 'finllm[{extra}]'" if extra and isinstance(error, ImportError) else ""
        yield f"optim is {name!r}: {' '.join(str(error).split())}{fix}"
        return
    if args.optim_args and _comparable(asked) == _comparable(plain):
        yield f"optim_args is {args.optim_args!r} and changes nothing in optim {name!r}; remove it"


def _comparable(found: tuple[type[Optimizer], dict[str, Any]]) -> Any:
    """Without the parameters, which are others at every call."""
    cls, settings = found
    groups = [{**group, "params": None} for group in settings.get("params", ())]
    return cls, {**settings, "params": groups}


def keep_a_as_drawn(model: nn.Module) -> None:
    """LoRA-FA: only B trains; a `UserError` where something beside A and B of LoRA does."""
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    other = [name for name in trainable if not (".lora_A." in name or ".lora_B." in name) or name.endswith(".bias")]
    if other:
        raise UserError(
            f"lora_fa is for LoRA's A and B alone, and {', '.join(at_most(other, 3))} would train too; remove lora_fa, "
            "or what adds them"
        )
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(False)


def create(args: Any, model: nn.Module, decays: set[str]) -> Optimizer | None:
    """The optimizer of `model`, where it is one of these; `decays` are the names of parameters with weight decay."""
    if args.lora_fa:
        from peft.optimizers import create_lorafa_optimizer

        config = model.active_peft_config
        optimizer = create_lorafa_optimizer(model, config.r, config.lora_alpha, args.learning_rate, args.weight_decay)
        for group in optimizer.param_groups:
            group |= {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        return optimizer
    if args.loraplus_lr_ratio is not None:
        from peft.optimizers import create_loraplus_optimizer

        cls, settings = class_and_settings(args)
        settings |= {"loraplus_lr_ratio": args.loraplus_lr_ratio, "loraplus_weight_decay": args.weight_decay}
        return create_loraplus_optimizer(model, cls, **settings)
    family = low_rank(args)
    if family is None:
        return None
    cls, settings = class_and_settings(args)
    projected = settings.pop("params")[1]
    of_layers = {id(weight) for weight in _linear_weights(model)}
    groups = [{"params": [], "weight_decay": decay} for decay in (args.weight_decay, 0.0)]
    groups.append({**projected, "params": [], "weight_decay": args.weight_decay})
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[2 if id(parameter) in of_layers else 0 if name in decays else 1]["params"].append(parameter)
    if not groups[2]["params"]:
        raise UserError(f"optim is {args.optim} and no weight of a linear layer trains; take adamw_torch")
    _may_be_loaded(family)
    return cls([group for group in groups if group["params"]], **settings)


def _linear_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights of all linear layers but the head, which shares the embedding's or is as large."""
    head = base_of(model).get_output_embeddings()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D) and module is not head]
    return [layer.weight for layer in layers]


def _may_be_loaded(family: str) -> None:
    """Let a checkpoint hold the projections of GaLore and APOLLO: plain objects with tensors and numbers in them."""
    if family == "galore":
        from galore_torch.galore_projector import GaLoreProjector as Projector
    else:
        from apollo_torch.random_projector import GradientProjector as Projector
    torch.serialization.add_safe_globals([Projector])
