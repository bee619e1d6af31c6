"""Rows of JSON: Lines, an array, objects one after the other, or an object that holds lists of rows.

Which it is, the content says and not the name. Lines are read one by one, all else through a window that grows to the
longest row: no more is held. A number keeps its text (9.40 is an answer of four characters), and NaN is nothing.
After a broken row of an array reading goes on with the next line that begins a row as that one began: no JSON text goes
on over the end of a line, and what stands inside a row is indented more. All that was passed over is kept.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from finllm.data.encoding import codec, decoded, undecoded
from finllm.data.parts import TWICE, BadRow, RawRow, is_lines
from finllm.errors import UserError

HEAD = 1 << 20  # bytes from which the layout is found out
WINDOW = 1 << 18  # bytes that are decoded at a time, and more where one row is longer
NEAR = 20  # characters before the end of a window within which what is cut off looks like an error
MOST_PASSED_OVER = 1 << 24  # characters that are searched for the row after a broken one
MOST_INDENTED = 200  # characters before a row
NOTHING_AFTER = "; nothing after it can be read"
_BLANK = re.compile(r"[ \t\n\r]*")


class NumberText(str):
    """A number that is no whole one, as it was written."""

    __slots__ = ()


_END_OF_ARRAY = re.compile(r"\n([ \t]*)\]\s*\Z")  # of a whole file


class Broken(NamedTuple):
    """What stands in an array and is no JSON, and why."""

    text: str
    reason: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that stands in it twice has no value, where Python would take the last one."""
    held = dict(pairs)
    if len(held) < len(pairs):
        names = [name for name, _ in pairs]
        held.update({name: TWICE for name in held if names.count(name) > 1})
    return held


DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=NumberText,
    parse_constant=lambda text: "" if text == "NaN" else NumberText(text),
)


def layout_of(stream: IO[bytes], name: str, place: str, encoding: str) -> str:
    """`lines`, `array`, `objects` (one after the other) or `object` (that holds lists), by how a file begins."""
    block = stream.read(HEAD)
    whole, text = len(block) < HEAD, decoded(block, place, encoding).lstrip()
    if text[:1] == "[":
        return "array"
    if text[:1] != "{":
        if text and not is_lines(name):
            raise UserError(f"{place}: neither a JSON array of rows, nor an object with a list of rows, nor JSON Lines")
        return "lines"
    line, _, rest = text.partition("\n")
    if _is_object(line):
        return "lines" if rest.strip() or is_lines(name) else "object"
    try:
        rest = text[DECODER.raw_decode(text)[1] :].lstrip()
    except (ValueError, RecursionError):
        others = [line for line in rest.split("\n") if line.strip()] if whole else []
        mostly = 2 * sum(map(_is_object, others)) > len(others)  # the last row of a broken array may be one, too
        return "lines" if is_lines(name) or mostly else "object"
    return "objects" if rest[:1] == "{" or is_lines(name) else "object"


def _is_object(line: str) -> bool:
    try:
        return isinstance(DECODER.decode(line), dict)
    except (ValueError, RecursionError):
        return False


def lists_of(stream: IO[bytes], place: str, encoding: str) -> list[str]:
    """The keys under which a JSON object holds lists of rows. Raises `UserError` where there is none."""
    window, lists, others = Window(stream, place, encoding), [], []
    try:
        for key in window.fields():
            if window.peek() != "[":
                window.value()
                others.append(key)
                continue
            items = window.items()
            first = next(items, {})
            for _ in items:
                pass
            (lists if isinstance(first, (dict, Broken)) else others).append(key)
        if window.peek():
            raise json.JSONDecodeError("Extra data", window.text, window.at)
    except UserError:  # of bytes that are not in the encoding, which is a ValueError, too
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}{window.said(error)}") from None
    if not lists:
        hint = "; with pandas: to_json(…, orient='records', lines=True)" if others else ""
        raise UserError(f"{place}: the JSON object holds no list of rows (its keys: {', '.join(others)}){hint}")
    return lists


def read_json(stream: IO[bytes], layout: str, key: str, file: str, place: str, encoding: str) -> Iterator:
    """The rows of one file, `RawRow` and `BadRow`; of an object that holds lists, those of `key`."""
    if layout == "lines":
        yield from _lines(stream, file, place, encoding)
        return
    window, number = Window(stream, place, encoding), 0
    try:
        for fields in window.rows(layout, key):
            number += 1
            if isinstance(fields, Broken):
                yield BadRow(fields.reason, fields.text, file, number, "row")
            else:
                yield _row(fields, file, number, "row", window.damaged)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        yield BadRow(window.said(error).lstrip(",: "), None, file, number + 1, "row", last=True)


def _lines(stream: IO[bytes], file: str, place: str, encoding: str) -> Iterator[RawRow | BadRow]:
    lines = stream if not encoding else io.TextIOWrapper(stream, codec(encoding), newline="\n")
    number = 0
    while True:
        try:
            line = next(lines, None)
        except UnicodeError as error:
            raise UserError(f"{place}: it is not {encoding} ({error}); give another --encoding") from None
        if line is None:
            return
        number += 1
        damaged = False
        if not encoding:
            try:
                line = line.decode()
            except UnicodeDecodeError:
                line, damaged = line.decode(errors="surrogateescape"), True
        line = line.lstrip("\ufeff")  # which stands in the middle where files were joined
        try:
            fields = DECODER.decode(line)
        except json.JSONDecodeError as error:
            if line.replace("\ufeff", "").strip():
                column = min(error.pos, len(line.rstrip())) + 1  # where the line ends early
                yield BadRow(f"not JSON ({error.msg}, column {column})", line, file, number)
        except (ValueError, RecursionError) as error:
            yield BadRow(f"JSON that cannot be read ({error})", line, file, number)
        else:
            yield _row(fields, file, number, "line", damaged)


def _row(fields: Any, file: str, number: int, unit: str, damaged: bool) -> RawRow | BadRow:
    if not isinstance(fields, dict):
        return BadRow("not a JSON object", fields, file, number, unit)
    if damaged and (byte := undecoded(json.dumps(fields, ensure_ascii=False, default=str))):
        return BadRow(byte, fields, file, number, unit)
    return RawRow(fields, file, number, unit)


class Window:
    """The part of a JSON text that is being read; `at` is where the next value begins."""

    def __init__(self, stream: IO[bytes], place: str, encoding: str):
        self.stream, self.place, self.encoding = stream, place, encoding
        errors = "strict" if encoding else "surrogateescape"
        self.decoder = codecs.getincrementaldecoder(codec(encoding))(errors)
        self.text, self.at, self.line = "", 0, 1
        self.before = 0  # characters of the line that the window begins in, before the window
        self.ended = self.damaged = False

    def rows(self, layout: str, key: str = "") -> Iterator[Any]:
        """All values of an array, of the list `key` of an object, or that stand one after the other."""
        if layout == "objects":
            while self.peek():
                yield self.value()
            return
        if layout == "object":
            for each in self.fields():
                if each == key:
                    yield from self.items()
                else:
                    self.value()
            return
        yield from self.items()
        if self.peek():
            raise json.JSONDecodeError("Extra data", self.text, self.at)

    def fields(self) -> Iterator[str]:
        """The keys of an object; whoever asks for the next one has read the value of the one before."""
        self._take("{")
        while self.peek() != "}":
            key = self.value()
            self._take(":")
            self.peek()
            yield key
            if self.peek() != "}":
                self._take(",")
        self.at += 1

    def items(self) -> Iterator[Any]:
        """The values of an array; `Broken` where one is none and the next one is found."""
        self._take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            begins = self._indentation()
            try:
                yield self.value()
                if self.peek() == "]":
                    break
                self._take(",")
                self.peek()
            except UserError:
                raise
            except (ValueError, RecursionError) as error:
                said = self.said(error).lstrip(",: ")
                text = self._passed_over(begins) if begins is not None else None
                if text is None:
                    raise
                yield Broken(text, said.removesuffix(NOTHING_AFTER))
                if self.peek() == "]":
                    break
        self.at += 1

    def _indentation(self) -> str | None:
        """The blanks before a row that begins its line; None where it does not, or where what is inside may too."""
        if self.at + 1 == len(self.text):
            self._grow()  # what follows the bracket counts
        start = self.text.rfind("\n", max(0, self.at - MOST_INDENTED), self.at)
        before = self.text[start + 1 : self.at]
        if start < 0 or before.strip() or self.text[self.at : self.at + 1] != "{":
            return None
        return None if not before and self.text[self.at + 1 : self.at + 2] in ("\r", "\n") else before

    def _passed_over(self, begins: str) -> str | None:
        """Go on to the next row that `begins` so, or to the array's end, and give what stood before it."""
        mark = f"\n{begins}{{"
        while (place := self.text.find(mark, self.at)) < 0:
            if self.ended or len(self.text) - self.at > MOST_PASSED_OVER:
                break
            self._grow()
        if place >= 0:
            end = place
        else:
            found = _END_OF_ARRAY.search(self.text, self.at)
            if not self.ended or found is None or len(found[1]) > len(begins):
                return None  # cut off, or not to be told from what stands inside a row
            end = found.end(1)
        text, self.at = self.text[self.at : end], end
        return text.strip()

    def peek(self) -> str:
        """The next character that is not blank, or "" at the end."""
        while True:
            self.at = _BLANK.match(self.text, self.at).end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._grow()

    def value(self) -> Any:
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - NEAR
                if self.ended or not cut:
                    raise
            else:
                # 12 may be the beginning of 12.5, and so may "12." be
                if self.ended or self.text[end - 1] in '}]"' or end < len(self.text) - NEAR:
                    self.at = end
                    return value
            self._grow()

    def said(self, error: Exception) -> str:
        """What is wrong, and in which line."""
        if not isinstance(error, json.JSONDecodeError):
            return f": JSON that cannot be read ({error})"
        line = self.line + self.text.count("\n", 0, error.pos)
        start = self.text.rfind("\n", 0, error.pos)
        column = error.pos - start + (self.before if start < 0 else 0)
        return f", line {line}: not JSON ({error.msg}, column {column}){NOTHING_AFTER}"

    def _take(self, character: str) -> None:
        if self.peek() != character:
            raise json.JSONDecodeError(f"Expecting '{character}'", self.text, self.at)
        self.at += 1

    def _grow(self) -> None:
        block = self.stream.read(max(WINDOW, len(self.text) - self.at))
        try:
            new = self.decoder.decode(block, final=not block)
        except UnicodeError as error:
            raise UserError(f"{self.place}: it is not {self.encoding} ({error}); give another --encoding") from None
        self.damaged = self.damaged or bool(undecoded(new))
        line = self.text.rfind("\n", max(0, self.at - MOST_INDENTED), self.at)
        kept = self.at if line < 0 else line  # the indentation of the row is looked at
        self.line += self.text.count("\n", 0, kept)
        start = self.text.rfind("\n", 0, kept)
        self.before = kept - start - 1 + (self.before if start < 0 else 0)
        self.text, self.at, self.ended = self.text[kept:] + new, self.at - kept, not block
