"""The parts of a source: what rows are read from one after the other, and what their names say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from finllm.errors import UserError

FORMATS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
           ".arrow": "arrow"}  # fmt: skip
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
SUFFIXES = (*FORMATS, ".zip")
MAX_UNZIPPED_BYTES = 2 << 30  # a zip's own directory says how much it unpacks to, and no more is ever unpacked
WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Part(NamedTuple):
    """What rows are read from one after the other."""

    path: Path  # the file or folder on the disk; for the hub nothing
    name: str  # what rows and messages call it: its path inside the source
    format: str  # lines, array, objects, object (all JSON), csv, parquet, arrow, saved (datasets.save_to_disk), hub
    split: str = ""  # the source's own split, or "" where it has none
    compression: str = ""
    member: str = ""  # in a zip
    key: str = ""  # of the list in a JSON object, of the split in a saved or hub dataset

    @property
    def place(self) -> str:
        """What messages say of it: the file on the disk, and where in it."""
        return "/".join(filter(None, (str(self.path), self.member))) if self.format != "hub" else self.name


def kind_of_name(name: str) -> tuple[str, str] | None:
    """Format and compression that a file's name says, or None where its rows cannot be read."""
    path = Path(name.lower())
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    format = FORMATS.get(Path(path.stem).suffix if compression else path.suffix)
    if format is None or (compression and format not in ("json", "csv")):
        return None
    return format, compression


def is_lines(name: str) -> bool:
    """Whether a file's name says that it has one JSON object a line."""
    path = Path(name.lower())
    return (Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix) in (".jsonl", ".ndjson")


def split_of_name(name: str, where: str) -> str:
    """The split that a file, folder, list or hub split is named after, or "". Words end at what is no letter."""
    found = {WORDS[word] for word in re.findall("[a-z]+", name.lower()) if word in WORDS}
    if len(found) > 1:
        raise UserError(
            f"{where}: '{name}' names {' and '.join(sorted(found))}; rename it after one split, or after none"
        )
    return found.pop() if found else ""


class _Twice:
    """What stands in the place of a value whose column's or key's name is that of another one."""

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return "two values of one name"


TWICE = _Twice()


class RawRow(NamedTuple):
    """One row as it was read. `number` counts from 1, in `unit`s: lines of JSON Lines and CSV files, rows elsewhere."""

    fields: dict[str, Any]
    file: str  # the file's name inside the source
    number: int
    unit: str = "line"

    @property
    def place(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"


class BadRow(NamedTuple):
    """A row that could not be read, and why; after one that is `last` nothing more of its part can be read."""

    reason: str
    content: Any  # as much of it as could be read
    file: str
    number: int
    unit: str = "line"
    last: bool = False

    @property
    def place(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"
