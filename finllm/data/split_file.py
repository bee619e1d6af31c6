"""The file of a split as it is written, and the fields that all of its rows have, or none."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from finllm.data.clean import pieces_of
from finllm.data.leftovers import ENCODE
from finllm.data.number_columns import NUMBER_FIELDS
from finllm.files import atomic_open

# Fields that are in all rows of a dataset or in none, by the one that tells them, each with what stands for nothing
FURTHER = {"history": {"system": "", "history": []}, "value": dict.fromkeys(NUMBER_FIELDS, "")}


class SplitFile:
    """A split as it is written: the file, its hash, and its questions by their ids."""

    def __init__(self, file: IO[str]):
        self.file, self.rows, self.digest = file, 0, hashlib.sha256()
        self.questions: set[int] = set()

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[SplitFile]:
        with atomic_open(path, "w+") as file:
            yield cls(file)

    def add(self, row: dict[str, Any]) -> None:
        self._write(row)
        self.rows += 1
        self.questions.add(int(row["question_id"], 16))

    def add_fields(self, empty: dict[str, Any]) -> None:
        """Give the rows written so far further fields, empty where they have none."""
        with tempfile.TemporaryFile("w+", encoding="utf-8") as copy:
            self.file.seek(0)
            copy.writelines(self.file)
            copy.seek(0)
            self.file.seek(0)
            self.file.truncate()
            self.digest = hashlib.sha256()
            for line in copy:
                self._write(with_further(json.loads(line), empty))

    def _write(self, row: dict[str, Any]) -> None:
        for piece in itertools.chain(pieces_of(ENCODE(row)), "\n"):
            self.file.write(piece)
            self.digest.update(piece.encode())

    def described(self) -> dict[str, Any]:
        return {"rows": self.rows, "questions": len(self.questions), "sha256": self.digest.hexdigest()}


def with_further(row: dict[str, Any], empty: dict[str, Any]) -> dict[str, Any]:
    """A row with all of these fields at its end, in one order, empty where it has none."""
    own = {key: value for key, value in row.items() if key not in empty}
    return own | {key: row.get(key, value) for key, value in empty.items()}
