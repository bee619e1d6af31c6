"""Where a run comes from: the code, the packages and the machine. This module imports nothing else of the project."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "sentencepiece")


def provenance(gpu: str | None = None, **hashes_and_seeds: Any) -> dict[str, Any]:
    """Where a run comes from: git commit, Python and package versions, hardware, and what the caller adds.

    `gpu` is the name of the one that computed; None where the processor did.
    """
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": package_versions(),
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            **({"gpu": gpu} if gpu else {}),
        },
        **hashes_and_seeds,
    }


def computed_on(held: Mapping[str, Any]) -> str:
    """What computed, as a provenance tells: the GPU, or the processor and how many cores it has; else nothing."""
    hardware = held.get("hardware") or {}
    processor, cores = hardware.get("processor"), hardware.get("cores")
    return hardware.get("gpu") or (f"{processor}, {cores} cores" if processor and cores else processor or "")


def package_versions() -> dict[str, str]:
    """The installed version of each of `PACKAGES` that is installed."""
    versions = {package: _version(package) for package in PACKAGES}
    return {package: version for package, version in versions.items() if version is not None}


@functools.cache  # the whole of a package's description is parsed for its version
def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _git(*arguments: str) -> str | None:
    """What git says of the checkout that this file lies in; None where there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    """The processor's name as Linux gives it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
