"""The run dir: what one training run leaves on disk.

    runs/NAME/
      plan.json         what `finllm plan` predicted, where it was asked
      config.yaml       everything resolved; runs again as it is
      provenance.json   git commit, package versions, hardware, processes, seeds, and hashes of what it is made from:
                        dataset, base model, tokenizer, template; what these were before, where it went on otherwise
      proofs.json       what was proved of the model before the first step, and of what was saved
      metrics.jsonl     a line a logged step, and a line an evaluation
      validation.jsonl  of the last evaluation each row's nll in nats and supervised tokens, in the order of the split
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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from finllm.bounded import MOST_JSON_BYTES, parse_json, read_text, read_yaml
from finllm.errors import UserError, raise_problems, shortened
from finllm.files import naming, read_json, refuse_links, write_json, write_text

LOCK = ".lock"
TEMPORARY = re.compile(r"\..+\.(yaml|json|jsonl|png|md)\.\w{8}(\.part)?")  # as atomic_open names them
PUT_BACK = "put back the file that training wrote"
NEEDED = {  # of a complete run: what those who open it cannot do without
    "config.yaml": {"dataset_name": str},
    "provenance.json": {"dataset_hash": str},
    "summary.json": {"method": str, "trainable_parameters": int, "total_parameters": int},
}


# Where something lies is not what it is: a run dir may be moved, and its dataset, base model or template be named
# otherwise.
PLACES = {"output_dir", "dataset_name", "model_name_or_path", "template"}
# What provenance.json says of what a run was made from, and what to do where that has changed
CONTENTS = {
    "dataset_hash": "put the old dataset back",
    "base_model_hash": "put the old base model back",
    "tokenizer_hash": "put the old tokenizer back",
    "template_hash": "give the template that it began with, and go on with the version of finllm that began it",
    "processes": "start as many as before",
}


class RunDir:
    """Paths, readers and writers of one run dir. `RunDir(path)` touches nothing."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.model = self.path / "model"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.validation = self.path / "validation.jsonl"
        self.eval = self.path / "eval"
        self._lock: IO | None = None

    def refuse_links(self) -> None:
        """Refuse a folder that comes from others where a name in it leads out of it; before anything is read."""
        if self.path.is_dir():
            refuse_links(self.path)

    def check(
        self,
        config: dict[str, Any],
        resume: bool,
        origin: Mapping[str, Any] | None = None,
        changes: Mapping[str, str] | None = None,
    ) -> None:
        """Refuse a folder that holds another run, or anything else.

        With `resume` the folder may hold the same run: its settings and, where `origin` is given, the contents that
        its provenance names must be the same, wherever they lie now. `changes` maps what may differ all the same to "",
        and what may not to why.
        """
        self.check_place(resume)
        if not (self.path / "config.yaml").exists():
            return
        held, changes = self.config(), changes or {}
        problems = [
            f"{key} was {held.get(key)!r} and is now {config.get(key)!r}{changes.get(key, '')}"
            for key in sorted({*held, *config} - PLACES)
            if held.get(key) != config.get(key) and changes.get(key) != ""
        ]
        recorded = (self.path / "provenance.json").exists()
        if not recorded and origin and any(self.checkpoints.glob("checkpoint-*")):
            problems.append("provenance.json, which says what its checkpoints were trained on, is missing")
        began = self.provenance() if recorded else {}
        for key, fix in CONTENTS.items():
            if origin and key in origin and key in began and began[key] != origin[key] and changes.get(key) != "":
                now = f"{key} was {_short(began[key])} and is now {_short(origin[key])}"
                problems.append(now + (changes.get(key) or f"; {fix}"))
        raise_problems(problems, f"resuming {self.path}; go on with what it began with, or take another --output_dir")

    def check_place(self, resume: bool) -> None:
        """Refuse a folder that holds something else than a run and, without `resume`, one that holds a run."""
        self.refuse_links()
        shared = [path.name for path in (self.path / LOCK, self.metrics) if path.exists() and path.stat().st_nlink > 1]
        if shared:
            raise UserError(
                f"{self.path}: {', '.join(shared)} has another name elsewhere, which would be written to as well; copy "
                "the folder without hard links"
            )
        if (self.path / "config.yaml").exists():
            if not resume:
                raise UserError(
                    f"{self.path} already holds a run; pass --resume auto to go on with it, "
                    "another --output_dir, or remove the folder"
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

    def start(
        self, config: dict[str, Any], origin: dict[str, Any], resume: bool, changes: Mapping[str, str] | None = None
    ) -> None:
        """Claim the folder, if `check` finds nothing against it, and write `config.yaml` and `provenance.json`.

        From here to `finish`, or to the end of this process, no other run gets in. A finished run that goes on is
        unfinished from here on.
        """
        self.check(config, resume, origin, changes)
        self._lock_out_others()
        self._remove_leftovers()
        (self.path / "summary.json").unlink(missing_ok=True)
        write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        write_json(self.path / "provenance.json", origin)

    def write_proofs(self, proofs: Iterable[dict[str, Any]]) -> None:
        """Write `proofs.json`: of each proof its name, figure, limit, whether it holds, and what it says."""
        write_json(self.path / "proofs.json", {"proofs": list(proofs)})

    def proofs(self) -> list[dict[str, Any]]:
        """What `write_proofs` wrote; nothing for a run from before there were proofs."""
        path = self.path / "proofs.json"
        if not path.exists():
            return []
        proofs = read_json(path).get("proofs")
        if not isinstance(proofs, list):
            raise UserError(f"{path}: proofs is {shortened(proofs)}, not a list; {PUT_BACK}")
        return proofs

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl`; the line is one write, so a reader never sees it torn."""
        with naming(self.metrics), open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def metrics_so_far(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, if any, without one at the end that a full disk or a lost machine cut short."""
        text = read_text(self.metrics, MOST_JSON_BYTES) if self.metrics.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [parse_json(line, f"{self.metrics}, line {number}") for number, line in enumerate(lines, 1)]

    def finish(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`, which marks the run as complete, and let go of the folder."""
        write_json(self.path / "summary.json", summary)
        self.let_go()

    def let_go(self) -> None:
        """Let others into this folder."""
        if self._lock is not None:
            self._lock.close()

    @property
    def complete(self) -> bool:
        return (self.path / "summary.json").exists()

    def config(self) -> dict[str, Any]:
        try:
            return read_yaml(self.path / "config.yaml")
        except UserError as error:
            raise UserError(f"{error}; {PUT_BACK}") from None

    def language_model(self) -> str | None:
        """The module of a baseline that opens this run's model, from config.yaml; None for a run of recipes/sft.py."""
        named = self.config().get("language_model")
        if named is not None and (not isinstance(named, str) or not re.fullmatch(r"baselines(\.[a-z_]+)+", named)):
            raise UserError(
                f"{self.path}/config.yaml: language_model is {str(named)[:60]!r}; only modules of baselines are read"
            )
        return named

    def provenance(self) -> dict[str, Any]:
        return read_json(self.path / "provenance.json")

    def summary(self) -> dict[str, Any]:
        return read_json(self.path / "summary.json")

    def require_complete(self) -> RunDir:
        """This run dir, or a `UserError` that says which of its parts are missing."""
        if not self.path.is_dir():
            raise UserError(f"{self.path} is not a folder; a run dir is what recipes/sft.py writes to --output_dir")
        parts = ("config.yaml", "provenance.json", "metrics.jsonl", "summary.json", "model")
        self.refuse_links()
        missing = [part for part in parts if not (self.path / part).exists()]
        if missing:
            raise UserError(
                f"{self.path} is not a complete run dir: {', '.join(missing)} missing; "
                "finish the run with its own command and --resume auto"
            )
        held = {"config.yaml": self.config(), "provenance.json": self.provenance(), "summary.json": self.summary()}
        raise_problems(
            (
                f"{key} in {name} is {str(held[name].get(key))[:60]!r}, not {kind.__name__}"
                for name, keys in NEEDED.items()
                for key, kind in keys.items()
                if type(held[name].get(key)) is not kind
            ),
            f"{self.path}; {PUT_BACK}",
        )
        return self


def _short(content: Any) -> str:
    """A hash by its first 16 digits; a hub id with its commit, or a number, whole."""
    text = str(content)
    return text if "@" in text else text[:16]
