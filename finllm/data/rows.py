"""Raw rows from a SOURCE: a file, a folder of files, a hub id, or the built-in `sample`.

    FILE        .json (an array, or an object with one list of rows), .jsonl, .csv, .parquet, or a .zip of such files
    FOLDER      its files of those formats, in the order of their names; subfolders and other files are left alone
    sample      the dataset that comes with this package (a folder of that name is ./sample)
    OWNER/NAME  a dataset of the Hugging Face hub, all its splits one after the other

JSONL, CSV and Parquet files are read row by row and may be larger than the memory; a .json array is read whole.
A path that exists wins over a hub id. Text is UTF-8, with or without a byte order mark. Every row keeps the file and
the line (JSONL, CSV) or row (JSON, Parquet, hub) that it came from.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from finllm.errors import UserError, did_you_mean
from finllm.files import sha256_of_files

FORMATS = (".json", ".jsonl", ".csv", ".parquet")
SUFFIXES = (*FORMATS, ".zip")
SAMPLE = "sample"
ENCRYPTED = 1  # bit of a zip member's flags (APPNOTE 6.3.10, section 4.4.4)
MAX_UNZIPPED_BYTES = 2 << 30  # a zip's own directory says how much it unpacks to, and no more is ever unpacked
MIN_TRACKED = 5_000  # rows; fewer are done before a progress bar could be read

Item = TypeVar("Item")


class RawRow(NamedTuple):
    """One row as it was read. `number` counts from 1: lines in JSONL and CSV files, rows elsewhere."""

    fields: dict[str, Any]
    file: str  # the file's name inside the source
    number: int

    @property
    def place(self) -> str:
        return f"{self.file}, {'line' if self.file.lower().endswith(('.jsonl', '.csv')) else 'row'} {self.number}"


class Source(NamedTuple):
    """What a user named: `files` to read, or none for the hub dataset `name`."""

    name: str
    files: tuple[Path, ...]


def find_source(name: Path | str) -> Source:
    """Find out what a SOURCE is. Reads nothing; a `UserError` says what was looked for when there is no such thing."""
    text, path = str(name), Path(name)
    if text == SAMPLE:
        return Source(SAMPLE, tuple(_readable_files(Path(__file__).parent / SAMPLE)))
    if path.is_dir():
        files = tuple(_readable_files(path))
        if not files:
            raise UserError(f"the folder {path} holds no file that can be read ({', '.join(SUFFIXES)})")
        return Source(text, files)
    if path.exists():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path}: the format '{path.suffix}' is not read; known are {', '.join(SUFFIXES)}")
        return Source(text, (path,))
    if text.startswith(("/", ".", "~")) or path.suffix.lower() in SUFFIXES or text.count("/") != 1:
        beside = [str(path.with_name(other.name)) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"missing file: there is no file or folder {path.absolute()}{did_you_mean(text, [*beside, SAMPLE])}; "
            f"a source is a file ({', '.join(SUFFIXES)}), a folder of them, a hub id (owner/name) or '{SAMPLE}'"
        )
    return Source(text, ())


def source_hash(source: Source) -> str:
    """SHA-256 of a source: the names and bytes of its files; for a hub dataset, which has none here, of its rows."""
    if source.files:
        return sha256_of_files(source.files)
    digest = hashlib.sha256()
    for row in read_rows(source):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def read_rows(source: Source) -> Iterator[RawRow]:
    """Read the rows of a source in order. Raises `UserError` with file and line where something cannot be read."""
    if not source.files:
        yield from _read_hub(source.name)
    for path in source.files:
        if path.suffix.lower() == ".zip":
            yield from _read_zip(path)
        else:
            with open(path, "rb") as file:
                yield from _read_format(file, path.stat().st_size, path.name, str(path))


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Show a progress bar on stderr while `items` are gone through, when it is a terminal and they are many."""
    if not sys.stderr.isatty() or (total is not None and total < MIN_TRACKED):
        return items
    from rich.progress import track

    from finllm.terminal import Terminal

    return track(items, description=description, total=total, console=Terminal(stderr=True), transient=True)


def _readable_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


# Formats: `file` is the name that rows keep, `place` the one that messages give --------------------------------------


def _read_format(stream: IO[bytes], size: int, file: str, place: str) -> Iterator[RawRow]:
    """Rows of one file, which `stream` gives from its beginning and which has at most `size` characters."""
    suffix = Path(file).suffix.lower()
    if suffix == ".parquet":
        yield from _read_parquet(stream, file, place)
        return
    lines = _decoded(stream, place)
    if suffix == ".jsonl":
        yield from _read_jsonl(lines, file, place)
    elif suffix == ".csv":
        yield from _read_csv(lines, size, file, place)
    else:
        yield from _read_json("".join(lines), file, place)


def _decoded(stream: IO[bytes], place: str) -> Iterator[str]:
    """The lines of a file; "\n" alone ends one, U+2028 does not."""
    for number, line in enumerate(stream, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{place}, line {number}: byte 0x{line[error.start]:02x} is not UTF-8; convert the file to UTF-8"
            ) from None


def _read_jsonl(lines: Iterable[str], file: str, place: str) -> Iterator[RawRow]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            fields = _parse_json(line, f"{place}, line {number}")
            if not isinstance(fields, dict):
                raise UserError(f"{place}, line {number}: not a JSON object")
            yield RawRow(fields, file, number)


def _read_json(text: str, file: str, place: str) -> Iterator[RawRow]:
    rows = _parse_json(text, place, whole_file=True)
    if isinstance(rows, dict):
        lists = [key for key, value in rows.items() if isinstance(value, list)]
        if len(lists) != 1:
            found = f"{len(lists)} lists ({', '.join(lists)})" if lists else "no list"
            raise UserError(f"{place}: the JSON object holds {found}, wanted is one list of rows; save that list alone")
        rows = rows[lists[0]]
    if not isinstance(rows, list):
        raise UserError(f"{place}: neither a JSON array of rows nor an object with one list of rows")
    for number, fields in enumerate(rows, start=1):
        if not isinstance(fields, dict):
            raise UserError(f"{place}, row {number}: not a JSON object")
        yield RawRow(fields, file, number)


def _parse_json(text: str, place: str, whole_file: bool = False) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{place}, line {error.lineno}" if whole_file else place
        fix = "; with one object a line, name the file .jsonl" if whole_file and error.msg == "Extra data" else ""
        raise UserError(f"{place}: not JSON ({error.msg}, column {error.colno}){fix}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of nested lists
        raise UserError(f"{place}: JSON that cannot be read ({error})") from None


def _read_csv(lines: Iterable[str], size: int, file: str, place: str) -> Iterator[RawRow]:
    csv.field_size_limit(max(csv.field_size_limit(), size + 1))  # the default of 131,072 is less than some answers
    reader = csv.reader(lines, strict=True)
    header: list[str] = []
    line = 1
    try:
        for fields in reader:
            first, line = line, reader.line_num + 1
            if not fields:
                continue
            if not header:
                header = fields
                if len(set(header)) < len(header):
                    raise UserError(f"{place}: two columns have the same name ({', '.join(header)})")
            elif len(fields) != len(header):
                raise UserError(
                    f"{place}, line {first}: {len(fields)} fields where the header has {len(header)}; "
                    "put text that holds commas, quotes or line ends in double quotes"
                )
            else:
                yield RawRow(dict(zip(header, fields, strict=True)), file, first)
    except csv.Error as error:
        raise UserError(f"{place}, the record that starts on line {line}: not CSV ({error})") from None


def _read_parquet(stream: IO[bytes], file: str, place: str) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=4096):
            for fields in batch.to_pylist():
                number += 1
                yield RawRow(fields, file, number)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{place}, after row {number}: not a Parquet file that can be read ({error})") from None


def _read_zip(path: Path) -> Iterator[RawRow]:
    """The rows of each file in a zip that can be read here, in the order of their names."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in _members(archive, path):
                with archive.open(member) as stream:
                    place = f"{path}/{member.filename}"
                    yield from _read_format(stream, member.file_size, f"{path.name}/{member.filename}", place)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        # damaged in its directory, in its data, or cut off; packed by a method unknown here
        raise UserError(f"{path}: not a zip file that can be read ({error})") from None


def _members(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    members = archive.infolist()
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if parts[0] == "" or ":" in parts[0] or ".." in parts:
            raise UserError(f"{path}: its member '{member.filename}' leads outside the archive; pack it anew")
        if member.flag_bits & ENCRYPTED:
            raise UserError(f"{path}: its member '{member.filename}' is encrypted; pack it anew without a password")
    if (size := sum(member.file_size for member in members)) > MAX_UNZIPPED_BYTES:
        raise UserError(
            f"{path} unpacks to {size:,} bytes and the limit is {MAX_UNZIPPED_BYTES:,}; unpack it and name the folder"
        )
    wanted = [
        member
        for member in sorted(members, key=lambda member: member.filename)
        if Path(member.filename).suffix.lower() in FORMATS
        and not any(part.startswith((".", "__MACOSX")) for part in member.filename.split("/"))
    ]
    if not wanted:
        raise UserError(f"{path} holds no file that can be read ({', '.join(FORMATS)})")
    return wanted


def _read_hub(name: str) -> Iterator[RawRow]:
    import datasets  # takes a second, which only this source pays

    try:
        splits = datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"'{name}' is no file or folder here, and the hub did not give it ({error}); without the hub take a local "
            f"file, a folder, a cache filled before (HF_HUB_OFFLINE=1) or the built-in '{SAMPLE}'"
        ) from error
    for split, rows in splits.items():
        for number, fields in enumerate(rows, start=1):
            yield RawRow(fields, f"{name} ({split})", number)
