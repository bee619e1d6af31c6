"""Mistakes that a user can mend, and how a command answers them. This module imports nothing else of the project."""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """A mistake that the user can mend. The message says value, place, limit and fix; commands exit with status 2."""


def raise_problems(problems: Iterable[str], where: str) -> None:
    """Raise one `UserError` that names every problem, or return when there is none."""
    problems = list(problems)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {where}: "
        raise UserError(count + "; ".join(problems))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'lora_r'?)` when a known word is close to this one, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`: a `UserError` is printed to stderr, not traced, and ends the process with status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK:
            raise
        print(
            f"error: {error.filename or 'a file'} cannot be written: {error.strerror}; nothing is left half-written; "
            f"{DISK[error.errno]}, then give the same command again, with --resume auto where it is a training run",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


DISK = {  # what the disk may answer, and what helps
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space or have the quota raised",
    errno.EFBIG: "have the limit on a file's size raised (ulimit -f)",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
}
