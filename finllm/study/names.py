"""What methods and their candidates are called: run dirs, rows and Optuna's studies go by these names.

So no two may have one name, nor two that differ in case alone, which some file systems take for one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from finllm.study.alike import OfMethod

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}")
BASE = "base"  # the row of the base model, or base-… where methods have several


def labels(key: str, values: Sequence[Any]) -> list[str]:
    """For each value of a key that is searched what a candidate's name says of it: no two the same."""
    found: dict[str, str] = {}
    for value in values:
        text = f"{value:g}" if isinstance(value, float) else str(value)
        short = label = f"-{key.removeprefix('lora_')}{re.sub(r'[^A-Za-z0-9.]+', '_', text)[:24]}"
        number = 1
        while label.casefold() in found:
            number += 1
            label = f"{short}_{number}"
        found[label.casefold()] = label
    return [*found.values()]


def problems_of_names(methods: Iterable[str], candidates: Iterable[tuple[str, str]]) -> list[OfMethod]:
    """What is wrong with the names of methods, and with those of candidates, which stand behind their method's."""
    problems: list[OfMethod] = []
    seen: dict[str, str] = {}
    for name in methods:
        low = name.casefold()
        if not NAME.fullmatch(name):
            problems.append(OfMethod("a name has up to 41 letters, digits, dots, dashes and underscores", name))
        if low == BASE or low.startswith(f"{BASE}-"):
            problems.append(OfMethod(f"what has not been trained is called {BASE}; take another name", name))
        if low in seen:
            problems.append(OfMethod(f"methods.{seen[low]} has that name, but for case; take another", name))
        seen[low] = name
    owners: dict[str, str] = {}
    for method, name in candidates:
        other = owners.setdefault(name.casefold(), method)
        if other.casefold() != method.casefold():
            said = f"runs would be called {name}, as those of methods.{other}; take another name"
            problems.append(OfMethod(said, method))
    return problems
