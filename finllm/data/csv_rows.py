"""Rows of CSV as programs write it: the delimiter and the quoting are found out from the beginning of the file.

A delimiter is a comma, semicolon, tab or pipe; blanks may follow it. A quote inside quotes is doubled or has a
backslash before it; with tabs and pipes there may be no quoting at all. Lines end in "\\n", "\\r\\n" or "\\r".
"""

from __future__ import annotations

import csv
import io
import itertools
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from typing import IO, Any, NamedTuple

from finllm.data.encoding import undecoded
from finllm.data.parts import BadRow, RawRow
from finllm.errors import UserError

SAMPLE = 1 << 18  # characters from which the dialect is found out
UNNAMED = "(unnamed)"
_ESCAPED_QUOTE = re.compile(r'(\\+)"')


class _Twice:
    """What stands in the place of a value whose column's name is that of another column."""

    def __bool__(self) -> bool:
        return False


TWICE = _Twice()


class Dialect(NamedTuple):
    """How the fields of a file are parted and quoted."""

    delimiter: str
    quoting: str  # doubled, backslash, single or none
    blanks: bool  # after the delimiter

    def records(self, lines: Iterable[str]) -> Any:
        """A `csv.reader` of the lines."""
        if self.quoting == "backslash":
            lines = (_ESCAPED_QUOTE.sub(_doubled, line) for line in lines)
        quoting = csv.QUOTE_NONE if self.quoting == "none" else csv.QUOTE_MINIMAL
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar="'" if self.quoting == "single" else '"',
            quoting=quoting,
            skipinitialspace=self.blanks,
            strict=True,
        )


def _doubled(match: re.Match[str]) -> str:
    backslashes, odd = divmod(len(match[1]), 2)
    return "\\" * backslashes + ('""' if odd else '"')


CANDIDATES = [
    Dialect(delimiter, quoting, blanks)
    for delimiter in ",;\t|"
    for quoting in ("doubled", "backslash", "single", *(("none",) if delimiter in "\t|" else ()))
    for blanks in (False, True)
]


def read_csv(stream: IO[bytes], file: str, place: str, encoding: str, wanted: Collection[str]) -> Iterator:
    """The rows of one file, `RawRow` and `BadRow`. `wanted` are column names that tell a header, in small letters."""
    csv.field_size_limit(sys.maxsize)  # the default of 131,072 is less than some answers
    errors = "strict" if encoding else "surrogateescape"
    text = io.TextIOWrapper(stream, encoding or "utf-8-sig", errors, newline="")
    try:
        head = text.read(SAMPLE)
        dialect = find_dialect(head, len(head) < SAMPLE, wanted)
        lines = itertools.chain(io.StringIO(head[: _last_line(head)], newline=""), _joined(head, text))
        yield from _rows(dialect.records(lines), file)
    except UnicodeError as error:
        raise UserError(f"{place}: it is not {encoding} ({error}); give another --encoding") from None


def _last_line(head: str) -> int:
    """Where the last line begins that the head of a file may hold only a part of."""
    return max(head.rfind("\n"), head.rfind("\r", 0, len(head) - 1)) + 1


def _joined(head: str, rest: io.TextIOBase) -> Iterator[str]:
    """The line at the end of the head with its rest, and all lines after it."""
    begun = head[_last_line(head) :]
    if begun.endswith("\r"):  # and perhaps a line feed
        following = rest.readline()
        yield begun + following if following == "\n" else begun
        begun = "" if following == "\n" else following
        if begun:
            yield begun
    elif begun or not head:
        yield begun + rest.readline()
    yield from rest


def _rows(reader: Any, file: str) -> Iterator[RawRow | BadRow]:
    header: list[str] = []
    twice: list[str] = []
    line = 1
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            first, line = line, reader.line_num + 1
            # A record of one line can be left out. After one of several nobody knows where the next begins.
            yield BadRow(f"the record that starts here is not CSV ({error})", None, file, first, last=line > first + 1)
            if line > first + 1:
                return
            continue
        if fields is None:
            return
        first, line = line, reader.line_num + 1
        if not fields:
            continue
        if not header:
            header = [name.strip() or UNNAMED for name in fields]
            twice = [name for place, name in enumerate(header) if name in header[:place]]
            continue
        if len(fields) > len(header) and any(map(str.strip, fields[len(header) :])):
            reason = (
                f"{len(fields)} fields where the header has {len(header)}; put text that holds commas, quotes or line "
                "ends in double quotes"
            )
            yield BadRow(reason, fields, file, first)
            continue
        row: dict[str, Any] = dict(zip(header, fields, strict=False))
        if len(fields) < len(header):
            row.update(dict.fromkeys(header[len(fields) :]))
        for name in twice:
            row[name] = TWICE
        if any(not value.isascii() for value in fields) and (byte := undecoded("".join(fields))):
            yield BadRow(byte, row, file, first)
        else:
            yield RawRow(row, file, first)


def find_dialect(head: str, whole: bool, wanted: Collection[str]) -> Dialect:
    """The dialect by which most records have as many fields as the header; one whose header says the most, first."""
    candidates = [
        dialect
        for dialect in CANDIDATES
        if (dialect.quoting != "backslash" or '\\"' in head)
        and (dialect.quoting != "single" or head.lstrip("\ufeff \r\n")[:1] == "'")
    ]
    return max(candidates, key=lambda dialect: _fits(dialect, head, whole, wanted))


def _fits(dialect: Dialect, head: str, whole: bool, wanted: Collection[str]) -> tuple[float, ...]:
    """How well a dialect fits: by the columns that are wanted, and the share of records as long as the header."""
    header: list[str] = []
    good = bad = 0
    lines = io.StringIO(head, newline="")
    records = dialect.records(lines)
    quote = "'" if dialect.quoting == "single" else '"'
    while True:
        try:
            fields = next(records, None)
        except csv.Error:
            bad += 10 if whole or lines.tell() < len(head) else 0
            break
        if fields is None:
            break
        if not header:
            header = fields
            continue
        if fields:
            # A quote that the dialect takes for text, though it opens a field after a blank
            literal = not dialect.blanks and any(field.lstrip(" ")[:1] == quote != field[:1] for field in fields)
            right = len(fields) >= len(header) and not any(fields[len(header) :]) and not literal
            good, bad = good + right, bad + (not right) * (0.5 if len(fields) < len(header) else 1)
    named = sum(name.strip().lower() in wanted for name in header)
    return (min(named, 2), min(len(header), 2), (good + 1) / (good + bad + 1), good)
