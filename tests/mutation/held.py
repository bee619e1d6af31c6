"""What earlier runs found, in runs/mutants: which lines each test reaches, and what became of each mutant.

All of it is known by the hashes of what it was found with, so that a run goes on where it was stopped, and looks again
where a module or a test has changed since.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import tomllib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutants import Mutant

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HELD = ROOT / "runs" / "mutants"
FOUND = HELD / "found.jsonl"


@functools.cache
def hash_of(*paths: Path) -> str:
    """Of files as they are when they are first asked for: whoever edits one meanwhile does not stop this run."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths if path.is_file())).hexdigest()[:16]


@functools.cache
def _helpers() -> tuple[Path, ...]:
    """What all tests may read beside themselves."""
    found = (path for path in (ROOT / "tests").rglob("*") if path.suffix in (".py", ".json"))
    return tuple(sorted(path for path in found if path.parent != HERE and not path.name.startswith("test_")))


def tests_hash(names: list[str]) -> str:
    """Of files of tests, or of single tests in them, with all that tests may read beside."""
    return hash_of(*(ROOT / name.split("::")[0] for name in names), *_helpers())


@functools.cache
def tests_of_modules() -> dict[str, list[str]]:
    return tomllib.loads((HERE / "modules.toml").read_text(encoding="utf-8"))


def files_of(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.split("::")[0] for name in names))


@dataclass
class Trace:
    """Of the tests of one file: how long each takes, and by module the lines that each reaches.

    What is reached while the file is imported is that of the test "".
    """

    selected: list[str]
    tests: str  # hash
    modules: dict[str, str]  # hashes
    seconds: dict[str, float]
    lines: dict[str, dict[str, list[int]]] = field(repr=False)


def trace_path(file: str) -> Path:
    return HELD / "traces" / f"{file.replace('/', '.')}.json"


@functools.cache
def trace_of(file: str, module: str) -> Trace | None:
    """What is known of a file's tests and a module as they are now."""
    path = trace_path(file)
    if not path.exists():
        return None
    found = Trace(**json.loads(path.read_text(encoding="utf-8")))
    holds = (found.selected, found.tests) == (selected(file), tests_hash([file]))
    return found if holds and found.modules.get(module) == hash_of(ROOT / module) else None


@functools.cache
def selected(file: str) -> list[str]:
    """What modules.toml names of a file: itself, or single tests of it."""
    return sorted({name for names in tests_of_modules().values() for name in names if name.split("::")[0] == file})


def reaching(module: str, mutant: Mutant) -> dict[str, dict[str, float]]:
    """The tests that reach a mutant's statement with their seconds, by file: the quickest file first, and test."""
    names = tests_of_modules()[module]
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for file in files_of(names):
        trace = trace_of(file, module)
        for test, seconds in sorted(trace.seconds.items(), key=lambda pair: pair[1]):
            if test.startswith(tuple(names)) and (not mutant.inside or _reaches(trace, module, test, mutant)):
                found[file][test] = seconds
    return dict(sorted(found.items(), key=lambda pair: sum(pair[1].values())))


def is_imported(module: str, mutant: Mutant) -> bool:
    """Whether a mutant's statement is run when the module is imported."""
    traces = (trace_of(file, module) for file in files_of(tests_of_modules()[module]))
    return not mutant.inside or any(_reaches(trace, module, "", mutant) for trace in traces)


def _reaches(trace: Trace, module: str, test: str, mutant: Mutant) -> bool:
    return any(mutant.first <= line <= mutant.last for line in trace.lines[module].get(test, ()))


# What became of mutants ----------------------------------------------------------------------------------------------


def key_of(module: str, mutant: Mutant) -> str:
    content = f"{module} {hash_of(ROOT / module)} {mutant.begin} {mutant.end} {mutant.new}"
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def note(module: str, mutant: Mutant, verdict: str, by: str | None, reached: int, seconds: float) -> None:
    tests = tests_of_modules()[module]
    line = {
        "key": key_of(module, mutant), "module": module, "verdict": verdict, "by": by, "reached": reached,
        "file": by and hash_of(ROOT / by.split("::")[0]), "tests": tests_hash(tests), "seconds": round(seconds, 2),
    }  # fmt: skip
    with open(FOUND, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def known(again: bool = False) -> dict[str, dict[str, Any]]:
    """By key what was found: killed ones while the test that killed them is as it was, others while all tests are.

    With `again` those that survived are not known.
    """
    found, tests_of = {}, tests_of_modules()
    for line in FOUND.read_text(encoding="utf-8").splitlines() if FOUND.exists() else ():
        with contextlib.suppress(ValueError):  # cut short by a kill
            each = json.loads(line)
            if each["verdict"] == "survived":
                holds = not again and each["tests"] == tests_hash(tests_of.get(each["module"], []))
            else:
                holds = not each["by"] or each["file"] == hash_of(ROOT / each["by"].split("::")[0])
            if holds:
                found[each["key"]] = each
            else:
                found.pop(each["key"], None)
    return found


def cannot_matter() -> list[tuple[str, str, str]]:
    """Of mutants that cannot matter: the module, a text that their diff holds, and why."""
    content = tomllib.loads((HERE / "cannot_matter.toml").read_text(encoding="utf-8"))
    return [(module, text, why) for module, each in content.items() for text, why in each.items()]
