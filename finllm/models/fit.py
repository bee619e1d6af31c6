"""Fields whose value must fit the sides of the layers: defaults that do, and refusals of values that do not.

peft adjusts some of them with a warning, or fails in the middle of building, by another error a method. in and out are
the sides of a layer.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from finllm.errors import at_most

Side = tuple[str, int, int]  # a layer's name, in and out


@dataclass(frozen=True)
class Rule:
    """`fits(value, in, out)` of every layer; where it does not, `largest(value, sides)` is a value that does."""

    field: str
    fits: Callable[[int, int, int], bool]
    largest: Callable[[int, list[Side]], int]
    must: str


def _divisor(of: Callable[[int, int], int]) -> Callable[[int, list[Side]], int]:
    def largest(value: int, sides: list[Side]) -> int:
        common = math.gcd(*(of(*side[1:]) for side in sides))
        return max(divisor for divisor in range(1, min(max(value, 1), common) + 1) if common % divisor == 0)

    return largest


def _least(of: Callable[[int, int], int]) -> Callable[[int, list[Side]], int]:
    return lambda value, sides: min(value, *(of(*side[1:]) for side in sides))


def _divides_both(field: str) -> Rule:
    must = "divide both sides of every layer"
    return Rule(field, lambda value, i, o: i % value == 0 and o % value == 0, _divisor(math.gcd), must)


def _divides_in(field: str) -> Rule:
    return Rule(field, lambda value, i, o: i % value == 0, _divisor(lambda i, o: i), "divide every layer's input")


def _rank(field: str) -> Rule:
    must = "be no more than the smaller side of every layer, which is the rank of all that it can be"
    return Rule(field, lambda value, i, o: value <= min(i, o), _least(min), must)


def _entries(field: str) -> Rule:
    return Rule(
        field, lambda value, i, o: value <= i * o, _least(lambda i, o: i * o), "be no more than a layer's entries"
    )


ONE_OF_TWO = ("OFT", "BOFT")  # where one of two fields is 0, the other says it
RANKED = ("LORA", "DEFT", "DELORA", "GLORA", "HIRA", "HRA", "LOHA", "PEANUT", "POLY", "PSOFT", "RANDLORA")
RULES = {
    **{kind: [_rank("r")] for kind in RANKED},
    "ADALORA": [_rank("init_r")],
    "GRALORA": [_rank("r"), _divides_both("gralora_k")],
    "MISS": [Rule("r", lambda value, i, o: value <= i, _least(lambda i, o: i), "be no more than every layer's input")],
    "C3A": [_divides_both("block_size")],
    "VBLORA": [_divides_both("vector_length")],
    "ROAD": [
        Rule("group_size", lambda value, i, o: o % value == 0, _divisor(lambda i, o: o), "divide every layer's output")
    ],
    "OFT": [_divides_in("oft_block_size"), _divides_in("r")],
    "BOFT": [_divides_in("boft_block_size"), _divides_in("boft_block_num")],
    "FOURIERFT": [_entries("n_frequency")],
    "WAVEFT": [_entries("n_frequency")],
    "SHIRA": [
        Rule("r", lambda value, i, o: value * (i + o) <= i * o, _least(lambda i, o: i * o // (i + o)),
             "be so small that r(in + out) entries are in every layer")
    ],
}  # fmt: skip


def fit(config: Any, given: dict[str, Any], model: nn.Module) -> list[str]:
    """Give fields of a config of peft that nobody set a value that fits `model`; what is wrong with those that were."""
    sides = sides_of(config, model)
    problems = [*_virtual_tokens(config, model), *_token_ids(config, model), *_layers(config, sides)]
    problems += _patterns(config, sides)
    kind = str(config.peft_type.value)
    for rule in RULES.get(kind, ()) if sides else ():
        value = getattr(config, rule.field)
        if not isinstance(value, int) or (value == 0 and kind in ONE_OF_TWO):
            continue
        wrong = [side for side in sides if value < 1 or not rule.fits(value, side[1], side[2])]
        if not wrong:
            continue
        largest = rule.largest(abs(value), sides)
        if rule.field not in given:
            setattr(config, rule.field, largest)
            continue
        name = "lora_r" if (kind, rule.field) == ("LORA", "r") else f"peft.{rule.field}"
        layers = ", ".join(at_most([f"{name} ({i:,} to {o:,})" for name, i, o in wrong], 3))
        problems.append(
            f"{name} is {value:,} and must {rule.must}, at least 1; it does not fit {layers}; the largest that fits is "
            f"{largest:,}"
        )
    return problems


def _virtual_tokens(config: Any, model: nn.Module) -> Iterator[str]:
    count, positions = getattr(config, "num_virtual_tokens", None), _positions(model)
    if isinstance(count, int) and not 1 <= count < positions:
        yield (
            f"peft.num_virtual_tokens is {count:,} and must be at least 1 and leave some of the model's {positions:,} "
            "positions to texts; 20 is usual"
        )


def _token_ids(config: Any, model: nn.Module) -> Iterator[str]:
    """Ids without a row in the embedding; peft counts one below 0 from the end."""
    rows = len(model.get_input_embeddings().weight)
    for field in ("cpt_token_ids", "trainable_token_indices"):
        ids = getattr(config, field, None) or []
        for each in (each for part in (ids.values() if isinstance(ids, dict) else [ids]) for each in part):
            if type(each) is not int or not 0 <= each < rows:
                yield f"peft.{field} has {each!r}, and the model's tokens are 0 to {rows - 1:,}"
                break


def _positions(model: nn.Module) -> float:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf


def _layers(config: Any, sides: list[Side]) -> Iterator[str]:
    """Numbers of layers that are not there, which peft leaves out in silence."""
    asked = getattr(config, "layers_to_transform", None)
    there = {int(part) for name, _, _ in sides for part in name.split(".") if part.isdecimal()}
    missing = [each for each in ([asked] if isinstance(asked, int) else asked or []) if each not in there]
    if missing and sides:
        yield (
            f"peft.layers_to_transform names {', '.join(map(str, missing))}, and nothing that is adapted is in a layer "
            "of that number; remove it"
        )


def _patterns(config: Any, sides: list[Side]) -> Iterator[str]:
    """Ranks and alphas of layers that are not there, which peft leaves out in silence."""
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern, value in (getattr(config, field, None) or {}).items():
            layers = [side for side in sides if re.match(rf"(.*\.)?({pattern})$", side[0])]  # as peft has it
            if sides and not layers:
                some = ", ".join(at_most([name for name, _, _ in sides], 3))
                yield f"peft.{field} names {pattern!r}, and no layer that is adapted is called so; they are {some}"
            elif field == "rank_pattern" and (wrong := [s for s in layers if not 1 <= value <= min(s[1:])]):
                yield (
                    f"peft.rank_pattern has {value:,} for {pattern!r} and must be at least 1 and no more than the "
                    f"smaller side of each layer; {wrong[0][0]} goes from {wrong[0][1]:,} to {wrong[0][2]:,}"
                )


def numbers_bounded(config: Any) -> bool:
    """Whether a rank that fits keeps what is added below twice the layers, and what is saved whole below one model."""
    kind = str(config.peft_type.value)
    return kind in ("LORA", "ADALORA", "DEFT", "DELORA", "PSOFT")


def sides_of(config: Any, model: nn.Module) -> list[Side]:
    """The linear layers that a config of peft adapts, each with its sides."""
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists

    if not getattr(config, "target_modules", None):
        return []
    expanded = _maybe_include_all_linear_layers(copy.deepcopy(config), model)
    sides = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and check_target_module_exists(expanded, name):
            shape = (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)
            sides.append((name, *shape))
    return sides
