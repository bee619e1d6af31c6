"""Rows of CSV as programs write it: the delimiter and the quoting are found out from the beginning of the file.

A delimiter is a comma, semicolon, tab or pipe; blanks may follow it. A quote inside quotes is doubled or has a
backslash before it; with tabs and pipes there may be no quoting at all. Lines end in "\\n", "\\r\\n" or "\\r".
Python's `csv` reads the records. It takes four bytes for each character of a field, so long records are read here.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from typing import IO, Any, NamedTuple

from finllm.data.encoding import codec, undecoded
from finllm.data.parts import TWICE, BadRow, RawRow
from finllm.errors import UserError

SAMPLE = 1 << 18  # characters from which the dialect is found out
LONG = 1 << 18  # characters of a record from which on it is read here and not by `csv`
UNNAMED = "(unnamed)"
_ESCAPED_QUOTE = re.compile(r'(\\+)"')


class Dialect(NamedTuple):
    """How the fields of a file are parted and quoted."""

    delimiter: str
    quoting: str  # doubled, backslash, single or none
    blanks: bool  # after the delimiter

    @property
    def quote(self) -> str:
        return "'" if self.quoting == "single" else '"'

    def plain(self, lines: Iterable[str]) -> Iterable[str]:
        """The lines with doubled quotes for those that a backslash escapes."""
        return (_ESCAPED_QUOTE.sub(_doubled, line) for line in lines) if self.quoting == "backslash" else lines

    def records(self, lines: Iterable[str]) -> Any:
        """A `csv.reader` of plain lines."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quote,
            quoting=csv.QUOTE_NONE if self.quoting == "none" else csv.QUOTE_MINIMAL,
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
    text = io.TextIOWrapper(stream, codec(encoding), errors, newline="")
    text._CHUNK_SIZE = SAMPLE  # a long line is put together of few pieces
    try:
        head = text.read(SAMPLE)
        dialect = find_dialect(head, len(head) < SAMPLE, wanted)
        lines = itertools.chain(io.StringIO(head[: _last_line(head)], newline=""), _joined(head, text))
        yield from _rows(Records(dialect, lines), file)
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


class _Lines:
    """Lines as they are asked for. Those of the record that is being read are held, until they are too long."""

    def __init__(self, lines: Iterable[str]):
        self.rest, self.number = iter(lines), 0
        self.held: list[str] = []
        self.length = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.taken()
        self.held.append(line)
        self.length += len(line)
        if self.length > LONG:
            raise _LongRecord
        return line

    def taken(self) -> str:
        """The next line, which is not held."""
        line = next(self.rest)
        self.number += 1
        return line

    def let_go(self) -> Iterator[str]:
        """The lines of a long record, from its first one on; none is held after it was taken."""
        held, self.held = self.held[::-1], []
        while held:
            yield held.pop()
        while True:
            try:
                yield self.taken()
            except StopIteration:
                return


class _LongRecord(Exception):
    """What the lines say to `csv`, which begins anew with the next record."""


class Records:
    """The records of a file, lists of fields; `first` and `last` are the lines of the one that was read."""

    def __init__(self, dialect: Dialect, lines: Iterable[str]):
        self.dialect, self.lines = dialect, _Lines(dialect.plain(lines))
        self.reader = dialect.records(self.lines)
        self.first = self.last = 0

    def next(self) -> list[str] | None:
        """The next record, or None at the end. Raises `csv.Error` for what is none."""
        self.first = self.lines.number + 1
        self.lines.held, self.lines.length = [], 0
        try:
            with contextlib.suppress(_LongRecord):  # whose traceback would hold the line
                return next(self.reader, None)
            return _long_record(self.dialect, self.lines.let_go())
        finally:
            self.last = self.lines.number


def _long_record(dialect: Dialect, lines: Iterator[str]) -> list[str]:
    """The fields of the record that the lines begin with, as `csv` would read it and without its four bytes a sign."""
    delimiter, quote = dialect.delimiter, "" if dialect.quoting == "none" else dialect.quote
    fields: list[str] = []
    open_field: io.StringIO | None = None  # a quoted field that a line before this one began
    for line in lines:
        at, end = 0, len(line) - len(line[-2:]) + len(line[-2:].rstrip("\r\n"))
        while True:
            if open_field is None:
                if dialect.blanks:
                    at = next((place for place in range(at, end) if line[place] != " "), end)
                if not (quote and line[at : at + 1] == quote):
                    stop = line.find(delimiter, at, end)
                    fields.append(line[at : end if stop < 0 else stop])
                    if stop < 0:
                        return fields
                    at = stop + 1
                    continue
                at += 1
            close = _closing(line, quote, at)
            text = line[at : len(line) if close < 0 else close].replace(quote + quote, quote)
            if close < 0:
                open_field = open_field or io.StringIO()
                open_field.write(text)
                break
            if open_field is not None:
                open_field.write(text)
                text, open_field = open_field.getvalue(), None
            fields.append(text)
            if close + 1 >= end:
                return fields
            if line[close + 1] != delimiter:
                raise csv.Error(f"'{delimiter}' expected after '{quote}'")
            at = close + 2
    raise csv.Error("unexpected end of data")


def _closing(line: str, quote: str, at: int) -> int:
    """Where the quote stands that closes a field, or -1 where the line does not close it."""
    while (place := line.find(quote, at)) >= 0 and line[place + 1 : place + 2] == quote:
        at = place + 2
    return place


def _rows(records: Records, file: str) -> Iterator[RawRow | BadRow]:
    header: list[str] = []
    twice: list[str] = []
    while True:
        try:
            fields = records.next()
        except csv.Error as error:
            first, last = records.first, records.last
            # A record of one line can be left out. After one of several nobody knows where the next begins.
            reason = f"the record that starts here is not CSV ({error})"
            if last > first:
                reason += (
                    f"; it was read up to line {last}, since a quote in it is not closed where it should be, and after "
                    "it nobody knows what is quoted"
                )
            yield BadRow(reason, None, file, first, last=last > first)
            if last > first:
                return
            continue
        if fields is None:
            return
        first = records.first
        if not fields:
            continue
        if not header and _names_delimiter(fields):
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
        row: dict[str, Any] = dict(itertools.zip_longest(header, fields[: len(header)]))
        for name in twice:
            row[name] = TWICE
        if byte := next((said for value in fields if not value.isascii() and (said := undecoded(value))), ""):
            yield BadRow(byte, row, file, first)
        else:
            yield RawRow(row, file, first)


def _names_delimiter(fields: list[str]) -> bool:
    """Whether the first line is `sep=;`, which Excel takes for the delimiter and not for a header."""
    return len(fields) == 2 and fields[0].strip().lower() == "sep=" and not fields[1]


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
    records = dialect.records(dialect.plain(lines))
    quote = dialect.quote
    while True:
        try:
            fields = next(records, None)
        except csv.Error:
            bad += 10 if whole or lines.tell() < len(head) else 0
            break
        if fields is None:
            break
        if not header:
            header = [] if _names_delimiter(fields) else fields
            continue
        if fields:
            # A quote that the dialect takes for text, though it opens a field after a blank
            literal = not dialect.blanks and any(field.lstrip(" ")[:1] == quote != field[:1] for field in fields)
            right = len(fields) >= len(header) and not any(fields[len(header) :]) and not literal
            good, bad = good + right, bad + (not right) * (0.5 if len(fields) < len(header) else 1)
    named = sum(name.strip().lower() in wanted for name in header)
    return (min(named, 2), min(len(header), 2), (good + 1) / (good + bad + 1), good)
