"""Regular expressions of an adapter's settings, tried before peft tries them: some backtrack for ever."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from finllm.errors import UserError, shortened

SECONDS = 10.0  # for all patterns on all names; sane ones take milliseconds
MOST_CHARACTERS = 1000

# As peft 0.21 uses them (tuners_utils.py, utils/other.py): as they are, as the end of a name, and as a part of one.
_TRY = r"""
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    print(json.dumps(pattern), flush=True)
    for form in (pattern, rf"(.*\.)?({pattern})$", rf"(^|.*\.){pattern}($|\..*)"):
        try:
            compiled = re.compile(form)
        except (re.error, RecursionError, OverflowError) as error:
            sys.exit(f"is no regular expression ({error})")
        for name in names:
            compiled.fullmatch(name), compiled.match(name)
"""


def check_patterns(settings: Mapping[str, Any], model: torch.nn.Module, place: str) -> None:
    """Refuse settings of peft with a pattern that is none, or that takes more than 10 s on this model's names.

    Python's own engine says so, in a process that can be stopped: nothing can stop it in ours.
    """
    patterns = sorted({text for key, value in settings.items() if _NAMED.search(key) for text in _texts(value)})
    patterns = [text for text in patterns if re.search(r"[^\w.-]", text)]  # else a plain name
    if not patterns:
        return
    if long := next((text for text in patterns if len(text) > MOST_CHARACTERS), None):
        raise UserError(
            f"{place}: the pattern {shortened(long)} has {len(long):,} characters, over {MOST_CHARACTERS:,}"
        )
    names = [*dict(model.named_modules()), *dict(model.named_parameters())]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _TRY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, err = process.communicate(json.dumps([patterns, names]).encode(), timeout=SECONDS)
        slow = False
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        slow = True
    if slow or process.returncode:
        pattern = shortened(json.loads(out.splitlines()[-1]))
        wrong = f"backtracks for more than {SECONDS:g} s on the names of this model" if slow else err.decode().strip()
        raise UserError(f"{place}: the pattern {pattern} {wrong}; name the modules, or take all-linear")


_NAMED = re.compile("module|pattern|parameters")


def _texts(value: Any) -> Iterator[str]:
    """The texts of a value: itself, those of a list, the keys of a mapping."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | set | dict):
        for each in value:
            yield from _texts(each)
