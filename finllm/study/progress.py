"""What a study will take, said before it starts, and where it stands while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table

from finllm.study.conduct import Conduct, Found, failure_of
from finllm.study.search import FAILED, rate_at
from finllm.study.settings import Study, expected_steps
from finllm.terminal import Terminal

START_UP = 20.0  # seconds of a process beside its steps, until the first ones have shown


def plan_table(study: Study, plans: Mapping[str, dict[str, Any] | str], workers: int) -> tuple[Table, float]:
    """A row a method: runs, steps, tokens and hours by `finllm plan`'s figures, and the seconds of all together.

    `plans` has for each method the content of plan.json, or why it could not be planned: it is then taken to be as slow
    as the mean of the others, and marked.
    """
    table = Table(title="Planned: if the best rates lie inside the first grids", title_justify="left")
    for head in ("method", "trainings", "steps", "tokens", "a step", "hours"):
        table.add_column(head, justify="left" if head == "method" else "right")
    paces = [plan["step_seconds"] for plan in plans.values() if isinstance(plan, dict)]
    total = 0.0
    for method in study.methods:
        steps, runs = steps_of(study, method)
        plan = plans.get(method)
        known = isinstance(plan, dict)
        pace = plan["step_seconds"] if known else sum(paces) / len(paces) if paces else 0.0
        seconds = steps * pace + runs * START_UP
        total += seconds
        tokens = f"{steps * plan['tokens_per_second'] * pace:,.0f}" if known else "–"
        mark = "" if known else " (not planned)"
        table.add_row(method + mark, f"{runs:,}", f"{steps:,}", tokens, f"{pace:.2f} s", f"{seconds / 3600:.1f}")
    return table, total / workers


def steps_of(study: Study, method: str) -> tuple[int, int]:
    """Optimizer steps and processes that a method is expected to take, its seeds included."""
    candidates, rules = study.of(method), study.rules
    more = len(study.seeds) - 1
    searches = sum(expected_steps(study, candidate) for candidate in candidates)
    wholes = 0 if rules.part == rules.whole else max(rules.going_on, 3)
    wholes += 0 if rules.fixed else 2 * rules.finer
    processes = sum(len(candidate.grid) + wholes for candidate in candidates)
    return searches + more * rules.whole, processes + more


def standing(conduct: Conduct, found: Found, plans: Mapping[str, dict[str, Any] | str], workers: int) -> Table:
    """The live table: of every method what is done, what is being trained, the best so far, and the time left."""
    study = conduct.study
    table = Table(title="The study", title_justify="left")
    for head in ("method", "done", "being trained", "best so far", "rate", ""):
        table.add_column(head, justify="left" if head in ("method", "being trained", "") else "right")
    left = 0.0
    for method in study.methods:
        candidates = study.of(method)
        ends = [end for candidate in candidates for end in found.outcomes[candidate.name].values() if end.settled]
        whole = {
            (candidate.name, place): loss
            for candidate in candidates
            for place, loss in found.whole(candidate).items()
            if loss < FAILED
        }
        best = min(whole, key=whole.__getitem__) if whole else None
        finals = found.finals(method)
        over = bool(finals) and all(found.ended(task) for task in finals)
        failed = None if finals or any(found.due(each) for each in candidates) else failure_of(found, method)
        state = (
            f"failed: {failed}" if failed else "done" if over else "seeds" if finals else "searching" if ends else ""
        )
        at_work = [task for task in conduct.at_work if task.candidate in {each.name for each in candidates}]
        _, expected = steps_of(study, method)
        if not (over or failed):
            left += max(expected - len(ends), 1) * _seconds_of_one(study, method, ends, plans)
        table.add_row(
            method, f"{len(ends)} of some {max(expected, len(ends))}",
            ", ".join(f"{rate_at(task.job.place):g} to step {task.job.steps}" for task in at_work),
            f"{whole[best]:.4f}" if best else "", f"{rate_at(best[1]):g}" if best else "", state,
        )  # fmt: skip
    table.caption = f"some {left / workers / 60:,.0f} minutes are left" if left else "nothing is left to train"
    return table


def _seconds_of_one(study: Study, method: str, ends: list, plans: Mapping[str, Any]) -> float:
    """Of a training that is still to come: the mean of those that were, else by the plan."""
    if ends:
        return sum(end.seconds for end in ends) / len(ends)
    plan = plans.get(method)
    steps, processes = steps_of(study, method)
    pace = plan["step_seconds"] if isinstance(plan, dict) else 1.0
    return steps / processes * pace + START_UP


class Teller:
    """Says lines, and the table every two minutes: each time the whole storage is read."""

    EVERY = 120.0  # seconds

    def __init__(self, table: Callable[[], Table]):
        self.console, self._table, self._last = Terminal(), table, time.monotonic()

    def __call__(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)
        if time.monotonic() - self._last > self.EVERY:
            self._last = time.monotonic()
            self.console.print(self._table())
