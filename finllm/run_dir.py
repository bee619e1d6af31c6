"""The run dir: what one training run leaves on disk.

    runs/NAME/
      plan.json         what `finllm plan` predicted, where it was asked
      config.yaml       everything resolved; runs again as it is
      provenance.json   git commit, package versions, hardware, hashes of dataset, base model and template, seeds
      metrics.jsonl     a line a logged step, and a line an evaluation
      summary.json      method, parameters, seconds, tokens a second, peak memory, validation losses
      loss.png          training and validation loss
      model/            safetensors: the full weights or the adapter, with the tokenizer and a model card
      checkpoints/      what resuming needs (finllm/training/checkpoints.py)
      .lock             who is training, or was
      eval/             written by eval/run.py

`summary.json` is written last: a run dir without it is incomplete. How files are written, see finllm/files.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import IO, Any

import yaml

from finllm.bounded import MOST_JSON_BYTES, parse_json, read_text, read_yaml, require_regular_files
from finllm.errors import UserError, raise_problems
from finllm.files import read_json, write_json, write_text

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
        require_regular_files(self.path)
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
        text = read_text(self.metrics, MOST_JSON_BYTES) if self.metrics.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [parse_json(line, f"{self.metrics}, line {number}") for number, line in enumerate(lines, 1)]

    def finish(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`, which marks the run as complete, and let go of the folder."""
        write_json(self.path / "summary.json", summary)
        if self._lock is not None:
            self._lock.close()

    @property
    def complete(self) -> bool:
        return (self.path / "summary.json").exists()

    def config(self) -> dict[str, Any]:
        return read_yaml(self.path / "config.yaml")

    def provenance(self) -> dict[str, Any]:
        return read_json(self.path / "provenance.json")

    def summary(self) -> dict[str, Any]:
        return read_json(self.path / "summary.json")

    def require_complete(self) -> RunDir:
        """This run dir, or a `UserError` that says which of its parts are missing."""
        if not self.path.is_dir():
            raise UserError(f"{self.path} is not a folder; a run dir is what recipes/sft.py writes to --output_dir")
        require_regular_files(self.path)
        parts = ("config.yaml", "provenance.json", "metrics.jsonl", "summary.json", "model")
        missing = [part for part in parts if not (self.path / part).exists()]
        if missing:
            raise UserError(
                f"{self.path} is not a complete run dir: {', '.join(missing)} missing; "
                "finish the run with its own command and --resume auto"
            )
        return self
