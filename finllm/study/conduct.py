"""A study under way: workers take what is due, train it, and tell how it ended, until nothing is due.

What is due follows from what was found (finllm/study/search.py), so workers need not know of each other: they share
the storage, and decide one at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finllm.run_dir import RunDir
from finllm.study.search import FAILED, Job, best_of, next_jobs
from finllm.study.settings import Candidate, Study
from finllm.study.starting import Start, from_nothing
from finllm.study.storage import Outcome, Storage, Task
from finllm.study.trial import Ended, drop_checkpoints, run_trial

PAUSE = 2.0  # seconds until a worker that found nothing to do looks again
REFUSED = "refused: "


class Found:
    """What the trials of a study have found so far, read once."""

    def __init__(self, study: Study, storage: Storage):
        self.study = study
        self.outcomes: dict[str, dict[Task, Outcome]] = {
            candidate.name: storage.outcomes(candidate.name) for candidate in study.candidates
        }

    def losses(self, candidate: Candidate) -> dict[Job, float]:
        """Validation losses of the search's seed, as `next_jobs` takes them."""
        held = self.outcomes[candidate.name].items()
        return {task.job: end.loss for task, end in held if end.settled and task.seed == self.study.seeds[0]}

    def refused(self, candidate: Candidate) -> str | None:
        """Why a candidate cannot be trained at any rate."""
        reasons = (end.reason for end in self.outcomes[candidate.name].values() if end.reason)
        return next((reason.removeprefix(REFUSED) for reason in reasons if reason.startswith(REFUSED)), None)

    def due(self, candidate: Candidate) -> list[Task]:
        """What the search of a candidate needs next."""
        if self.refused(candidate):
            return []
        jobs = next_jobs(candidate.grid, self.study.rules, self.losses(candidate))
        return [Task(candidate.name, job, self.study.seeds[0]) for job in jobs]

    def whole(self, candidate: Candidate) -> dict[float, float]:
        """By place the validation losses of the whole budget."""
        return {job.place: loss for job, loss in self.losses(candidate).items() if job.steps == self.study.budget.steps}

    def chosen(self, method: str) -> tuple[Candidate, float] | None:
        """The candidate and place with the least validation loss, once all searches of a method are over."""
        candidates = self.study.of(method)
        if any(self.due(candidate) for candidate in candidates):
            return None
        bests = {number: (whole[place], place) for number, candidate in enumerate(candidates)
                 if (place := best_of(whole := self.whole(candidate))) is not None}  # fmt: skip
        if not bests:
            return None
        number = min(bests, key=lambda number: bests[number])
        return candidates[number], bests[number][1]

    def finals(self, method: str) -> list[Task]:
        """The runs of a method at its chosen settings, one a seed; empty before they are chosen."""
        chosen = self.chosen(method)
        if chosen is None:
            return []
        candidate, place = chosen
        return [Task(candidate.name, Job(place, self.study.budget.steps), seed) for seed in self.study.seeds]

    def ended(self, task: Task) -> Outcome | None:
        """How a task ended; None where it is due."""
        outcome = self.outcomes[task.candidate].get(task)
        return outcome if outcome is not None and outcome.settled else None

    def to_train(self, method: str, trials: Path) -> list[Task]:
        """Of the finals of a method those that are due. One whose run dir has been taken away is due again."""
        return [
            task
            for task in self.finals(method)
            if (ended := self.ended(task)) is None or (ended.loss < FAILED and not (trials / task.run).exists())
        ]


class Conduct:
    """Trains a study's tasks: `root` is the checkout, `folder` the study dir, `start` how a process starts."""

    def __init__(self, study: Study, storage: Storage, folder: Path, root: Path, start: Start = from_nothing):
        self.study, self.storage, self.folder, self.root, self.start = study, storage, folder, root, start
        self.stop = threading.Event()
        self.trials = folder / "trials"
        self.trials.mkdir(parents=True, exist_ok=True)
        self.at_work: dict[Task, float] = {}  # of this process: since when

    def run_dir(self, task: Task) -> RunDir:
        return RunDir(self.trials / task.run)

    def work(self, device: int | None, tell: Callable[[str], None], beside: int) -> None:
        """Take what is due until nothing is, or `stop` is set. `beside` is of how many other workers on this device."""
        while not self.stop.is_set():
            with self.storage.alone():
                task, others = self._next()
                claim = self.storage.begin(task) if task else None
            if task is None:
                if not others:
                    return
                self.stop.wait(PAUSE)
                continue
            self.at_work[task] = time.monotonic()
            tell(f"{task.run}: training to step {task.job.steps:,}")
            ended = self._train(task, device)
            del self.at_work[task]
            if ended.stopped:
                claim.let_go()
                return
            reason = f"{REFUSED}{ended.reason}" if ended.refused else ended.reason
            with self.storage.alone():
                self.storage.end(task, claim, ended.loss, reason, ended.seconds, beside)
            found = f"validation loss {ended.loss:.4f}" if ended.loss is not None else f"failed: {ended.reason}"
            tell(f"{task.run}: {found} at step {task.job.steps:,}, {ended.seconds:,.0f} s")

    def _next(self) -> tuple[Task | None, bool]:
        """A task that nobody is at, if there is one; else whether others are at work, after which more may be due."""
        found, others = Found(self.study, self.storage), False
        for method in self.study.methods:
            candidates = self.study.of(method)
            running = {task for candidate in candidates for task in self.storage.running(candidate.name)}
            due = [task for candidate in candidates for task in found.due(candidate)]
            due = due or found.to_train(method, self.trials)
            busy = {task.run for task in running}
            for task in due:
                if task.run not in busy:
                    return task, True
            others = others or bool(due)
            if not due:
                self._tidy(found, method)
        return None, others

    def _tidy(self, found: Found, method: str) -> None:
        """Nothing of a method is to be gone on with: its checkpoints go."""
        for candidate in self.study.of(method):
            for task in found.outcomes[candidate.name]:
                drop_checkpoints(self.run_dir(task))

    def _train(self, task: Task, device: int | None) -> Ended:
        settings = self.settings_of(task)
        stop_at = task.job.steps if task.job.steps < self.study.budget.steps else None
        return run_trial(self.root, self.run_dir(task), settings, stop_at, device, self.stop, self.start)

    def settings_of(self, task: Task) -> Mapping[str, Any]:
        """The recipe's keys of a task's run."""
        candidate = next(each for each in self.study.candidates if each.name == task.candidate)
        return self.study.settings_of(candidate, task.job.place, task.seed)


def failure_of(found: Found, method: str) -> str | None:
    """Why a method has no chosen settings although nothing of it is due."""
    ends = [end for candidate in found.study.of(method) for end in found.outcomes[candidate.name].values()]
    reasons = [end.reason for end in ends if end.settled and end.reason]
    return reasons[-1].removeprefix(REFUSED) if reasons and found.chosen(method) is None else None
