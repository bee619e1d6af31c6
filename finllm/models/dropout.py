"""Dropout of a base model: set it, wherever the model keeps it, and prove that what was set is what happens.

A model keeps its shares in modules, in numbers of its layers, and in configs that a layer reads at every call. Names
differ from one to the next, so nothing here is believed before passes through the model have shown it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedConfig

from finllm.errors import UserError

LAYERS = ("layerdrop", "drop_path", "stochastic_depth")  # of whole layers: another thing, which only 0 turns off
PASSES = 8  # in training mode, at most, until dropout shows: a small share drops nothing in some of them


class StaysRandom(UserError):
    """A model that, with all its dropout at 0, gives the same rows another loss each time."""


def set_dropout(model: torch.nn.Module, share: float) -> None:
    """Give every dropout of the model, its attention's included, the same share (0 to 1) of dropped values.

    With 0, whole layers are not dropped either. With more, as many of them as the model's config says.
    """
    for holder, name in _shares(model):
        if share and any(part in name for part in LAYERS):
            continue
        try:
            setattr(holder, name, share)
        except StrictDataclassFieldValidationError:
            continue  # a config whose field takes whole numbers alone (MPT's); its layers hold their own


def _shares(model: torch.nn.Module) -> Iterator[tuple[object, str]]:
    """Where the model holds a share of what is dropped: an object, and the name of its attribute.

    An adapter's own dropout is none of the model's.
    """
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    parts = (part for layer in layers for name, part in layer.named_children() if name != "base_layer")
    adapters = {id(module) for part in parts for module in part.modules()}
    configs: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        if id(module) in adapters:
            continue
        if isinstance(module, _DropoutNd):
            yield module, "p"
        yield from _numbers(module)
        if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
            configs[id(config)] = config
    for config in configs.values():
        yield from _numbers(config)
        for part in vars(config).values():
            if isinstance(part, PreTrainedConfig) and id(part) not in configs:
                yield from _numbers(part)


def _numbers(holder: object) -> list[tuple[object, str]]:
    return [
        (holder, name)
        for name, value in vars(holder).items()
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    ]


def prove_dropout(model: torch.nn.Module, share: float, loss: Callable[[], float], tolerance: float) -> float:
    """Refuse a model that does not do what `set_dropout(model, share)` asked of it; `StaysRandom` where 0 is not none.

    `loss()` is a pass through the model in training mode, without gradients: the loss of a few of the run's own rows,
    in nats a token. Passes under a share of 0 must be equal (within `tolerance`), for then all that is random has been
    reached; passes under a larger one must differ. The model is left with `share`, and random numbers as they were.
    Returns by how many nats the passes under 0 differed.
    """
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        set_dropout(model, 0.0)
        without = loss()
        moved = abs(loss() - without)
        set_dropout(model, share)
        if moved > tolerance:
            raise StaysRandom(
                f"base_dropout is {share:g}, and with all its dropout at 0 this model stays random in training: the "
                f"losses of the same rows differ by {moved:.2g} nats a token (limit {tolerance:.0e}); take another "
                "base model, or train all weights without base_dropout"
            )
        if share and not any(abs(loss() - without) > moved for _ in range(PASSES)):
            raise UserError(
                f"base_dropout is {share:g} and drops nothing in this model: the same rows have {without:.6f} nats a "
                f"token with it and without it, in {PASSES} passes; remove base_dropout"
            )
    return moved
