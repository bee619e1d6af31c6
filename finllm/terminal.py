"""What goes to a terminal. Texts come from datasets, models and folders of others: they are text and never markup, and
what a terminal would obey or hide (escapes, bidirectional overrides, zero-width characters) is shown as its code.

Nothing of this project prints but through `say`, a `Terminal` or finllm/errors.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from finllm.errors import visible


def say(*texts: object, **how: Any) -> None:
    """`print`, of visible text."""
    print(*(visible(str(text)) for text in texts), **how)


class Parser(argparse.ArgumentParser):
    """argparse's own, with flags between the arguments that have none; what it does not know it repeats as text."""

    _mixing = False

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        args = sys.argv[1:] if args is None else [*args]
        nested = any(isinstance(action, argparse._SubParsersAction) for action in self._actions)
        if self._mixing or nested or "--" in args:  # after which nothing is a flag; intermixed parsing loses that
            return super().parse_known_args(args, namespace)
        self._mixing = True  # argparse's own intermixed parsing comes back here
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False

    def error(self, message: str) -> NoReturn:
        super().error(visible(message, lines=False))


class Terminal(Console):
    """A console that takes every text as it is: no markup, no emoji codes, no colours by guess, all of it visible."""

    def __init__(self, **settings: Any):
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **settings})

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(visible(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # A control segment moves the cursor of a progress bar: rich made it, no text can.
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class _Description(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(visible(task.description, lines=False))


def progress(**settings: Any) -> Progress:
    """rich's progress bar, its description text and no markup."""
    columns = (_Description(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, **{"console": Terminal(), **settings})
