"""Raw rows from the parts of a SOURCE, one after the other, and what identifies a source.

Files may be larger than the memory: no more than the longest row is held. Text is UTF-8, with or without a byte order
mark, unless another encoding is given. Every row keeps the file and the line (JSON Lines, CSV) or row where it stands.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

from finllm.data import tables
from finllm.data.csv_rows import read_csv
from finllm.data.json_rows import read_json
from finllm.data.opening import opened as stream_of
from finllm.data.parts import BadRow, Part, RawRow
from finllm.data.sources import Source, hash_of_files, opened

MIN_TRACKED = 5_000  # rows; fewer are done before a progress bar could be read

Item = TypeVar("Item")


def source_hash(source: Source) -> str:
    """SHA-256 of a source: the names and bytes of its files; for a hub dataset, which has none here, of its rows."""
    if source.files:
        return hash_of_files(source)
    source, digest = opened(source), hashlib.sha256()
    for row in read_rows(source):
        digest.update(json.dumps(row[:3], sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def read_rows(source: Source, encoding: str = "", wanted: Collection[str] = ()) -> Iterator[RawRow | BadRow]:
    """The rows of all parts of a source, in their order."""
    source = opened(source)
    for part in source.parts:
        yield from read_part(source, part, encoding, wanted)


def read_part(source: Source, part: Part, encoding: str, wanted: Collection[str]) -> Iterator[RawRow | BadRow]:
    """The rows of one part, and those that cannot be read. Raises `UserError` where the whole part cannot be.

    `wanted` are column names in small letters by which the header of a CSV file is told.
    """
    if part.format == "hub":
        yield from tables.read_dataset(source.hub[part.key], part.name)
    elif part.format == "saved":
        yield from tables.read_saved(part)
    else:
        with stream_of(part) as stream:
            if part.format == "csv":
                yield from read_csv(stream, part.name, part.place, encoding, wanted)
            elif part.format == "parquet":
                yield from tables.read_parquet(stream, part.name, part.place)
            elif part.format == "arrow":
                yield from tables.read_arrow(stream, part.name, part.place)
            else:
                yield from read_json(stream, part.format, part.key, part.name, part.place, encoding)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Show a progress bar on stderr while `items` are gone through, when it is a terminal and they are many."""
    if not sys.stderr.isatty() or (total is not None and total < MIN_TRACKED):
        return items
    from rich.progress import track

    from finllm.terminal import Terminal

    return track(items, description=description, total=total, console=Terminal(stderr=True), transient=True)
