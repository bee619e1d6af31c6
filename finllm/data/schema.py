"""Raw rows to rows of instruction, input and output, with a system text and earlier turns where there are any."""

from __future__ import annotations

import decimal
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from finllm.data.conversations import Conversation, Turn, Unfit, Unreadable, arranged, history_of, parsed, turns_of
from finllm.data.forms import Asked, Form, looks_fixed, recognise, telling
from finllm.data.number_columns import AskedNumber, number_columns, read_number
from finllm.data.parts import TWICE, BadRow, Part, RawRow
from finllm.errors import UserError, did_you_mean

PEEKED, MOST_PEEKED = 100, 10_000  # rows whose columns tell the form; rows, bad ones too, that are held for it
NUMBERED = ", with the number that an answer must reach"
NOTHING = (None, "", [], {}, "[]", "{}")


class Change(NamedTuple):
    """What a step made of a field of a row."""

    step: str
    field: str
    before: Any
    after: Any


class Row(NamedTuple):
    """One example, and where it came from (`number` as in `RawRow`).

    `instruction`, `input` and `output` are the last user turn, its input and the last assistant turn. `history` holds
    the turns before them, of the user and the assistant by turns, the user's first; it is empty in a row of one turn.
    """

    instruction: str
    input: str
    output: str
    file: str
    number: int
    system: str = ""
    history: tuple[Turn, ...] = ()
    split: str = ""  # the source's own
    group: str = ""  # what rows of one document have in common
    changes: tuple[Change, ...] = ()  # that reading made
    asks: AskedNumber | None = None  # the number that the answer must reach


class Schema:
    """Makes rows of raw ones, part by part, and keeps what the user is to be told of them.

    `bad` is called with each row that cannot be read, `left_out` with what a row held, its file, its number and the
    step for each conversation that has nothing to learn from.
    """

    def __init__(self, asked: Asked, bad: Callable[[BadRow], None], left_out: Callable[[Any, str, int, str], None]):
        self.asked, self.bad, self.left_out = asked, bad, left_out
        self.files: list[dict[str, Any]] = []
        self.columns: dict[str, int] = {}  # that are left out, and in how many rows each holds something
        self.turns = Counter()  # what was done to conversations, by step
        self._seen: set[str] = set()
        self._telling: dict[str, str] = {}

    def rows(self, part: Part, raw_rows: Iterable[RawRow | BadRow]) -> Iterator[Row]:
        """The rows of one part. Raises `UserError` where its columns are of no form, or of two."""
        raw_rows = iter(raw_rows)
        about: dict[str, Any] = {"file": part.name, "rows": 0, "split": part.split or None, "form": None, "columns": {}}
        self.files.append(about)
        peeked: list[RawRow | BadRow] = []
        sound = 0
        for raw in raw_rows:
            peeked.append(raw)
            sound += isinstance(raw, RawRow)
            if sound == PEEKED or (len(peeked) == MOST_PEEKED and sound):
                break
            if len(peeked) == MOST_PEEKED:  # so many bad rows are not held
                about["rows"] += self._all_bad(peeked)
                peeked.clear()
        if not sound:
            about["rows"] += self._all_bad(peeked)
            return
        some = [raw.fields for raw in peeked if isinstance(raw, RawRow)]
        columns = dict.fromkeys(column for fields in some for column in fields)
        labels = {name for name in columns if any(isinstance(fields.get(name), bool) for fields in some)}
        form = recognise(list(columns), self.asked, part.place, labels)
        about["form"] = form.title
        if looks_fixed(some, form):
            about["form"] += ", FinGPT or PIXIU: a fixed instruction, the question in the input"
        keys: tuple[str, ...] = ()
        others: list[str] = []
        numbers: dict[str, str] = {}
        for raw in itertools.chain(peeked, raw_rows):
            about["rows"] += 1
            if isinstance(raw, BadRow):
                self.bad(raw)
                continue
            if (now := tuple(raw.fields)) != keys:
                keys = now
                if not columns.keys() >= set(keys):
                    columns.update(dict.fromkeys(keys))
                    form = self._same(form, recognise(list(columns), self.asked, part.place), raw)
                numbers = number_columns(columns, self.asked.number_column, self.asked.leave_out)
                used = {*form.columns.values(), *numbers.values(), self.asked.group_column}
                others = [column for column in keys if column not in used]
                about["columns"] = form.columns | numbers
                if numbers and not about["form"].endswith(NUMBERED):
                    about["form"] += NUMBERED
                self._seen.update(keys)
            for column in others:
                self._count(column, raw)
            if (row := self._row(raw, form, part.split)) is not None and (row := self._with_number(row, raw, numbers)):
                yield row

    def _all_bad(self, rows: Iterable[BadRow]) -> int:
        rows = list(rows)
        for row in rows:
            self.bad(row)
        return len(rows)

    def problems(self) -> list[str]:
        """What is found out only after the last row: columns that may not be left out, and flags in vain."""
        problems = [
            f"{place}: the column '{column}' holds something that would be left out: {telling(column)}; "
            f"--leave_out {column} leaves it out"
            for column, place in self._telling.items()
        ]
        problems += [
            f"no column '{column}'{did_you_mean(column, self._seen)} that --leave_out names"
            for column in sorted(self.asked.leave_out - self._seen)
        ]
        return problems

    def _same(self, form: Form, other: Form, raw: RawRow) -> Form:
        if any(other.columns.get(name) != column for name, column in form.columns.items()):
            raise UserError(f"{raw.place}: rows before it are read as {form}, this one as {other}; choose with --form")
        return other

    def _count(self, column: str, raw: RawRow) -> None:
        value = raw.fields[column]
        self.columns.setdefault(column, 0)
        if value is TWICE or (value in NOTHING) or value != value:
            return
        self.columns[column] += 1
        if column not in self._telling and column not in self.asked.leave_out and telling(column):
            self._telling[column] = raw.place

    def _row(self, raw: RawRow, form: Form, split: str) -> Row | None:
        fields, problems = raw.fields, []
        group = self._group(fields)
        if form.turns is not None:
            return self._conversation(raw, form, split, group, lambda: (turns_of(fields.get(form.turns)), form.turns))
        instruction, output = fields.get(form.instruction), fields.get(form.output)
        if type(output) is not str or type(instruction) is not str or output[:2] == "[{":
            prompt, answer = _messages(instruction), _messages(output)
            if answer is not None:
                first = prompt if prompt is not None else [{"role": "user", "content": instruction}]
                return self._conversation(raw, form, split, group, lambda: (turns_of([*first, *answer]), form.output))
            instruction, output = text_of(instruction), text_of(output)
        texts = []
        for name, value in (
            ("instruction", instruction),
            ("input", text_of(fields.get(form.input), "")),
            ("output", output),
        ):
            column = getattr(form, name)
            if type(value) is not str:
                if value is TWICE:
                    raise UserError(f"{raw.file}: two columns are named '{column}', which holds the {name}; rename one")
                problems.append(_problem(name, column, "is null or missing" if value is None else
                                         f"is {type(value).__name__} ({str(value)[:40]}), not text"))  # fmt: skip
            elif not value.isascii() and (half := _half_a_pair(value)):
                problems.append(_problem(name, column, half))
            texts.append(value)
        system, history, changes = "", (), ()
        if form.system is not None and (system := text_of(fields.get(form.system), "")) and type(system) is not str:
            problems.append(_problem("system", form.system, f"is {type(system).__name__}, not text"))
        if form.history is not None and fields.get(form.history) not in NOTHING:
            try:
                turns = _sound(history_of(fields[form.history]))
                held = arranged(turns, system if type(system) is str else "")
                system, history = held.system, held.turns
                changes = self._changes(held, turns, form.history)
            except Unreadable as error:
                problems.append(_problem("history", form.history, str(error)))
            except Unfit as error:
                self._unfit(raw, str(error))
                return None
        if problems:
            self.bad(BadRow("; ".join(problems), fields, raw.file, raw.number, raw.unit))
            return None
        return Row(*texts, raw.file, raw.number, system, history, split, group, changes)

    def _conversation(
        self, raw: RawRow, form: Form, split: str, group: str, read: Callable[[], tuple[list[Turn], str]]
    ) -> Row | None:
        system = text_of(raw.fields.get(form.system), "") if form.system else ""
        try:
            turns, column = read()
            _sound(turns)
            if type(system) is not str:
                raise Unreadable(f"has a system text that is {type(system).__name__}, not text")
            held = arranged(turns, system)
        except Unreadable as error:
            name = form.turns or form.output
            self.bad(BadRow(f"{name} {error}", raw.fields, raw.file, raw.number, raw.unit))
            return None
        except Unfit as error:
            self._unfit(raw, str(error))
            return None
        changes = self._changes(held, turns, column)
        *history, asked, answer = held.turns
        return Row(asked.content, "", answer.content, raw.file, raw.number, held.system, tuple(history), split, group,
                   changes)  # fmt: skip

    def _changes(self, held: Conversation, turns: list[Turn], column: str) -> tuple[Change, ...]:
        if not held.changes:
            return ()
        self.turns.update(held.changes)
        before, after = ([turn._asdict() for turn in each] for each in (turns, held.turns))
        return tuple(Change(step, column, before, after) for step in held.changes)

    def _with_number(self, row: Row, raw: RawRow, columns: dict[str, str]) -> Row | None:
        try:
            number = read_number(raw.fields, columns, row.output) if columns else None
        except ValueError as error:
            self.bad(BadRow(str(error), raw.fields, raw.file, raw.number, raw.unit))
            return None
        return row if number is None else row._replace(asks=number)

    def _unfit(self, raw: RawRow, why: str) -> None:
        self.turns["turns"] += 1
        self.left_out(raw.fields, raw.file, raw.number, f"turns: {why}")

    def _group(self, fields: Mapping[str, Any]) -> str:
        if self.asked.group_column is None:
            return ""
        value = fields.get(self.asked.group_column)
        return "" if value in NOTHING else str(value)


def text_of(value: Any, null: Any = None) -> Any:
    """A value of a table as text: numbers as written, true and false so, NaN as nothing. Others as they are."""
    if type(value) is str:
        return value
    if value is None:
        return null
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return str(value) if isinstance(value, (int, str, decimal.Decimal)) else value


def _messages(value: Any) -> list | None:
    """The value as a list of messages, where it is one."""
    value = parsed(value)
    looks_so = isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
    return value if looks_so and all("role" in each or "from" in each for each in value) else None


def _problem(name: str, column: str | None, what: str) -> str:
    return f"{name} {what}" if column in (None, name) else f"{name} (column {column}) {what}"


def _sound(turns: list[Turn]) -> list[Turn]:
    for turn in turns:
        if not turn.content.isascii() and (half := _half_a_pair(turn.content)):
            raise Unreadable(half)
    return turns


def _half_a_pair(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds half a surrogate pair ({text[error.start]!a}), which is no character"
    return ""
