"""Scripts of the checkout in processes of their own, which may be killed at a moment or in the middle of a call.

They are forked from a server that has imported torch and trl once, which takes ten seconds a process otherwise.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from threading import Lock
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = "tests.preloaded"
LIMIT = 900  # seconds that a run of a few steps may take; a machine under load is slow, one that hangs hangs for ever
# Process.start reads the exit status of every child that has ended, and a status can be read once: whatever thread
# comes second is told 255. So threads start and join one at a time, and wait side by side.
STARTS_AND_JOINS = Lock()


@dataclass(frozen=True)
class Done:
    """A command that ended: its exit status, and what it printed."""

    status: int
    out: str
    err: str


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


@dataclass(frozen=True)
class How:
    """What is different about a process: beyond `file_limit` bytes a file is a full disk, 0 is no limit."""

    moment: Moment | None = None
    file_limit: int = 0
    folder: Path = ROOT
    environment: Mapping[str, str] = field(default_factory=dict)
    errors: Path | None = None  # where what goes to stderr is written; with what goes to stdout, unless it is named
    picture: bool = False  # of the losses of a run, whose drawing takes as long as a few steps


def sync(file) -> None:
    """In the place of os.fsync, for as long as nobody cuts the power: refuses what is not open, and waits for no disk.

    A run of a few steps syncs some twenty files, and would wait for the disk as long as it computes.
    """
    os.fstat(file if isinstance(file, int) else file.fileno())


def serve() -> None:
    """Have the server of this process started, if it is not; it imports while the tests go on.

    A process has one, which imports what was named last when it started: finllm.study.starting names other modules.
    """
    CONTEXT.set_forkserver_preload([PRELOADED])
    forkserver.ensure_running()


def start(script: str, arguments: list[object], output: Path, moment: Moment | None = None, **how):
    """A process that runs `script`, a path or `-m module`; what it prints goes into `output`. For `how` see `How`."""
    arguments = [str(argument) for argument in arguments]
    process = CONTEXT.Process(target=_run, args=(script, arguments, output, How(moment, **how)))
    with STARTS_AND_JOINS:
        serve()
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


def run_ranks(
    count: int, script: str, arguments: list[object], printed: Path, environment: Mapping = MappingProxyType({}), **how
) -> Done:
    """Run `script` in so many processes that find each other as torchrun's do; returns what all printed.

    The status is that of the first to fail, whereupon the others are killed. Their output is kept in `printed`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                "OMP_NUM_THREADS": 1}  # fmt: skip
    ranks, texts = [], []
    for rank in range(count):
        texts.append((printed / f"rank{rank}.out", printed / f"rank{rank}.err"))
        own = {**environment, **together, "RANK": rank, "LOCAL_RANK": rank}
        ranks.append(
            start(
                script,
                arguments,
                texts[-1][0],
                errors=texts[-1][1],
                environment={name: str(value) for name, value in own.items()},
                **how,
            )
        )
    running, status, end = list(ranks), 0, time.monotonic() + LIMIT
    while running:
        wait([process.sentinel for process in running], max(0, end - time.monotonic()))
        with STARTS_AND_JOINS:
            running = [process for process in running if process.is_alive()]
        status = next((process.exitcode for process in ranks if process.exitcode), 0)
        if status or time.monotonic() > end:
            for process in running:
                process.kill()
            assert status, f"still running after {LIMIT} s: {[path.read_text() for pair in texts for path in pair]}"
    out, err = ("".join(pair[stream].read_text() for pair in texts) for stream in (0, 1))
    return Done(status, out, err)


def wait_for(condition, seconds: float = LIMIT) -> None:
    """Return once `condition()` holds; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)


def _run(script: str, arguments: list[str], output: Path, how: How) -> None:
    assert PRELOADED in sys.modules, "the server was started by another, and each process imports all by itself"
    os.chdir(how.folder)
    os.environ.update(how.environment)
    for number, path in ((1, output), (2, how.errors or output)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    if "OMP_NUM_THREADS" in how.environment:  # torch, which is loaded, reads it no more
        import torch

        torch.set_num_threads(int(how.environment["OMP_NUM_THREADS"]))
    os.fsync = sync
    if not how.picture:
        importlib.import_module("finllm.training.plots").plot_loss = lambda run: None
    if how.moment:
        how.moment.prepare()
    if how.file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (how.file_limit, how.file_limit))
    sys.argv, sys.path = [script, *arguments], [str(ROOT), *sys.path]
    if script.startswith("-m "):
        runpy.run_module(script.removeprefix("-m "), run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(ROOT / script), run_name="__main__")
