"""What a study has done and is doing, in Optuna's storage: a journal in the study dir, or a database by its URL.

    an Optuna study         a candidate
    a trial                 a training of it up to a step: its parameters are learning rate, steps and seed
    value                   validation loss at that step, in nats a token
    user attributes         run (the run dir's name), reason (of a failure), seconds (of the whole process)

Who trains holds a lock on a file in claims/ for as long as it lives. A trial that is running and whose lock is free
was killed: it is marked as failed and its work is due again; the run dir goes on from its checkpoint.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from finllm.errors import UserError
from finllm.files import locked, naming, write_text
from finllm.study.search import FAILED, Job, place_of, rate_at

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

INTERRUPTED = "interrupted"
JOURNAL = "trials.journal"
DATABASE = "database.txt"  # of a study that is kept in a database: its name there


@dataclass(frozen=True)
class Task:
    """A training that is due: of a candidate at a place with a seed, up to a step."""

    candidate: str
    job: Job
    seed: int

    @property
    def run(self) -> str:
        """The name of its run dir, which a later task of more steps goes on with."""
        return f"{self.candidate}-{rate_at(self.job.place):g}-seed{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """How a task ended: its validation loss, or why there is none. `settled` is False for one that was interrupted.

    Meanwhile its device trained so many others `beside` it.
    """

    loss: float
    reason: str | None
    seconds: float
    settled: bool
    beside: int = 0


class Storage:
    """The trials of a study's candidates. `folder` is the study dir; `url` a database that several machines reach."""

    def __init__(self, folder: Path, url: str | None = None):
        self.folder = folder
        self.claims = folder / "claims"
        self.claims.mkdir(parents=True, exist_ok=True)
        if url is None:
            path = str(folder / JOURNAL)
            self._storage = JournalStorage(JournalFileBackend(path, lock_obj=_Lock(path)))
            # The journal is this study's alone, whatever its folder is called by now.
            self._name = next((held.study_name.rpartition("/")[0] for held in self._storage.get_all_studies()), "study")
        else:
            self._storage, self._name = _database(url), self._name_in_database()

    def _name_in_database(self) -> str:
        """By what name a database knows this study dir, and no other that is called the same or comes after it."""
        with self.alone():
            if not (self.folder / DATABASE).exists():
                write_text(self.folder / DATABASE, f"{self.folder.resolve().name}-{uuid.uuid4().hex}\n")
        return (self.folder / DATABASE).read_text(encoding="utf-8").strip()

    def _study(self, candidate: str) -> optuna.Study:
        return optuna.create_study(
            storage=self._storage, study_name=f"{self._name}/{candidate}", direction="minimize", load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=0),
        )  # fmt: skip

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other worker of this study decides what to do next."""
        with naming(self.claims / ".deciding"), locked(self.claims / ".deciding"):
            yield

    def outcomes(self, candidate: str) -> dict[Task, Outcome]:
        """What ended, by task; a task that was interrupted and then done is done."""
        found = {}
        for trial in self._study(candidate).get_trials(deepcopy=False):
            if not trial.state.is_finished():
                continue
            done, reason = trial.state == TrialState.COMPLETE, trial.user_attrs.get("reason")
            outcome = Outcome(
                trial.value if done else FAILED, reason, trial.user_attrs.get("seconds", 0.0), reason != INTERRUPTED,
                trial.user_attrs.get("beside", 0),
            )  # fmt: skip
            task = _task(candidate, trial)
            if task is not None and (task not in found or outcome.settled):
                found[task] = outcome
        return found

    def running(self, candidate: str) -> set[Task]:
        """The tasks that a living worker is at; what a dead one left is marked. Call it `alone`."""
        study, found = self._study(candidate), set()
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            task = _task(candidate, trial)
            if task is not None and self._is_held(task):
                found.add(task)
            else:
                self._storage.set_trial_user_attr(trial._trial_id, "reason", INTERRUPTED)
                study.tell(trial.number, state=TrialState.FAIL)
        return found

    def begin(self, task: Task) -> Claim:
        """Take a task; nobody else may be at it. Call it `alone`."""
        claim = Claim(self.claims / task.run)
        study = self._study(task.candidate)
        for _ in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):  # whoever wrote it was killed there
            left = study.ask()
            left.set_user_attr("reason", INTERRUPTED)
            study.tell(left, state=TrialState.FAIL)
        parameters = {"learning_rate": rate_at(task.job.place), "steps": task.job.steps, "seed": task.seed}
        study.enqueue_trial(parameters, user_attrs={"run": task.run, "place": task.job.place})
        claim.trial = study.ask(DISTRIBUTIONS)
        return claim

    def end(
        self, task: Task, claim: Claim, loss: float | None, reason: str | None, seconds: float, beside: int
    ) -> None:
        """Tell how a task ended, and let go of it. `beside` is of how many others that its device trained meanwhile."""
        study = self._study(task.candidate)
        claim.trial.set_user_attr("seconds", seconds)
        claim.trial.set_user_attr("beside", beside)
        if reason is not None:
            claim.trial.set_user_attr("reason", reason)
        if loss is None:
            study.tell(claim.trial, state=TrialState.FAIL)
        else:
            study.tell(claim.trial, loss)
        claim.let_go()

    def _is_held(self, task: Task) -> bool:
        path = self.claims / task.run
        if not path.exists():
            return False
        try:
            with locked(path, wait=False):
                return False
        except BlockingIOError:
            return True


DISTRIBUTIONS = {
    "learning_rate": FloatDistribution(1e-12, 1e6, log=True),
    "steps": IntDistribution(1, 2**31),
    "seed": IntDistribution(0, 2**32),
}


def check_storage(folder: Path, url: str | None) -> None:
    """Refuse a storage that is not the one where a study dir keeps what it found: all would be trained once more.

    And a database that cannot be opened.
    """
    if url is None and (folder / DATABASE).exists():
        raise UserError(f"{folder} keeps what it found in a database; pass its --storage URL")
    if url is not None and (folder / JOURNAL).exists():
        raise UserError(f"{folder} keeps what it found in {folder / JOURNAL}; leave --storage out")
    if url is not None:
        _database(url)


def _database(url: str) -> RDBStorage:
    """The database, whose URL is not repeated in what is said of it: it may hold a password."""
    from sqlalchemy.exc import SQLAlchemyError  # Optuna, too, imports it for who has a database alone

    try:
        return RDBStorage(url)
    except (SQLAlchemyError, ImportError) as error:
        raise UserError(
            f"--storage cannot be opened: {' '.join(str(error).split())}; it is the URL of a database whose driver is "
            "installed, such as postgresql://user@host/name or sqlite:////folder/study.db"
        ) from error


class _Lock(JournalFileOpenLock):
    """Of the journal: one that the kernel drops with its process, where Optuna's own are files that stay behind."""

    def __init__(self, path: str):
        self._path, self._held = Path(f"{path}.lock"), ExitStack()

    def acquire(self) -> bool:
        self._held.enter_context(locked(self._path))
        return True

    def release(self) -> None:
        self._held.close()


class Claim:
    """A lock that the kernel drops with its process, on a file in claims/."""

    def __init__(self, path: Path):
        self.trial: optuna.Trial | None = None
        self._held = ExitStack()
        self._held.enter_context(locked(path, wait=False))

    def let_go(self) -> None:
        self._held.close()


def _task(candidate: str, trial: optuna.trial.FrozenTrial) -> Task | None:
    """None of a trial whose worker was killed before all of its parameters were written."""
    if not DISTRIBUTIONS.keys() <= trial.params.keys():
        return None
    place = trial.user_attrs.get("place", place_of(trial.params["learning_rate"]))
    return Task(candidate, Job(place, trial.params["steps"]), trial.params["seed"])
