"""What every benchmark leaves: one JSON a run, with the processor's name, the date, the versions and the command.

docs/performance.md is made of these files by `python benchmarks/page.py`; they lie in benchmarks/results/.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finllm.cpu import machine
from finllm.errors import UserError
from finllm.files import read_json, write_json
from finllm.threads import cores

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "lm-eval")
NEEDED = {"benchmark", "date", "processor", "cores", "command", "measured"}


def record(benchmark: str, measured: Any, **more: Any) -> dict[str, Any]:
    """One run's record: what was measured, where, when, with what, and how it is asked for again.

    Folders of this machine are not named: of a path in the command its last part is kept.
    """
    return {
        "benchmark": benchmark,
        "date": time.strftime("%Y-%m-%d"),
        "processor": machine.name(),
        "cores": cores(),
        "memory_gib": round(machine.memory_bytes() / 2**30),
        "python": platform.python_version(),
        "packages": versions(PACKAGES),
        "command": command(sys.argv),
        **more,
        "measured": measured,
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command(words: Sequence[str]) -> str:
    """A command line without the folders of the machine that it was given on, nor where its results went."""
    script, *rest = words
    kept = [f"benchmarks/{Path(script).name}"]
    for word, before in zip(rest, [script, *rest], strict=False):
        if before != "--output" and word != "--output":
            kept.append(Path(word).name if "/" in word else word)
    return shlex.join(["python", *kept])


def place(content: dict[str, Any], output: str | None) -> Path:
    """Where a record goes: what `output` says, else a file in benchmarks/results named by what, where and when."""
    if output:
        return Path(output)
    words = re.sub(r"[^a-z0-9]+", "-", content["processor"].lower()).strip("-")
    about = "-".join([content["benchmark"], *content.get("of", [])])
    return RESULTS / f"{about}-{words}-{content['date']}.json"


def keep(benchmark: str, measured: Any, output: str | None, **more: Any) -> Path:
    """Write a record and return where it is."""
    content = record(benchmark, measured, **more)
    write_json(path := place(content, output), content)
    return path


def read_all(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Every record, the oldest first; a `UserError` where one lacks what says where it comes from."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        if missing := NEEDED - content.keys():
            raise UserError(f"{path} says nothing of {', '.join(sorted(missing))}; write it by a benchmark anew")
        found.append({**content, "file": path.name})
    return sorted(found, key=lambda content: (content["date"], content["file"]))
