"""What the JSON and YAML of run dirs must hold, and what is wrong with a content: every place is named.

A shape is a type, a `Number`, a tuple of these (any of them), the keys of an object, `Each` or `Maybe`. A whole number
will do for a float, and True is neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any

from finllm.errors import shortened


@dataclass(frozen=True)
class Number:
    """A float, or with `whole` an int, from `low` to `high`."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False


@dataclass(frozen=True)
class Each:
    """A list, or with `named` an object, each of whose values has this shape."""

    shape: Any
    named: bool = False


@dataclass(frozen=True)
class Maybe:
    """A key that may be absent or null."""

    shape: Any


COUNT, SIZE, SHARE = Number(0, whole=True), Number(0), Number(0, 1 + 1e-6)

# What the report reads of the other files of a run dir and of a dataset dir, and no more than that
SUMMARY = dict.fromkeys(
    ("train_seconds", "tokens_per_second", "peak_memory_bytes", "steps", "epochs", "best_validation_loss"), Maybe(SIZE)
)
METRICS_LINE = {"step": COUNT, "loss": Maybe(float), "validation_loss": Maybe(float)}
PROVENANCE = {
    "git_commit": Maybe(str),
    "packages": Maybe(Each(str, named=True)),
    "hardware": Maybe(dict),
    "dataset_hash": Maybe(str),
    "base_model_hash": Maybe(str),
}
CONFIG = {"seed": Maybe(int)}
PROOFS = Each({"said": str, "passed": bool})
MANIFEST = {
    "source": {"name": str, "rows": COUNT, "sha256": str},
    "template": {"id": str, "hash": Maybe(str)},
    "rejected": COUNT,
    "split": dict,
    "splits": Each({"rows": COUNT, "questions": COUNT, "sha256": str}, named=True),
    "cleaning": Each({"step": str, "enabled": bool, "changed": COUNT, "dropped": COUNT}),
}
AUDIT = {
    "passed": bool,
    "summary": str,
    "contaminated": Maybe(Each(str)),
    "baselines": Maybe(Each({name: (Number(0), NoneType) for name in ("rouge1", "rougeL", "bleu")}, named=True)),
}


def problems(content: Any, shape: Any, place: str) -> Iterator[str]:
    """What is wrong with `content`, held against a shape; keys that a shape does not name are let be."""
    if isinstance(shape, Maybe):
        if content is not None:
            yield from problems(content, shape.shape, place)
    elif isinstance(shape, dict):
        yield from _problems_of_keys(content, shape, place)
    elif isinstance(shape, Each):
        kind = dict if shape.named else list
        if type(content) is not kind:
            yield f"{place} is {shortened(content)}, not {_name(kind)}"
            return
        for key, each in content.items() if shape.named else enumerate(content):
            yield from problems(each, shape.shape, f"{place}.{key}" if shape.named else f"{place}[{key}]")
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        fitting = [kind for kind in kinds if _fits(content, kind)]
        if not fitting:
            yield f"{place} is {shortened(content)}, not {' or '.join(map(_name, kinds))}"
        elif isinstance(content, float) and not math.isfinite(content):
            yield f"{place} is {content}, not a finite number"
        elif isinstance(kind := fitting[0], Number) and not kind.low <= content <= kind.high:
            ends = f"{kind.low:g} or more" if kind.high == math.inf else f"from {kind.low:g} to {kind.high:g}"
            yield f"{place} is {content}, not {ends}"


def _problems_of_keys(content: Any, shape: dict[str, Any], place: str) -> Iterator[str]:
    if not isinstance(content, dict):
        yield f"{place or 'the whole'} is {shortened(content)}, not an object"
        return
    for key, inner in shape.items():
        where = f"{place}.{key}" if place else key
        if key in content:
            yield from problems(content[key], inner, where)
        elif not isinstance(inner, Maybe):
            yield f"{where} is missing"


def _fits(content: Any, kind: Any) -> bool:
    if isinstance(kind, Number):
        kind = int if kind.whole else float
    return type(content) is kind or (kind is float and type(content) is int)


def _name(kind: Any) -> str:
    if isinstance(kind, Number):
        kind = int if kind.whole else float
    return "null" if kind is NoneType else kind.__name__
