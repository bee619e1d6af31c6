"""Cleaning: small steps in a fixed order, each counted and each switchable by its name.

The steps that change a row are repeated until it no longer changes (mending the encoding can bare white space at an
end), so cleaning is idempotent. White space inside a text is left as it was written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from finllm.data.schema import Row, Turn
from finllm.errors import did_you_mean, raise_problems


class StepCount(NamedTuple):
    """What one step did, in rows."""

    step: str
    enabled: bool
    changed: int
    dropped: int


class Rejected(NamedTuple):
    """A dropped row, as it was read, and the step that dropped it."""

    row: Row
    reason: str


# Steps that change a row ---------------------------------------------------------------------------------------------

# What ftfy leaves as it is: no byte outside ASCII that could be mis-decoded, no control character and no "&" that could
# begin an HTML entity. Most rows are such, and looking is some 50 times faster than asking ftfy.
PLAIN = re.compile(r"[\t\n\x20-\x25\x27-\x7e]*")


def _in_every_field(change: Callable[[str], str]) -> Callable[[Row], Row]:
    def change_row(row: Row) -> Row:
        return row._replace(
            instruction=change(row.instruction),
            input=change(row.input),
            output=change(row.output),
            system=change(row.system),
            history=tuple(Turn(turn.role, change(turn.content)) for turn in row.history),
        )

    return change_row


def mend_unicode(text: str) -> str:
    """ftfy's repairs: mojibake, HTML entities, curly quotes made straight, ligatures, control characters, NFC."""
    if PLAIN.fullmatch(text):
        return text
    import ftfy  # not needed for plain text, nor by those who only ask for --help

    return ftfy.fix_text(text)


def unquote_csv(text: str) -> str:
    """A text that kept its CSV quoting: `"He said ""no""."` → `He said "no".`

    Taken as such only when a quote opens it and every run of quotes inside is even. Programs that open with a
    triple-quoted comment have an odd run inside, or none, and stay.
    """
    if not text.startswith('"') or '""' not in text:
        return text
    runs = [match.span() for match in re.finditer('"+', text)]
    lengths = [end - start for start, end in runs]
    closed = runs[-1][1] == len(text) and lengths[-1] % 2 == 1
    inside = lengths[1:-1] if closed else lengths[1:]
    if lengths[0] % 2 == 0 or not inside or any(length % 2 for length in inside):
        return text
    return (text[1:-1] if closed else text[1:]).replace('""', '"')


MIN_REPEATED_WORDS = 5  # "11", "bye bye" and a regular expression of two equal words are answers


def keep_one_half(text: str) -> str:
    """One half of a text that holds the same text twice; the halves are equal when white space is folded."""
    letters = "".join(text.split())
    half = len(letters) // 2
    if not letters or len(letters) % 2 or letters[:half] != letters[half:]:
        return text
    ends = [match.end() for match in re.finditer(r"\S", text)]
    first, second = text[: ends[half - 1]], text[ends[half - 1] :]
    words = first.split()
    return first if len(words) >= MIN_REPEATED_WORDS and words == second.split() else text


NEEDED = r"(?:[\s_-]*(?:is[\s_-]*)?(?:required|needed|necessary|given|provided))?"
INPUT_PLACEHOLDER = re.compile(rf"[\W_]*(?:no[\s_-]*input{NEEDED}|n[/.]a|(?-i:NA)|none|null|nan)[\W_]*", re.IGNORECASE)
OUTPUT_PLACEHOLDER = re.compile(rf"[\W_]*(?:no[\s_-]*(?:in|out)put{NEEDED}|n[/.]a)[\W_]*", re.IGNORECASE)
# Generated answers that hold the tag say that there is none, or run on into further instructions.
PLACEHOLDER_TAG = re.compile(r"<\s*no[\s_-]*(?:in|out)put\b", re.IGNORECASE)


def empty_placeholder(row: Row) -> Row:
    return row._replace(input="") if row.input and INPUT_PLACEHOLDER.fullmatch(row.input) else row


CHANGES: dict[str, Callable[[Row], Row]] = {
    "strip": _in_every_field(str.strip),
    "csv_quotes": _in_every_field(unquote_csv),  # before the next: curly quotes made straight would hide the damage
    "unicode": _in_every_field(mend_unicode),
    "repeated_halves": lambda row: row._replace(output=keep_one_half(row.output)),
    "input_placeholder": empty_placeholder,
}

# Steps that drop a row -----------------------------------------------------------------------------------------------


def no_answer(row: Row) -> bool:
    answer = row.output
    return not answer.strip() or bool(OUTPUT_PLACEHOLDER.fullmatch(answer) or PLACEHOLDER_TAG.search(answer))


def is_echo(row: Row) -> bool:
    """Exactly equal: an answer that differs in case or white space may be what was asked for."""
    return bool(row.output) and row.output in (row.input, row.instruction)


DROPS: dict[str, Callable[[Row], bool]] = {
    "empty_instruction": lambda row: not row.instruction.strip(),
    "empty_output": no_answer,
    "echo": is_echo,
}
DUPLICATES = "duplicates"  # the one step that looks at more than one row; the first of equal rows is kept

STEPS = (*CHANGES, *DROPS, DUPLICATES)


class Cleaning:
    """All steps but those in `skip`, over rows as they come, with counts of what each step did."""

    def __init__(self, skip: Collection[str] = ()):
        check_steps(skip)
        self.skip = skip
        self.changed, self.dropped = dict.fromkeys(STEPS, 0), dict.fromkeys(STEPS, 0)

    def clean(self, rows: Iterable[Row]) -> Iterator[Row | Rejected]:
        """Each row, cleaned, or the rejection of it."""
        changes = [(step, change) for step, change in CHANGES.items() if step not in self.skip]
        drops = [(step, drop) for step, drop in DROPS.items() if step not in self.skip]
        seen: set[int] = set()  # a 128-bit hash of each row, so that a million take some 80 MB
        for original in rows:
            row, steps_that_changed = _change(original, changes)
            for step in steps_that_changed:
                self.changed[step] += 1
            reason = next((step for step, drop in drops if drop(row)), None)
            if reason is None and DUPLICATES not in self.skip:
                key = _hash_of(row)
                reason = DUPLICATES if key in seen else None
                seen.add(key)
            if reason is None:
                yield row
            else:
                self.dropped[reason] += 1
                yield Rejected(original, reason)

    def counts(self) -> list[StepCount]:
        """What each step did so far, in order."""
        return [StepCount(step, step not in self.skip, self.changed[step], self.dropped[step]) for step in STEPS]


def _hash_of(row: Row) -> int:
    return int.from_bytes(hashlib.blake2b(text_of(row).encode(), digest_size=16).digest())


def text_of(row: Row) -> str:
    """All that a row says, as one text that tells it from every other row."""
    texts = "\0".join(row[:3])
    if row.system or row.history:
        texts = "\0".join((texts, row.system, *(text for turn in row.history for text in turn)))
    return texts


def check_steps(names: Iterable[str]) -> None:
    """Refuse names that are no step."""
    raise_problems(
        (
            f"unknown step '{name}'{did_you_mean(name, STEPS)}; known are {', '.join(STEPS)}"
            for name in names
            if name not in STEPS
        ),
        "skip_cleaning",
    )


def _change(row: Row, changes: list[tuple[str, Callable[[Row], Row]]]) -> tuple[Row, set[str]]:
    steps: set[str] = set()
    while True:  # ends: every step takes characters away, or maps them to ones that no step changes
        before = row
        for step, change in changes:
            after = change(row)
            if after != row:
                steps.add(step)
                row = after
        if row == before:
            return row, steps
