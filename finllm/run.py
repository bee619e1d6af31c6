"""The run dir: what one training run leaves on disk, and how anything here is written to disk at all.

    runs/NAME/
      plan.json         what `finllm plan` predicted, where it was asked
      config.yaml       everything resolved; runs again as it is
      provenance.json   git commit, package versions, hardware, hashes of dataset, base model and template, seeds
      metrics.jsonl     a line a logged step, and a line an evaluation
      summary.json      method, parameters, seconds, tokens a second, peak memory, validation losses
      loss.png          training and validation loss
      model/            safetensors: the full weights or the adapter, with the tokenizer and a model card
      checkpoints/      what resuming needs (finllm/checkpoints.py)
      .lock             who is training, or was
      eval/             written by eval/run.py

`summary.json` is written last: a run dir without it is incomplete. Every JSON carries a `schema_version`, and a reader
refuses one it does not know. Every file is written beside its place, synced and renamed, so a reader sees the old file
or the new one and never half of one. This module imports nothing else of the project.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import yaml

SCHEMA_VERSION = 1


class UserError(ValueError):
    """A mistake that the user can mend. The message says value, place, limit and fix; commands exit with status 2."""


def raise_problems(problems: Iterable[str], where: str) -> None:
    """Raise one `UserError` that names every problem, or return when there is none."""
    problems = list(problems)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {where}: "
        raise UserError(count + "; ".join(problems))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'lora_r'?)` when a known word is close to this one, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`: a `UserError` is printed to stderr, not traced, and ends the process with status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK:
            raise
        print(
            f"error: {error.filename or 'a file'} cannot be written: {error.strerror}; nothing is left half-written; "
            f"{DISK[error.errno]}, then give the same command again, with --resume auto where it is a training run",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


DISK = {  # what the disk may answer, and what helps
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space or have the quota raised",
    errno.EFBIG: "have the limit on a file's size raised (ulimit -f)",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
}


# Files ---------------------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """Where converted base models and prepared datasets are kept: `$FINLLM_CACHE`, else `~/.cache/finllm`."""
    return Path(os.environ.get("FINLLM_CACHE", Path.home() / ".cache" / "finllm"))


@contextlib.contextmanager
def atomic_open(path: Path | str, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside `path`; on leaving without an error it is synced and takes the place of `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if "b" in mode else "utf-8"
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, mode, encoding=encoding, newline=None if "b" in mode else "\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_open(path) as file:
        file.write(text)


def write_json(path: Path | str, content: dict[str, Any]) -> None:
    """Write `content` with its `schema_version` first, indented; NaN and infinity are refused."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON object of this project; refuses a missing file, broken JSON and an unknown `schema_version`."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema_version {version!r}, this version of finllm reads {SCHEMA_VERSION}; "
            "use the version that wrote it, or make it anew"
        )
    return content


def write_jsonl(path: Path | str, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    with atomic_open(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """Read the JSON objects of a file that this project wrote; a broken line is named."""
    rows: list[dict[str, Any]] = []
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                rows.append(json.loads(line))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {len(rows) + 1}: not JSON ({error.msg})") from None
    return rows


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and bytes of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        digest.update(path.name.encode() + b"\0")
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


# Provenance ----------------------------------------------------------------------------------------------------------

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "sentencepiece")


def provenance(**hashes_and_seeds: Any) -> dict[str, Any]:
    """Where a run comes from: git commit, Python and package versions, hardware, and what the caller adds."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": versions,
        "hardware": {"machine": platform.machine(), "processor": _processor(), "cores": os.cpu_count()},
        **hashes_and_seeds,
    }


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


# The run dir ---------------------------------------------------------------------------------------------------------


LOCK = ".lock"
TEMPORARY = re.compile(r"\..+\.(yaml|json|jsonl|png|md)\.\w{8}")  # as atomic_open names them


class RunDir:
    """Paths, readers and writers of one run dir. `RunDir(path)` touches nothing."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.model = self.path / "model"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.eval = self.path / "eval"
        self._lock: IO | None = None

    def check(self, config: dict[str, Any], resume: bool) -> None:
        """Refuse a folder that holds another run, or anything else.

        With `resume` the folder may hold the same run, unfinished: its config must be the same.
        """
        if (self.path / "config.yaml").exists():
            if not resume:
                raise UserError(
                    f"{self.path} already holds a run; pass --resume auto to go on with it, "
                    "another --output_dir, or remove the folder"
                )
            held = self.config()
            changed = sorted(key for key in {*held, *config} if held.get(key) != config.get(key))
            raise_problems(
                (f"{key} was {held.get(key)!r} and is now {config.get(key)!r}" for key in changed),
                f"resuming {self.path}, whose config.yaml differs; resume with the same config or take another folder",
            )
        elif self.path.is_file() or any(
            item.is_file() and item.name not in ("plan.json", LOCK) and not TEMPORARY.fullmatch(item.name)
            for item in self.path.rglob("*")
        ):
            raise UserError(f"{self.path} is not empty and holds no run; take another --output_dir")

    def _lock_out_others(self) -> None:
        """Keep other runs out of this folder for as long as this process lives; refuse where one is in it.

        The kernel drops the lock with the process that holds it, however that ends, so none is ever stale: the file
        that stays behind only says who held it last.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115  open until the process ends
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "a process that has just begun"
            raise UserError(
                f"{self.path} is in use by another run ({holder}); wait for it or stop it, or take another --output_dir"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def _remove_leftovers(self) -> None:
        """Remove what a killed run was writing and never gave a name. Only for who holds the lock."""
        for folder in (self.path, self.checkpoints):
            for item in folder.glob(".*"):
                if item.is_dir() and item.name in (".model", ".writing"):
                    shutil.rmtree(item)
                elif TEMPORARY.fullmatch(item.name):
                    item.unlink()

    def start(self, config: dict[str, Any], origin: dict[str, Any], resume: bool) -> None:
        """Claim the folder, if `check` finds nothing against it, and write `config.yaml` and `provenance.json`.

        From here to `finish`, or to the end of this process, no other run gets in.
        """
        self.check(config, resume)
        self._lock_out_others()
        self._remove_leftovers()
        write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        write_json(self.path / "provenance.json", origin)

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl`; the line is one write, so a reader never sees it torn."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def metrics_so_far(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, if any, without one at the end that a full disk or a lost machine cut short."""
        text = self.metrics.read_text(encoding="utf-8") if self.metrics.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def finish(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`, which marks the run as complete, and let go of the folder."""
        write_json(self.path / "summary.json", summary)
        if self._lock is not None:
            self._lock.close()

    @property
    def complete(self) -> bool:
        return (self.path / "summary.json").exists()

    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))

    def provenance(self) -> dict[str, Any]:
        return read_json(self.path / "provenance.json")

    def summary(self) -> dict[str, Any]:
        return read_json(self.path / "summary.json")

    def require_complete(self) -> RunDir:
        """This run dir, or a `UserError` that says which of its parts are missing."""
        if not self.path.is_dir():
            raise UserError(f"{self.path} is not a folder; a run dir is what recipes/sft.py writes to --output_dir")
        parts = ("config.yaml", "provenance.json", "metrics.jsonl", "summary.json", "model")
        missing = [part for part in parts if not (self.path / part).exists()]
        if missing:
            raise UserError(
                f"{self.path} is not a complete run dir: {', '.join(missing)} missing; "
                "finish the run with its own command and --resume auto"
            )
        return self
