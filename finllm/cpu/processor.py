"""The processor, as the system describes it: what can be known without torch, which takes seconds to import."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path


def cores() -> int:
    """The cores this process may run on, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def name() -> str:
    """The processor's own name, and which of the instructions that decide here it has: `AMD EPYC, AVX2`."""
    described, known = _described(), instructions()
    whole = described.get("model name") or platform.processor() or platform.machine()
    return f"{whole}, {known}" if known else whole


def instructions() -> str | None:
    """The widest of AMX, AVX512-BF16, AVX512 and AVX2 that an x86 processor has; None where that is not known."""
    flags = _described().get("flags", "").split()
    kinds = {"amx_tile": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX512", "avx2": "AVX2"}
    return next((kind for flag, kind in kinds.items() if flag in flags), None)


def multiplies_bf16() -> bool | None:
    """As `finllm.cpu.machine.bf16_is_fast` says of a CPU; None where only torch can tell."""
    known = instructions()
    return None if known is None else known in ("AMX", "AVX512-BF16")


def _described() -> dict[str, str]:
    """What /proc/cpuinfo says of the first core; nothing where there is no such file."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            found[key.strip()] = value.strip()
    return found
