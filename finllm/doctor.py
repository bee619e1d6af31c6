"""`finllm doctor`: what this machine can do, and for each gap the command that closes it.

Exit status 0 when all that training here needs is there, 1 when something required is missing or out of range. What is
optional (extras, a GPU, the hub) is told and never fails: a run reads its model and its rows from disk as well.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import runpy
import shutil
import sys
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from finllm.cpu import processor
from finllm.errors import UserError
from finllm.files import SCHEMA_VERSION, cache_dir
from finllm.terminal import say
from finllm.threads import cores

GIB = 2**30
HUB_SECONDS = 3.0
LEAST_DISK = 2 * GIB  # a small model, a checkpoint of it and its optimizer


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `verdict` is fine, missing, too old, too new, too little or unreachable."""

    what: str
    found: str
    verdict: str = "fine"
    required: bool = True
    fix: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `finllm doctor`."""
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def run(arguments: argparse.Namespace) -> None:
    """Look, print, and end with status 1 when something required is not fine."""
    findings = examine()
    ready = all(finding.verdict == "fine" for finding in findings if finding.required)
    if arguments.json:
        content = {"schema_version": SCHEMA_VERSION, "ready": ready, "findings": [asdict(each) for each in findings]}
        say(json.dumps(content, indent=2))
    else:
        _print(findings, ready)
    sys.exit(0 if ready else 1)


def examine() -> list[Finding]:
    """Everything that `finllm doctor` looks at, in the order of its table."""
    try:
        metadata = importlib.metadata.metadata("finllm")
        requirements = importlib.metadata.requires("finllm") or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError("finllm is not installed, so its requirements are unknown; pip install -e .") from None
    python = Requirement(f"python{metadata['Requires-Python']}")
    return [
        judge(python, platform.python_version(), fix=f"install Python {python.specifier}, and finllm into it"),
        *packages(requirements, metadata.get_all("Provides-Extra", [])),
        *_machine(),
        *_disks({"cache": cache_dir(), "hub cache": _hub_cache(), "working folder": Path.cwd()}),
        _hub(),
    ]


def packages(requirements: list[str], extras: list[str]) -> list[Finding]:
    """Each requirement (PEP 508) against what is installed; those of an extra are optional."""
    findings = []
    for requirement in map(Requirement, requirements):
        extra = next((name for name in extras if _of(requirement, name) and not _of(requirement, "")), "")
        if requirement.name == "finllm" or not (extra or _of(requirement, "")):
            continue  # an extra that names another, or a requirement of another platform
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        findings.append(judge(requirement, version, extra))
    return findings


def _of(requirement: Requirement, extra: str) -> bool:
    if requirement.marker is None:
        return not extra
    return requirement.marker.evaluate({"extra": extra})


def judge(requirement: Requirement, version: str | None, extra: str = "", fix: str | None = None) -> Finding:
    """A version, or None for none, against its supported range."""
    what = f"{requirement.name} {requirement.specifier}" + (f" (extra {extra})" if extra else "")
    fix = fix or f"{sys.executable} -m pip install '{requirement.name}{requirement.specifier}'"
    if version is None:
        return Finding(what, "not installed", "missing", not extra, fix)
    if requirement.specifier.contains(version, prereleases=True):
        return Finding(what, version, required=not extra)
    lowest = [Version(part.version) for part in requirement.specifier if part.operator in (">=", ">", "==", "~=")]
    verdict = "too old" if lowest and Version(version) < max(lowest) else "too new"
    return Finding(what, version, verdict, not extra, fix)


def _machine() -> list[Finding]:
    """Cores, memory, arithmetic and GPUs. torch and psutil may be missing, which `packages` has told already."""
    findings = []
    try:
        import psutil
    except ImportError:
        findings.append(Finding("memory", "not known without psutil", required=False))
    else:
        memory = psutil.virtual_memory()
        findings.append(Finding("memory", f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} GiB free"))
    findings.insert(0, Finding("cores", str(cores())))
    try:
        bf16_is_fast, gpus = _arithmetic()
    except (ImportError, OSError) as error:  # OSError: a library of CUDA that cannot be loaded
        fix = f"{sys.executable} -m pip install --force-reinstall torch"
        return [*findings, Finding("import torch", " ".join(str(error).split())[:200], "missing", fix=fix)]
    findings.append(Finding("bfloat16", "fast" if bf16_is_fast else "slow: the recipe stays with float32"))
    return [*findings, *(gpus or [Finding("GPU", "none; training uses the CPU", required=False)])]


def _arithmetic() -> tuple[bool, list[Finding]]:
    """Whether bfloat16 is fast, and the GPUs. Of a torch that knows none only the libraries are loaded, not torch."""
    found, fast = importlib.util.find_spec("torch"), processor.multiplies_bf16()
    if found is None or not found.submodule_search_locations:
        raise ImportError("torch is not installed")
    folder = Path(found.submodule_search_locations[0])
    version, library = folder / "version.py", folder / "lib" / "libtorch_python.so"
    if fast is not None and library.exists() and not {"cuda", "hip", "xpu"} & _built_for(version):
        ctypes.CDLL(str(library))
        return fast, []
    import torch

    from finllm.cpu.machine import bf16_is_fast

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        gpus.append(Finding(f"GPU {index}", f"{device.name}, {device.total_memory / GIB:.1f} GiB", required=False))
    return bf16_is_fast(), gpus


def _built_for(version: Path) -> set[str]:
    """Which devices torch/version.py gives a version of: the names among cuda, hip, xpu that are not None."""
    values = runpy.run_path(str(version))
    return {name for name in ("cuda", "hip", "xpu") if values.get(name) is not None}


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", Path(home) / "hub"))


def _disks(folders: dict[str, Path]) -> list[Finding]:
    """Free bytes where each folder lies or will lie."""
    variables = {"cache": "export FINLLM_CACHE=", "hub cache": "export HF_HUB_CACHE=", "working folder": "cd "}
    findings = []
    for name, folder in folders.items():
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        found = f"{free / GIB:.1f} GiB free at {folder}"
        short = free < LEAST_DISK
        fix = f"{variables[name]}/a/larger/disk  # at least {LEAST_DISK // GIB} GiB" if short else None
        findings.append(Finding(f"disk of {name}", found, "too little" if short else "fine", True, fix))
    return findings


def _hub() -> Finding:
    """Whether the hub answers. Any answer counts; HF_HUB_OFFLINE says not to ask."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding("hub", "not asked: HF_HUB_OFFLINE is set, and files on disk will do", required=False)
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError as error:
        reason = f"offline, and files on disk will do: {endpoint} ({error})"
        return Finding("hub", reason, "unreachable", False, "export HF_HUB_OFFLINE=1")
    return Finding("hub", f"{endpoint} answers", required=False)


def _print(findings: list[Finding], ready: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from finllm.terminal import Terminal

    table = Table("what", "found", "verdict")
    for each in findings:
        colour = "green" if each.verdict == "fine" else "red" if each.required else "yellow"
        optional = "" if each.required or each.verdict == "fine" else " (optional)"
        table.add_row(each.what, each.found, Text(f"{each.verdict}{optional}", colour))
    console = Terminal()
    console.print(table)
    for each in findings:  # below the table and unwrapped, so that they can be copied
        if each.fix:
            console.print(f"{each.what}: {each.fix}", soft_wrap=True)
    said = "All that training needs is here." if ready else "Something required is missing or out of range."
    console.print(said)
