"""Checkpoints that are complete or absent.

A checkpoint is written into a folder beside its place, every file of it is synced and hashed, the hashes are written
into checksums.json, and only then does a rename give it its name, `checkpoint-STEP`. Whoever reads it checks the hashes
first. A run that is killed at any moment leaves whole checkpoints and at most one hidden folder, which its successor
removes.

What lies in a checkpoint is transformers' own: safetensors for the weights, and torch files for optimizer, scheduler
and random number generators, which are read with `weights_only=True` and so cannot run code.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file

from finllm.errors import UserError, raise_problems
from finllm.files import read_json, sha256_of_file, sync, write_json
from finllm.terminal import say

CHECKSUMS = "checksums.json"
PREFIX = "checkpoint-"
WRITING = ".writing"  # a checkpoint is made in this folder of the checkpoints'
DAMAGED = "damaged-"


def seal(work: Path, place: Path) -> None:
    """Hash and sync the files of the folder `work`, and give it the name `place`."""
    files = sorted(path for path in work.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    write_json(work / CHECKSUMS, {"sha256": {str(path.relative_to(work)): sha256_of_file(path) for path in files}})
    move_whole(work, place)


def move_whole(work: Path, place: Path) -> None:
    """Rename the folder `work` to `place` once all it holds is on the disk; what was at `place` is removed before."""
    for path in [*work.rglob("*"), work]:
        sync(path)
    if place.exists():
        shutil.rmtree(place)
    os.rename(work, place)
    sync(place.parent)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file of it is as it was written."""
    try:
        hashes = read_json(checkpoint / CHECKSUMS)["sha256"]
    except (UserError, KeyError, UnicodeDecodeError) as error:
        return f"its {CHECKSUMS} cannot be read ({error})"
    for name, expected in hashes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256_of_file(path) != expected:
            return f"{name} is not as it was written (its SHA-256 differs)"
    return None


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, or None where no checkpoint was ever written.

    Damaged ones that are newer are named on stderr. Raises `UserError` where there are only damaged ones.
    """
    found = by_step(folder)
    for checkpoint in reversed(found):
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint
        say(f"{checkpoint} is damaged: {wrong}; trying the one before it", file=sys.stderr)
    if found:
        raise UserError(
            f"none of the {len(found)} checkpoints in {folder} is whole; remove the folder to start the run again"
        )
    return None


def by_step(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the oldest first."""
    steps = ((re.fullmatch(rf"{PREFIX}(\d+)", path.name), path) for path in folder.glob(f"{PREFIX}*"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in steps if match)]


def set_damaged_aside(folder: Path, after: Path | None) -> None:
    """Rename checkpoints newer than `after`, which `newest` has found damaged, so that no count includes them."""
    found = by_step(folder)
    for checkpoint in found[found.index(after) + 1 :] if after else []:
        aside = folder / f"{DAMAGED}{checkpoint.name}"
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)


def rotate(folder: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints until `limit` are left; neither the newest nor the `best`."""
    found = by_step(folder)
    kept = {found[-1].name, Path(best).name if best else None}
    spare = [checkpoint for checkpoint in found if checkpoint.name not in kept]
    for checkpoint in spare[: max(0, len(found) - limit)] if limit else []:
        shutil.rmtree(checkpoint)


def check_weights(folder: Path) -> None:
    """Read saved weights again: there are some, all are numbers, and an adapter's B matrices have left zero.

    An engine that gathers its shards wrongly writes an empty file, or an adapter as it was before training, without a
    word (peft starts B at zero, Hu et al. 2021, section 4.1, so such an adapter changes nothing).
    """
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    learned = [tensor for name, tensor in tensors.items() if "lora_B" in name]
    wrong = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    problems = [f"{name} holds values that are no numbers" for name in wrong]
    if not any(tensor.numel() for tensor in tensors.values()):
        problems.append("there are no weights in it")
    if learned and not any(tensor.any() for tensor in learned):
        problems.append("all lora_B are zero, as before training")
    raise_problems(problems, f"the weights just saved to {folder}; its checkpoints are kept")
