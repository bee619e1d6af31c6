"""The dataset dir: what `finllm prepare` leaves on disk and all later stages read.

DATASET_DIR/
  manifest.json      source and its hash, files and columns read and left out, what each step did, a hash a split
  train.jsonl        {"id", "question_id", "instruction", "input", "output"} a line, and where any row of the three
                     splits has a system text or earlier turns, in every line also "system" (text, or "") and "history"
                     ([{"role", "content"}], user and assistant by turns, or []); where any row asks for a number, in
                     every line "value", "unit" and "tolerance" (text, or "")
  validation.jsonl
  test.jsonl
  rejected.jsonl     {"row", "file", "line", "reason"} a line: rows that were left out, as they were read
  changed.jsonl      {"file", "line", "step", "field", "before", "after"} a line: what cleaning changed in the others
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finllm.data.split import SPLITS
from finllm.errors import UserError, did_you_mean, raise_problems
from finllm.files import atomic_open, cache_dir, read_json, sha256_of_file, sweep

if TYPE_CHECKING:
    import datasets

ROW_FIELDS = ("id", "question_id", "instruction", "input", "output")
CONVERSATION_FIELDS = ("system", "history")  # in all rows of a dataset, or in none
FILES = ("manifest.json", *(f"{split}.jsonl" for split in SPLITS), "rejected.jsonl", "changed.jsonl")
LATER = ("changed.jsonl",)  # what dataset dirs of an earlier version lack
MANIFEST_KEYS = ("source", "template", "columns", "cleaning", "split", "splits", "rejected", "sha256")


def is_dataset_dir(path: Path | str) -> bool:
    """Whether a folder says that it is a dataset dir; `DatasetDir(path)` finds out whether it is a sound one."""
    return os.path.isfile(Path(path) / "manifest.json")  # False for a name that no file can have


def dataset_hash(split_hashes: Mapping[str, str]) -> str:
    """The dataset's SHA-256, over the names and hashes of the three splits."""
    return hashlib.sha256("".join(f"{split}:{split_hashes[split]}\n" for split in SPLITS).encode()).hexdigest()


class DatasetDir:
    """A dataset dir, opened: the manifest is read and held against the splits, which are checked anew when read.

    `hash` identifies the data and is computed from the splits that are there, never taken from the manifest. Raises
    `UserError` for a folder that is none, one that lacks a file, and splits that are not those of the manifest.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not is_dataset_dir(self.path):
            raise UserError(
                f"{self.path} is not a dataset dir: it has no manifest.json; "
                "make one with finllm prepare SOURCE --output_dir DATASET_DIR"
            )
        self.manifest: dict[str, Any] = read_json(self.path / "manifest.json")
        problems = [f"manifest.json has no '{key}'" for key in MANIFEST_KEYS if key not in self.manifest]
        problems += [f"{name} is missing" for name in FILES if name not in LATER and not (self.path / name).is_file()]
        raise_problems(problems, f"{self.path}, which is not a whole dataset dir; prepare it anew")
        found = {name: sha256_of_file(self.path / f"{name}.jsonl") for name in SPLITS}
        changed = [problem for name in SPLITS if (problem := self._changed(name, found[name]))]
        if changed:
            raise UserError(f"{'; '.join(changed)}; prepare the dataset anew")
        self.hash = dataset_hash(found)
        if self.manifest["sha256"] != self.hash:
            raise UserError(
                f"{self.path}/manifest.json names the dataset {_short(self.manifest['sha256'])} and its splits are "
                f"those of {_short(self.hash)} (SHA-256 over the three splits); prepare the dataset anew"
            )

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a split, in the order of the source."""
        return list(self.each_row(name))

    def each_row(self, name: str) -> Iterator[dict[str, Any]]:
        """The rows of a split one after the other; the split is checked before the first."""
        self._check(name)
        with open(self.path / f"{name}.jsonl", encoding="utf-8") as file:
            yield from map(json.loads, file)

    def split(self, name: str) -> datasets.Dataset:
        """The rows of a split as a `datasets.Dataset`, all columns text but `history`, where there is one.

        It is memory-mapped from an Arrow file in the cache, named by the split's hash and made by whoever is first, so
        the processes of a machine share its pages and none holds the rows.
        """
        import datasets
        from datasets.arrow_writer import ArrowWriter

        self._check(name)
        place = cache_dir() / "arrow" / f"{self.manifest['splits'][name]['sha256']}.arrow"
        sweep(place)
        if not place.exists():
            rows = self.each_row(name)
            first = next(rows, {})
            text = datasets.Value("string")
            features = datasets.Features(dict.fromkeys(first or ROW_FIELDS, text))
            if "history" in first:
                features["history"] = datasets.List({"role": text, "content": text})
            with atomic_open(place, "wb") as file, ArrowWriter(stream=file, features=features) as writer:
                for row in itertools.chain([first] if first else [], rows):
                    writer.write(row)
                writer.finalize(close_stream=False)
        return datasets.Dataset.from_file(str(place))

    def require_rows(self, name: str) -> None:
        """Refuse a split that is not there, is not what was prepared, or has no row."""
        self._check(name)
        if not (self.path / f"{name}.jsonl").stat().st_size:
            raise UserError(f"the {name} split of {self.path} is empty; prepare the dataset with more rows")

    def check(self) -> None:
        """Refuse splits that are not what was prepared."""
        for name in SPLITS:
            self._check(name)

    def _check(self, name: str) -> None:
        if name not in SPLITS:
            raise UserError(f"no split '{name}'{did_you_mean(name, SPLITS)}; a dataset dir has {', '.join(SPLITS)}")
        if problem := self._changed(name, sha256_of_file(self.path / f"{name}.jsonl")):
            raise UserError(f"{problem}; prepare the dataset anew")

    def _changed(self, name: str, found: str) -> str | None:
        """What is wrong with a split whose file has the SHA-256 `found`, or None."""
        described = self.manifest["splits"]
        split = described.get(name) if isinstance(described, dict) else None
        named = split.get("sha256") if isinstance(split, dict) else None
        if found == named:
            return None
        return (
            f"{self.path / name}.jsonl was changed after it was prepared (its SHA-256 is {_short(found)}, the manifest "
            f"has {_short(named)})"
        )


def _short(sha256: object) -> str:
    return f"{str(sha256)[:16]}…"
