"""How a training's process begins: from nothing, or forked from one that has imported what all trainings need.

Importing torch, transformers, peft and trl takes as long as several training steps on a CPU, and a study starts dozens
of processes. With a GPU each is started from nothing: CUDA cannot be used in a fork of a process that has seen it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Protocol

# What recipes/sft.py imports, and what a child imports of the command that started it.
IMPORTED = ("finllm.training.trainer", "finllm.training.config", "finllm.training.plots", "peft", "trl", "optuna")


class Started(Protocol):
    """A process that was started."""

    def poll(self) -> int | None:
        """Its exit status, below 0 the number of a signal; None while it runs."""

    def terminate(self) -> None:
        """Send it a SIGTERM."""


# script, arguments, working directory, the file that its output is appended to, the number of the GPU that it may see
Start = Callable[[Path, Sequence[str], Path, Path, int | None], Started]


def from_nothing(script: Path, arguments: Sequence[str], place: Path, log: Path, device: int | None) -> Started:
    """`python script arguments`, in a session of its own, ended with this thread's process."""
    environment = {**os.environ, **({} if device is None else {"CUDA_VISIBLE_DEVICES": str(device)})}
    with open(log, "a", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, str(script), *arguments], cwd=place, env=environment, stdout=file, stderr=file,
            stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip


# Starting a process asks all earlier ones whether they have ended, and an end can be read once: of two threads that ask
# at the same time, one would take its own process for lost (255).
_ONE_AT_A_TIME = threading.Lock()


class Forking:
    """As `from_nothing`, forked from a server that has imported the modules `imported` and does nothing else.

    All that was forked ends with this process, however it ends, and the server with them.
    """

    def __init__(self, imported: Sequence[str] = IMPORTED):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*imported])

    def __call__(self, script: Path, arguments: Sequence[str], place: Path, log: Path, device: int | None) -> Started:
        if device is not None:
            return from_nothing(script, arguments, place, log, device)
        process = self._context.Process(target=_run, args=(str(script), [*arguments], str(place), str(log)))
        with _ONE_AT_A_TIME:
            process.start()
        return _Forked(process)


class _Forked:
    def __init__(self, process: multiprocessing.process.BaseProcess):
        self._process = process

    def poll(self) -> int | None:
        with _ONE_AT_A_TIME:
            return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()


def _run(script: str, arguments: list[str], place: str, log: str) -> None:
    """In the fork: what `python script arguments` does."""
    os.setsid()
    threading.Thread(target=_end_with_starter, daemon=True).start()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    os.chdir(place)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


def _end_with_starter() -> None:
    """In a fork: a SIGTERM when the process that asked for it ends, however that ends; its parent is the server."""
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _end_with_parent() -> None:
    """In the child: a SIGTERM from the kernel when its parent ends, however that ends (Linux, prctl(2))."""
    if _PRCTL is not None:
        _PRCTL(1, signal.SIGTERM)


_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
