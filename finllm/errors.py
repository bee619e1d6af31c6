"""Mistakes that a user can mend, and how a command answers them. This module imports nothing else of the project."""

from __future__ import annotations

import difflib
import errno
import functools
import gc
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any


class UserError(ValueError):
    """A mistake that the user can mend. The message says value, place, limit and fix; commands exit with status 2.

    `lines` are shown below it, each on a line of its own. `problems` are those that the message counts, each by itself.
    """

    def __init__(self, *message: object, lines: Iterable[str] = (), problems: Iterable[str] = ()):
        super().__init__(*message)
        self.lines = list(lines)
        self.problems = list(problems) or [str(self)]


class Gathering:
    """`with gathering:` holds a `UserError` of its block back in `errors`, and goes on after the block."""

    def __init__(self) -> None:
        self.errors: list[UserError] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UserError):
            self.errors.append(error)
        return isinstance(error, UserError)

    def raise_all(self) -> None:
        """Raise what was held back as one `UserError`, the only one as it was; return where there is none."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            lines = [line for error in self.errors for line in error.lines]
            raise UserError("; ".join(map(str, self.errors)), lines=lines)


class Once:
    """`once(function, …)` calls it once for the same arguments; a `UserError` that it raised is raised again."""

    def __init__(self) -> None:
        self._held: dict[tuple[Any, ...], Any] = {}

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        key = (function, *arguments)
        if key not in self._held:
            try:
                self._held[key] = function(*arguments)
            except UserError as error:
                self._held[key] = error
        if isinstance(self._held[key], UserError):
            raise self._held[key]
        return self._held[key]


MANY = 5  # problems of one kind that are named; there may be one for each row


def raise_problems(problems: Iterable[str], where: str, most: int | None = None, fix: str = "") -> None:
    """Raise one `UserError` that counts and names every problem, or `most` of them; return when there is none.

    `fix` comes last, where one is for all of them.
    """
    problems = list(problems)
    if problems:
        named = problems if most is None else at_most(problems, most)
        count = f"{len(problems):,} problem{'s' if len(problems) > 1 else ''} in {where}: "
        raise UserError("; ".join([count + named[0], *named[1:], *([fix] if fix else [])]), problems=problems)


def at_most(problems: list[str], most: int = MANY) -> list[str]:
    """The first problems, and how many more there are."""
    return problems if len(problems) <= most else [*problems[:most], f"and {len(problems) - most:,} more"]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'lora_r'?)` when a known word is close to this one, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def shortened(value: object, most: int = 80) -> str:
    """`repr` of a value as a message shows it: what is long is cut in its middle."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 4 :]}"


# What a terminal obeys, hides or reads backwards: controls (but line feed and tab), soft hyphens, joiners, fillers and
# other characters without width, bidirectional marks and overrides, separators, halves of surrogate pairs, tags
_HIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# After these, joiners and variation selectors are spelling: scripts from Arabic to Mongolian, pictures
_JOINED = "\u0600-\u0dff\u1000-\u109f\u1780-\u18af\u203c-\u3299\u4e00-\u9fff\U0001f000-\U0001faff"
_SPELLING = f"[\u200c\u200d](?<=[{_JOINED}\ufe0f].)|[\ufe00-\ufe0f](?<=[{_JOINED}\u200d#*0-9\u00a9\u00ae].)"
_ESCAPED = re.compile(f"(?!{_SPELLING})[{_HIDDEN}]")


def visible(text: str, lines: bool = True) -> str:
    """Text as a terminal may be given it: what it would obey or hide stands as its code, `\\x1b`, `\\u202e`.

    Without `lines` a line feed does too, so that the text stays on one line.
    """
    shown = _ESCAPED.sub(lambda found: _code(found[0]), text)
    return shown if lines else shown.replace("\n", "\\n")


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"


@functools.cache
def _keep_what_was_imported() -> None:
    """Once: it lives as long as the process, and is half a million objects that a collection would look through."""
    gc.freeze()


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`: a `UserError` is printed to stderr, not traced, and ends the process with status 2."""
    _keep_what_was_imported()
    try:
        main()
    except UserError as error:
        for line in (f"error: {_bounded(str(error))}", *(f"  {_bounded(line)}" for line in error.lines)):
            print(visible(line, lines=False), file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK:
            raise
        place = visible(str(error.filename or "a file"), lines=False)
        print(
            f"error: {place} cannot be written: {error.strerror}; nothing is left half-written; "
            f"{DISK[error.errno]}, then give the same command again, with --resume auto where it is a training run",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _bounded(message: str) -> str:
    """A message that quotes what a file holds may be as long as the file: its middle is left out."""
    return message if len(message) <= 4000 else f"{message[:3000]} … {message[-900:]}"


DISK = {  # what the disk may answer, and what helps
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space or have the quota raised",
    errno.EFBIG: "have the limit on a file's size raised (ulimit -f)",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
}
