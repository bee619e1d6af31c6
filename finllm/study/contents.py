"""What a study's trainings were made from: data, base model, tokenizer and template, by their contents.

A study goes on for days and on several machines, and a name may hold something else by then. Trainings of other data
would be compared as if they were of the same, so the study stops instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finllm.errors import raise_problems
from finllm.run_dir import CONTENTS, RunDir
from finllm.study.conduct import Found


def check_contents(found: Found, trials: Path, now: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse trainings that were made from something else than what the same names hold `now`.

    `now` has for each candidate some of the keys of `CONTENTS`, as its runs' provenance.json has them.
    """
    others: dict[tuple[str, str, str], list[str]] = {}
    for candidate, outcomes in found.outcomes.items():
        for run in dict.fromkeys(task.run for task in outcomes):
            if (trials / run / "provenance.json").exists():
                then = RunDir(trials / run).provenance()
                for key, hashed in now[candidate].items():
                    if then.get(key) != hashed:
                        others.setdefault((key, str(then.get(key))[:16], hashed[:16]), []).append(run)
    problems = []
    for (key, then, hashed), (run, *more) in others.items():
        runs = f"{run} and {len(more):,} other{'s' if more[1:] else ''}" if more else run
        problems.append(
            f"{key} was {then} when {runs} began and is {hashed} now; {CONTENTS[key]}, or begin another study in "
            "another --output_dir"
        )
    raise_problems(problems, str(trials.parent))
