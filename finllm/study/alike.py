"""What is said of several methods in the same words, told once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class OfMethod(NamedTuple):
    """What is wrong with a method, and maybe with others in the same words."""

    said: str
    method: str


def each_once(problems: Iterable[str | OfMethod], methods: int) -> list[str]:
    """Problems in their order; one that several of so many methods have is told once."""
    held: dict[str, list[str]] = {}
    for problem in problems:
        names = held.setdefault(problem.said if isinstance(problem, OfMethod) else problem, [])
        if isinstance(problem, OfMethod) and problem.method not in names:
            names.append(problem.method)
    return [said_of(said, names, methods) for said, names in held.items()]


def said_of(said: str, names: Sequence[str], methods: int) -> str:
    """What is said of the methods `names`, which are not named where they are all of several."""
    if len(names) == 1:
        return f"methods.{names[0]}: {said}"
    return said if len(names) in (0, methods) else f"{said} (methods: {', '.join(names)})"
