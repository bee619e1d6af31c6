"""What a study will take, said before it starts, and where it stands while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from statistics import mean
from typing import Any

from rich.table import Table

from finllm.study.conduct import Conduct, Found, failure_of
from finllm.study.search import FAILED, rate_at
from finllm.study.settings import Candidate, Study, expected_steps
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
    planned, total = _planned(plans), 0.0
    for method in study.methods:
        steps, runs = steps_of(study, method)
        plan = plans.get(method)
        known = isinstance(plan, dict)
        pace = plan["step_seconds"] if known else planned or 0.0
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
    trained = {method: _trained(found, study.of(method)) for method in study.methods}
    known = [seconds / steps for steps, seconds in trained.values() if steps]
    usual, left = mean(known) if known else None, 0.0
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
        steps, expected = steps_of(study, method)
        if not (over or failed):
            done, seconds = trained[method]
            pace = seconds / done if done else usual
            if pace is None and (planned := _planned(plans)) is not None:
                pace = planned + START_UP * expected / steps
            left = None if left is None or pace is None else left + max(steps - done, study.rules.part) * pace
        table.add_row(
            method, f"{len(ends)} of some {max(expected, len(ends))}",
            ", ".join(f"{rate_at(task.job.place):g} to step {task.job.steps}" for task in at_work),
            f"{whole[best]:.4f}" if best else "", f"{rate_at(best[1]):g}" if best else "", state,
        )  # fmt: skip
    if left is None:
        table.caption = "how long it will take is known once a training has ended"
    elif left:
        minutes = left / workers / 60
        table.caption = f"some {minutes:,.0f} minutes are left" if minutes >= 1.5 else "about a minute is left"
    else:
        table.caption = "nothing is left to train"
    return table


def _trained(found: Found, candidates: Iterable[Candidate]) -> tuple[int, float]:
    """Optimizer steps that were trained to a loss, and the seconds of their processes, starting up included."""
    steps: dict[str, int] = {}
    seconds = 0.0
    for candidate in candidates:
        for task, end in found.outcomes[candidate.name].items():
            if end.settled and end.loss < FAILED:
                steps[task.run] = max(steps.get(task.run, 0), task.job.steps)  # a run goes on from where it stood
                seconds += end.seconds
    return sum(steps.values()), seconds


def _planned(plans: Mapping[str, dict[str, Any] | str]) -> float | None:
    """Seconds of a step by `finllm plan`, the mean of the methods that were planned."""
    paces = [plan["step_seconds"] for plan in plans.values() if isinstance(plan, dict)]
    return mean(paces) if paces else None


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
