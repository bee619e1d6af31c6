"""Cleaning: small steps in a fixed order, each counted and each switchable by its name; every change is kept.

The steps that change a text are repeated until it no longer changes (mending the encoding can bare white space at an
end), so cleaning is idempotent. White space inside a text is left as it was written.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from finllm.data.schema import Change, Row
from finllm.errors import did_you_mean, raise_problems

PIECE = 1 << 20  # characters of a long text that are encoded at a time


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


# Steps that change a text --------------------------------------------------------------------------------------------

# What ftfy leaves as it is: no control character, no "&" that could begin an HTML entity, and beyond ASCII only the
# quotes, dashes and dots of English typography. Most rows are such, and looking is some 50 times faster than asking.
PLAIN = re.compile(r"[\t\n\x20-\x25\x27-\x7e‘’“”–—…]*")
_ENTITY = r"&[#]?\w{1,31};"
# Where an entity is meant as it is written: in code, in quotes, and where the talk is of them
_MEANT = re.compile(
    rf"""```|`[^`\n]*{_ENTITY} | ['"]{_ENTITY} | {_ENTITY}['"] | \w\([^)\n]*{_ENTITY} | [;{{}}][ \t]*$ | => | \w\.\w+\(
    | ^[ \t]*(?:def|class|import|from|for|if|while|return|var|let|const|function|public|private|SELECT)\b.*[:;{{(]
    | ^[ \t]*\#include | \b(?i:x?html|xml|entit(?:y|ies)|escap\w+|ampersands?|encod(?:e[sd]?|ing|ings))\b""",
    re.VERBOSE | re.MULTILINE,
)


def mend_unicode(text: str) -> str:
    """ftfy's repairs: mojibake, ligatures, control characters, line ends, NFC, and HTML entities outside code.

    Quotes stay curly and characters as wide as they were written.
    """
    if PLAIN.fullmatch(text):
        return text
    import ftfy  # not needed for plain text, nor by those who only ask for --help

    unescape = False if _MEANT.search(text) else "auto"
    return ftfy.fix_text(text, uncurl_quotes=False, fix_character_width=False, unescape_html=unescape)


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


# Who asks for something twice is right to get it so
ASKS_TO_REPEAT = re.compile(
    r"\b(?:repeat\w*|twice|two times|doubled?|again|copy|copies|copied|duplicat\w*)\b"
    r"|重复|两遍|两次|复述|繰り返|[二2]回",
    re.IGNORECASE,
)
MOST_REPEATED = 1 << 20  # characters: the words of a longer text would take ten times its memory
MIN_REPEATED_WORDS = 5  # "11", "bye bye" and a regular expression of two equal words are answers


def keep_one_half(text: str) -> str:
    """One half of a text that holds the same text twice; the halves are equal when white space is folded."""
    if len(text) > MOST_REPEATED:
        return text
    letters = "".join(text.split())
    half = len(letters) // 2
    if not letters or len(letters) % 2 or letters[:half] != letters[half:]:
        return text
    end = next(itertools.islice(re.finditer(r"\S", text), half - 1, None)).end()
    first, second = (re.sub(r"\s+", " ", each).strip() for each in (text[:end], text[end:]))
    return text[:end] if first == second and len(first.split(" ", MIN_REPEATED_WORDS)) >= MIN_REPEATED_WORDS else text


NEEDED = r"(?:[\s_-]*(?:is[\s_-]*)?(?:required|needed|necessary|given|provided))?"
INPUT_PLACEHOLDER = re.compile(rf"[\W_]*(?:no[\s_-]*input{NEEDED}|n[/.]a|(?-i:NA)|none|null|nan)[\W_]*", re.IGNORECASE)
# "N/A" is no placeholder here: it may be the right answer.
OUTPUT_PLACEHOLDER = re.compile(rf"[\W_]*no[\s_-]*(?:in|out)put{NEEDED}[\W_]*", re.IGNORECASE)
# Generated answers that begin with the tag for none, or run on into a further example
NO_OUTPUT = re.compile(r"\s*<\s*no[\s_-]*output\b", re.IGNORECASE)
RUNS_ON = re.compile(r"^\W*(?:\d+\W*)?input\W*<\s*no[\s_-]*(?:in|out)put\b", re.IGNORECASE | re.MULTILINE)


def empty_placeholder(text: str) -> str:
    return "" if text and INPUT_PLACEHOLDER.fullmatch(text) else text


ALL = ("instruction", "input", "output", "system", "history")
CHANGES: dict[str, tuple[Callable[[str], str], tuple[str, ...]]] = {  # and the fields that each looks at
    "strip": (str.strip, ALL),
    "csv_quotes": (unquote_csv, ALL),
    "unicode": (mend_unicode, ALL),
    "repeated_halves": (keep_one_half, ("output",)),
    "input_placeholder": (empty_placeholder, ("input",)),
}
Steps = list[tuple[str, Callable[[str], str]]]


def mend_question(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that a user asks, its texts as the same texts would have been cleaned in training."""
    mended = {
        field: _mended(row[field], field, _steps_of(field, ()), [])
        for field in ("instruction", "input", "system")
        if row.get(field)
    }
    if row.get("history"):
        steps = _steps_of("history", ())
        turns = [{**turn, "content": _mended(turn["content"], "history", steps, [])} for turn in row["history"]]
        mended["history"] = turns
    return {**row, **mended}


def _steps_of(field: str, skip: Collection[str]) -> Steps:
    return [(step, change) for step, (change, fields) in CHANGES.items() if field in fields and step not in skip]


def _mended(text: str, field: str, steps: Steps, changes: list[Change]) -> str:
    while True:  # ends: every step takes characters away, or maps them to ones that no step changes
        before = text
        for step, change in steps:
            after = change(text)
            if after != text:
                changes.append(Change(step, field, text, after))
                text = after
        if text == before:
            return text


# Steps that drop a row -----------------------------------------------------------------------------------------------


def no_answer(row: Row) -> bool:
    answer = row.output
    placeholder = OUTPUT_PLACEHOLDER.fullmatch(answer) or NO_OUTPUT.match(answer) or RUNS_ON.search(answer)
    return not answer.strip() or bool(placeholder)


def is_echo(row: Row) -> bool:
    """The question, exactly: in other case or white space it may be what was asked for, and so may the input."""
    return bool(row.output) and row.output == row.instruction


DROPS: dict[str, Callable[[Row], bool]] = {
    "empty_instruction": lambda row: not row.instruction.strip(),
    "empty_output": no_answer,
    "echo": is_echo,
}
DUPLICATES = "duplicates"  # the one step that looks at more than one row; the first of equal rows is kept

STEPS = (*CHANGES, *DROPS, DUPLICATES)


class Cleaning:
    """All steps but those in `skip`, over rows as they come, with counts of what each step did.

    `changed` is called with each row that is kept, as it was read, and what was changed in it.
    """

    def __init__(self, skip: Collection[str] = (), changed: Callable[[Row, list[Change]], None] = lambda *_: None):
        check_steps(skip)
        self.skip, self.tell = skip, changed
        self.changed, self.dropped = dict.fromkeys(STEPS, 0), dict.fromkeys(STEPS, 0)
        self.steps = {field: _steps_of(field, skip) for field in ALL}

    def clean(self, rows: Iterable[Row]) -> Iterator[Row | Rejected]:
        """Each row, cleaned, or the rejection of it."""
        drops = [(step, drop) for step, drop in DROPS.items() if step not in self.skip]
        seen: set[int] = set()  # a 128-bit hash of each row, so that a million take some 80 MB
        for original in rows:
            row, changes = self._changed(original)
            for step in {change.step for change in changes}:
                self.changed[step] += 1
            reason = next((step for step, drop in drops if drop(row)), None)
            if reason is None and DUPLICATES not in self.skip:
                key = _hash_of(row)
                reason = DUPLICATES if key in seen else None
                seen.add(key)
            if reason is None:
                if changes or original.changes:
                    self.tell(original, [*original.changes, *changes])
                yield row
            else:
                self.dropped[reason] += 1
                yield Rejected(original, reason)

    def _changed(self, row: Row) -> tuple[Row, list[Change]]:
        changes: list[Change] = []
        steps = self.steps
        instruction = _mended(row.instruction, "instruction", steps["instruction"], changes)
        input = _mended(row.input, "input", steps["input"], changes) if row.input else ""
        output = _mended(row.output, "output", self._steps_of_answer(row), changes)
        system, history = row.system, row.history
        if system:
            system = _mended(system, "system", steps["system"], changes)
        if history:
            history = tuple(
                turn._replace(content=_mended(turn.content, "history", steps["history"], changes)) for turn in history
            )
        if changes:
            row = row._replace(instruction=instruction, input=input, output=output, system=system, history=history)
        return row, changes

    def _steps_of_answer(self, row: Row) -> Steps:
        steps = self.steps["output"]
        if ASKS_TO_REPEAT.search(row.instruction) or ASKS_TO_REPEAT.search(row.input):
            return [step for step in steps if step[0] != "repeated_halves"]
        return steps

    def counts(self) -> list[StepCount]:
        """What each step did so far, in order."""
        return [StepCount(step, step not in self.skip, self.changed[step], self.dropped[step]) for step in STEPS]


def _hash_of(row: Row) -> int:
    own = f"{row.split}\0" if row.split else ""  # what stands in two splits of the source is the split's business
    return int.from_bytes(digested(hashlib.blake2b(own.encode(), digest_size=16), row).digest())


def digested(digest: hashlib._Hash, row: Row) -> hashlib._Hash:
    """The digest with all that a row says, which tells it from every other row; parts are parted by zero bytes."""
    parts: Iterable[str] = row[:3]
    if row.system or row.history:
        parts = itertools.chain(parts, (row.system,), *row.history)
    between = b""
    for part in parts:
        digest.update(between)
        for piece in pieces_of(part):
            digest.update(piece.encode())
        between = b"\0"
    return digest


def pieces_of(text: str) -> Iterable[str]:
    """A text in pieces that may be encoded without taking its memory once more; most are one."""
    if len(text) <= PIECE:
        return (text,)
    return (text[start : start + PIECE] for start in range(0, len(text), PIECE))


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
