"""Scripts of the checkout in processes that may be killed, at a moment or in the middle of a call.

They are forked from a server that has imported torch and trl once, which takes ten seconds a process otherwise.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = "finllm.training.trainer finllm.models.base finllm.training.summary finllm.training.plots peft accelerate"
CONTEXT.set_forkserver_preload(PRELOADED.split())
LIMIT = 900  # seconds that a run of a few steps may take; a machine under load is slow, one that hangs hangs for ever
# Process.start reads the exit status of every child that has ended, and a status can be read once: whatever thread
# comes second is told 255. So threads start and join one at a time, and wait side by side.
STARTS_AND_JOINS = Lock()


@dataclass(frozen=True)
class Moment:
    """Just before the `count`th call of os.`function` whose first argument has `word` in it."""

    function: str
    count: int
    word: str
    signal: int = signal.SIGKILL  # what the process then sends to itself
    times: int = 1

    def __str__(self) -> str:
        return f"{self.function} {self.count} {self.word}".strip()

    def prepare(self) -> None:
        """Have this process send itself the signal at this moment."""
        original, calls = getattr(os, self.function), 0

        def call(*arguments, **keywords):
            nonlocal calls
            if self.word in str(arguments[0]):
                calls += 1
                for _ in range(self.times if calls == self.count else 0):
                    os.kill(os.getpid(), self.signal)
            return original(*arguments, **keywords)

        setattr(os, self.function, call)


def start(script: str, arguments: list[object], output: Path, moment: Moment | None = None, file_limit: int = 0):
    """A process that runs `script`; what it prints goes into `output`.

    With `file_limit`, writing more bytes than that into a file fails, as on a full disk.
    """
    arguments = [str(argument) for argument in arguments]
    process = CONTEXT.Process(target=_run, args=(script, arguments, output, moment, file_limit))
    with STARTS_AND_JOINS:
        process.start()
    return process


def run(script: str, arguments: list[object], output: Path, kill_after: float | None = None, **more) -> int:
    """Run `script` to its end, or kill it after so many seconds; its exit status, -9 where it was killed."""
    process = start(script, arguments, output, **more)
    ended = wait([process.sentinel], LIMIT if kill_after is None else kill_after)
    if not ended:
        process.kill()
    with STARTS_AND_JOINS:
        process.join()
    assert ended or kill_after is not None, f"still running after {LIMIT} s: {output.read_text()}"
    return process.exitcode


def wait_for(condition, seconds: float = LIMIT) -> None:
    """Return once `condition()` holds; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)


def _run(script: str, arguments: list[str], output: Path, moment: Moment | None, file_limit: int) -> None:
    os.chdir(ROOT)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    if moment:
        moment.prepare()
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.argv, sys.path = [script, *arguments], [str(ROOT), *sys.path]
    runpy.run_path(str(ROOT / script), run_name="__main__")
