"""The cores that this process may use, and whether others use them too: known before torch is loaded."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cores() -> int:
    """The cores this process may run on, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


LOOKS, APART = 5, 0.002  # how often, and seconds between: who computes all the while is seen at every look


def is_shared() -> bool:
    """Whether others compute now on at least half as many cores as this process has; also where that is not known."""
    return 2 * min(_others_running() for _ in range(LOOKS)) >= cores()


def _others_running() -> float:
    time.sleep(APART)
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) - 1  # this one is among them
    except (OSError, ValueError, IndexError):
        return math.inf


NUMBER = "OMP_NUM_THREADS"  # the variable by which torch, as it is loaded, learns how many threads it may have


@contextmanager
def shared_by(processes: int) -> Iterator[None]:
    """Inside, processes that are started have an equal part of the cores each, so many being at work side by side.

    Otherwise each takes all cores for its own, and its threads wait for those of the others. The user's word stays.
    """
    if processes < 2 or NUMBER in os.environ:
        yield
        return
    os.environ[NUMBER] = str(max(1, cores() // processes))
    try:
        yield
    finally:
        del os.environ[NUMBER]
