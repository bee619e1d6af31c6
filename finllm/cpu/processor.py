"""The processor, as the system describes it: what can be known without torch, which takes seconds to import."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path


def name() -> str:
    """The processor's own name, and which of the instructions that decide here it has: `AMD EPYC, AVX2`."""
    described, known = _described(), instructions()
    whole = described.get("model name") or platform.processor() or platform.machine()
    return f"{whole}, {known}" if known else whole


KINDS = {"amx_tile": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX512", "avx2": "AVX2"}  # by flag, widest first
# What oneDNN, which makes the products, may be kept from using by ONEDNN_MAX_CPU_ISA, whose values begin so
UP_TO = {"AVX512_CORE_AMX": "AMX", "AVX512_CORE_BF16": "AVX512-BF16", "AVX512_CORE_FP16": "AVX512-BF16",
         "AVX512": "AVX512", "AVX2": "AVX2", "AVX": None, "SSE41": None}  # fmt: skip


def instructions() -> str | None:
    """The widest of AMX, AVX512-BF16, AVX512 and AVX2 that an x86 processor has and oneDNN may use, or None."""
    flags, kinds = _described().get("flags", "").split(), [*KINDS.values(), None]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    widest = next((kind for begins, kind in UP_TO.items() if limit.startswith(begins)), kinds[0])
    has = next((kind for flag, kind in KINDS.items() if flag in flags), None)
    return max(has, widest, key=kinds.index)


def multiplies_bf16() -> bool | None:
    """Whether this CPU multiplies bfloat16 faster than float32; None where only torch can tell."""
    known = instructions() in ("AMX", "AVX512-BF16")
    return known if "flags" in _described() else None


def _described() -> dict[str, str]:
    """What /proc/cpuinfo says of the first core; nothing where there is no such file."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            found[key.strip()] = value.strip()
    return found
