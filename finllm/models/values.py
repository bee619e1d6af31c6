"""Whether the value of a key is of its field's type, and within its limits: a YAML file gives anything for a key.

What is let through either ends in another program's traceback or, like a rate of `true`, is quietly taken for 1.
"""

from __future__ import annotations

import enum
import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finllm.errors import shortened
from finllm.text.credentials import LEFT_OUT, without_credentials

WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list", dict: "a mapping"
}  # fmt: skip


def shown(key: str, value: Any) -> str:
    """A key's value as a message shows it: as YAML has it, shortened, and without what looks like a credential."""
    masked = without_credentials({key: value}).get(key, LEFT_OUT)
    return json.dumps(masked) if masked is None or isinstance(masked, bool) else shortened(masked)


def wrong_type(hint: Any, value: Any) -> str | None:
    """What a value must be to be of a field's type; None where it is, and where the type is none of YAML's."""
    allowed = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    enums = [each for each in allowed if isinstance(each, type) and issubclass(each, enum.Enum)]
    if enums and isinstance(value, str):  # peft takes any other text for none of them, and goes on
        texts = [member.value for each in enums for member in each]
        return None if value in texts else f"one of {texts}"
    if any(_is_of(each, value) for each in allowed):
        return None
    choices = [choice for each in allowed if _kind(each) is typing.Literal for choice in typing.get_args(each)]
    if isinstance(value, str) and any("[" in choice for choice in choices if isinstance(choice, str)):
        return None  # a name that stands for many, `pissa_niter_[number of iters]`: peft judges
    words = [f"one of {choices}"] if choices else []
    for each in allowed:
        of_texts = _kind(each) is list and typing.get_args(each) == (str,)
        words += ["a list of texts"] if of_texts else [WORDS[_kind(each)]] if _kind(each) in WORDS else []
    return " or ".join(dict.fromkeys(words))


def _kind(hint: Any) -> Any:
    return typing.get_origin(hint) or hint


def _is_of(hint: Any, value: Any) -> bool:
    kind, of = _kind(hint), typing.get_args(hint)
    if kind is types.NoneType:
        return value is None
    if kind is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in of)
    if kind is float:
        return type(value) in (int, float)
    if kind is list:
        return isinstance(value, list) and (of != (str,) or all(isinstance(each, str) for each in value))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return isinstance(value, kind)
    return type(value) is kind if kind in WORDS else True


@dataclass(frozen=True)
class Limit:
    """Which numbers a key may have, and how that is said after `must be`."""

    holds: Callable[[float], bool]
    must: str


ABOVE_0 = Limit(lambda value: value > 0, "above 0")
AT_LEAST_0 = Limit(lambda value: value >= 0, "at least 0")
AT_LEAST_1 = Limit(lambda value: value >= 1, "at least 1")
AT_LEAST_2 = Limit(lambda value: value >= 2, "at least 2")
SHARE = Limit(lambda value: 0 <= value < 1, "at least 0 and below 1")
BETWEEN = Limit(lambda value: 0 < value < 1, "above 0 and below 1")
SEED = Limit(lambda value: 0 <= value < 2**32, "from 0 to 4,294,967,295")


def beyond(key: str, value: Any, limit: Limit | None) -> str | None:
    """What is wrong with a number: it is none, infinite, or beyond a limit. None where nothing is, and of no number."""
    if type(value) not in (int, float):
        return None
    if not math.isfinite(value):
        return f"{key} is {value}; it must be a finite number"
    return f"{key} is {value}; it must be {limit.must}" if limit and not limit.holds(value) else None


# Of fields of peft's config classes; those of AdaLoRA's schedule are in steps
OF_FIELDS = {
    "r": AT_LEAST_0, "deltaT": AT_LEAST_1, "tinit": AT_LEAST_0, "tfinal": AT_LEAST_0, "orth_reg_weight": ABOVE_0,
    "beta1": BETWEEN, "beta2": BETWEEN,
}  # fmt: skip


def limit_of_field(name: str) -> Limit | None:
    """Of a field of peft's config classes, whose names say what many of them are."""
    if "dropout" in name:
        return SHARE
    return ABOVE_0 if name.endswith("alpha") else OF_FIELDS.get(name)
