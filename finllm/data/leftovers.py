"""Rows that do not come through: bad ones, those that cleaning drops, and what was changed in those that do."""

from __future__ import annotations

import json
from typing import IO, Any

from finllm.data.encoding import likely
from finllm.data.parts import BadRow
from finllm.data.schema import Change, Row
from finllm.errors import UserError

MOST_SHOWN = 20  # bad rows that a message lists
MOST_BYTES = 1 << 16  # of rows that are not UTF-8, by which their encoding is guessed
AROUND, MOST_OF_AN_EXAMPLE = 20, 80  # characters before a change, and in all, that an example shows

ENCODE = json.JSONEncoder(ensure_ascii=False).encode


class Rejections:
    """`rejected.jsonl` as it is written: a line for each row that is left out, as it was read."""

    def __init__(self, file: IO[str]):
        self.file, self.rows = file, 0

    def add(self, content: Any, file: str, number: int, reason: str) -> None:
        self.rows += 1
        line = {"row": content, "file": file, "line": number, "reason": reason}
        try:
            self.file.write(ENCODE(line) + "\n")
        except (TypeError, UnicodeEncodeError):  # dates and bytes of a table; halves of surrogate pairs
            self.file.write(json.dumps(line, default=str) + "\n")

    def add_row(self, row: Row, reason: str) -> None:
        self.add(as_read(row), row.file, row.number, reason)


def as_read(row: Row) -> dict[str, Any]:
    """The fields of a row as a dataset dir writes them."""
    fields: dict[str, Any] = {"instruction": row.instruction, "input": row.input, "output": row.output}
    if row.system or row.history:
        fields |= {"system": row.system, "history": [turn._asdict() for turn in row.history]}
    if row.asks:
        fields |= row.asks._asdict()
    return fields


class BadRows:
    """The rows that could not be read: all are counted and written to `sink`, the first 20 are kept for a message."""

    def __init__(self, sink: Rejections):
        self.sink, self.count, self.shown, self.last = sink, 0, [], 0
        self.encoded = b""

    def add(self, row: BadRow) -> None:
        self.count += 1
        self.last += row.last
        if len(self.shown) < MOST_SHOWN:
            self.shown.append(f"{row.place}: {row.reason}")
        if row.reason.startswith("byte 0x") and len(self.encoded) < MOST_BYTES:
            content = (
                row.content
                if isinstance(row.content, str)
                else json.dumps(row.content, ensure_ascii=False, default=str)
            )
            self.encoded += content.encode("utf-8", "surrogateescape")[:MOST_BYTES]
        self.sink.add(row.content, row.file, row.number, row.reason)

    def error(self, name: str, place: str) -> UserError:
        """What to say of them; `place` is the file that holds them all."""
        some = "1 bad row" if self.count == 1 else f"{self.count:,} bad rows"
        fix = "mend them, or pass --skip_bad_rows to go on without them"
        if self.last:
            fix = (
                "mend the rows after which nothing could be read; --skip_bad_rows does not help there, since nobody "
                "knows where the next row begins"
            )
        if self.encoded:
            encoding = likely(self.encoded)
            fix += f"; where the whole file is in another encoding, most likely {encoding}, pass --encoding {encoding}"
        more = [f"and {self.count - MOST_SHOWN:,} more"] if self.count > MOST_SHOWN else []
        return UserError(f"{some} in {name}; {fix}; all are in {place}", lines=[*self.shown, *more])


class Changes:
    """`changed.jsonl` as it is written: a line for each change of a text, and the first example of each step."""

    def __init__(self, file: IO[str]):
        self.file = file
        self.examples: dict[str, dict[str, Any]] = {}

    def add(self, row: Row, changes: list[Change]) -> None:
        for change in changes:
            line = {"file": row.file, "line": row.number, **change._asdict()}
            self.file.write(ENCODE(line) + "\n")
            if change.step not in self.examples:
                before, after = _around(change.before, change.after)
                self.examples[change.step] = {**line, "before": before, "after": after}


def _around(before: Any, after: Any) -> tuple[str, str]:
    """What differs in two texts, with a little of what stands before it."""
    before, after = (each if isinstance(each, str) else ENCODE(each) for each in (before, after))
    short = min(len(before), len(after))
    same = next((place for place in range(short) if before[place] != after[place]), short)
    start = max(0, same - AROUND)
    return tuple(("…" if start else "") + text[start : start + MOST_OF_AN_EXAMPLE]
                 + ("…" if start + MOST_OF_AN_EXAMPLE < len(text) else "") for text in (before, after))  # fmt: skip
