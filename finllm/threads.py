"""The cores that this process may use, and whether others use them too: known before torch is loaded."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """The cores this process may run on, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def is_shared() -> bool:
    """Whether others compute now on at least half as many cores as this process has; also where that is not known."""
    try:
        running = int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])  # this one among them
    except (OSError, ValueError, IndexError):
        return True
    return 2 * (running - 1) >= cores()
