"""Work that processes share, and that survives a kill: what was scored and answered is kept until the results stand.

    RUN/eval/.partial/KEY/0.jsonl     a line a batch of process 0: {"stage": "score", "indices": […], "found": […], …}

KEY is the hash of all that an evaluation's figures depend on: model, texts, settings, code. What was kept under another
key belongs to another evaluation and is removed unread. A line is one write; one that a kill cut short is no JSON and
is computed again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from eval.models.language_model import Generation, Score
from finllm.errors import UserError
from finllm.files import write_text
from finllm.terminal import progress, say

FOLDER = ".partial"
STAGES = {"score": Score, "answer": Generation}
SOURCES = ("finllm", "eval", "baselines")  # a changed line of them may change a figure


def processes() -> PartialState:
    """The processes that share an evaluation, one a GPU or, where there is none, by gloo on CPUs.

    Without `cpu` accelerate starts no group on a machine without an accelerator: each process is "0 of 1", does all of
    the work and writes over the files of the others.
    """
    return PartialState(cpu=not torch.cuda.is_available())


@cache
def hash_of_sources() -> str:
    """SHA-256 of this checkout's own code."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for part in SOURCES:
        for path in sorted((root / part).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class Kept:
    """What processes have computed of one evaluation. All of them open it, and each adds what it has done."""

    def __init__(self, evaluation: Path, **depends_on: Any):
        """`evaluation` is the run's eval/; `depends_on`, as JSON, is what the figures depend on besides the code."""
        process = processes()
        found: list[Any] = [None]
        if process.is_main_process:
            content = json.dumps({**depends_on, "code": hash_of_sources()}, sort_keys=True)
            key = hashlib.sha256(content.encode()).hexdigest()[:16]
            found = [(key, _gathered(evaluation / FOLDER, key))]
        key, lines = broadcast_object_list(found)[0]
        self.folder = evaluation / FOLDER / key
        self.file = self.folder / f"{process.process_index}.jsonl"
        self.lines: dict[str, list[dict[str, Any]]] = {stage: [] for stage in STAGES}
        for line in lines:
            self.lines[line["stage"]].append(line)

    def add(self, **line: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(line, default=dataclasses.astuple)
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def remove(self) -> None:
        if self.folder.parent.exists():
            shutil.rmtree(self.folder.parent)


def _gathered(folder: Path, key: str) -> list[dict[str, Any]]:
    """The whole lines of an evaluation, moved into one file of their own; what lies beside them is removed."""
    own = folder / key
    for other in folder.iterdir() if folder.is_dir() else ():
        if other != own:
            shutil.rmtree(other)
    lines = [line for file in sorted(own.glob("*.jsonl")) for line in _whole_lines(file)]
    if lines:
        write_text(own / "before.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for file in own.glob("*"):
        if file.name != "before.jsonl":
            file.unlink()
    return lines


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # a kill or a full disk cut it short: its batch is computed again
            continue


def work_shared(
    title: str, stage: str, order: list[int], batch_size: int, work: Callable[[list[int]], list[Any]], kept: Kept
) -> tuple[dict[int, Any], float]:
    """What `work` makes of each index of `order`, a batch at a time, with a bar; every process gets all of it.

    Batches are cut before they are dealt out, so any number of processes computes the same ones, and those that are
    kept from before a kill are left out whole. Beside it the seconds that all of it took, those before a kill included.
    """
    process, start = processes(), time.perf_counter()
    batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
    known = {tuple(line["indices"]): line for line in kept.lines[stage]}
    held = [known[tuple(batch)] for batch in batches if tuple(batch) in known]
    done = [
        (index, STAGES[stage](*values))
        for line in held
        for index, values in zip(line["indices"], line["found"], strict=True)
    ]
    if held and process.is_main_process:
        say(f"{title}: {len(done):,} of {len(order):,} were done before this evaluation was stopped")
    new = []
    with progress(disable=not process.is_main_process) as bar:
        mine = [batch for batch in batches if tuple(batch) not in known]
        for batch in bar.track(mine[process.process_index :: process.num_processes], description=title):
            begun = time.perf_counter()
            found = work(batch)
            if len(found) != len(batch):
                raise UserError(f"{title}: the model gave {len(found)} results for {len(batch)} examples")
            share = (time.perf_counter() - begun) / process.num_processes
            kept.add(stage=stage, indices=batch, found=found, seconds=share)
            new += zip(batch, found, strict=True)
    results = dict(sorted([*done, *gather_object(new)]))
    return results, time.perf_counter() - start + sum(line["seconds"] for line in held)
