"""Raw rows to rows of instruction, input and output: columns renamed, types checked, other columns dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from finllm.data.rows import RawRow
from finllm.errors import UserError, did_you_mean, raise_problems

FIELDS = ("instruction", "input", "output")
COLUMNS = {field: field for field in FIELDS}
MAX_LISTED = 20


class Turn(NamedTuple):
    """One turn of a conversation, as `Row.history` holds it."""

    role: str  # "user" or "assistant"
    content: str


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


def check_rows(raw_rows: Iterable[RawRow], columns: Mapping[str, str], name: str) -> Iterator[Row]:
    """Rows with the three fields that `columns` maps to the source's own column names, one after the other.

    The column of `input` may be absent when it has its default name, and null counts as empty. Everything else that is
    not text is one `UserError` with file, row and field, raised after the last row; the first 20 problems are listed
    and all are counted.
    """
    unknown = sorted(set(columns) ^ set(FIELDS))
    assert not unknown, f"columns must map {FIELDS}, not {unknown}"
    if len(set(columns.values())) < len(FIELDS):
        raise UserError(f"two fields would come from one column: {', '.join(f'{f} from {columns[f]}' for f in FIELDS)}")
    found: dict[str, None] = {}
    listed, count, raw = [], 0, None
    for raw in raw_rows:
        found.update(dict.fromkeys(raw.fields))
        texts, sound = [], True
        for field in FIELDS:
            value = raw.fields.get(columns[field])
            if value is None and field == "input":
                value = ""
            if problem := _problem(value):
                sound, count = False, count + 1
                renamed = "" if columns[field] == field else f" (column {columns[field]})"
                if count <= MAX_LISTED:
                    listed.append(f"{raw.place}: {field}{renamed} {problem}")
            texts.append(value)
        if sound:
            yield Row(*texts, raw.file, raw.number)
    if raw is not None:
        _check_columns(list(found), columns, name)
    if count > MAX_LISTED:
        raise UserError(f"{count} problems in {name}: {'; '.join(listed)}; and {count - MAX_LISTED} more")
    raise_problems(listed, name)


def _check_columns(found: Sequence[str], columns: Mapping[str, str], name: str) -> None:
    missing = [f for f in FIELDS if columns[f] not in found and not (f == "input" and columns[f] == "input")]
    raise_problems(
        (
            f"no column '{columns[field]}'{did_you_mean(columns[field], found)}; name the one that holds the {field} "
            f"with --{field}_column"
            for field in missing
        ),
        f"{name}, which has the columns {', '.join(found) or '(none)'}",
    )


def _problem(value: object) -> str | None:
    if value is None:
        return "is null or missing"
    if not isinstance(value, str):
        return f"is {type(value).__name__} ({str(value)[:40]}), not text"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"holds half a surrogate pair ({value[error.start]!a}), which is no character"
    return None
