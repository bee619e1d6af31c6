"""What a dataset dir holds, as tables on stdout."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from finllm.data.dataset_dir import DatasetDir
from finllm.data.rows import track
from finllm.data.split import SPLITS
from finllm.errors import shortened
from finllm.terminal import Terminal
from finllm.text.prompts import build_prompt
from finllm.text.words import count_of_pieces, pieces

PERCENTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}
MOST_LINES = 10  # of files that are shown
TURN_STEPS = {
    "joined_turns": "turns of one role that followed each other joined",
    "open_end": "last turns of the user that nobody answers left out",
    "turns": "rows dropped whose turns have nothing to learn from",
}
LONG = 1 << 20  # characters
BATCH = 1000  # texts given to count_tokens at once

CountTokens = Callable[[list[str]], list[int]]


def print_summary(dataset: DatasetDir, count_tokens: CountTokens | None = None) -> None:
    """Print rows by cleaning step and by split, and lengths of prompts and responses (all splits together).

    Lengths are in words (finllm/text/words.py) and, with `count_tokens`, in tokens; EOS is not counted.
    """
    from rich.table import Table

    console = Terminal()
    manifest = dataset.manifest

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            made.add_column(column, justify="right" if index else "left")
        return made

    cleaning = table("Cleaning", "step", "rows changed", "rows dropped")
    for step in manifest["cleaning"]:
        counts = (f"{step['changed']:,}", f"{step['dropped']:,}") if step["enabled"] else ("skipped", "skipped")
        cleaning.add_row(step["step"], *counts)

    splits = table("Splits", "split", "rows", "distinct questions")
    for name in SPLITS:
        splits.add_row(name, f"{manifest['splits'][name]['rows']:,}", f"{manifest['splits'][name]['questions']:,}")

    lengths = table("Lengths", "text", *PERCENTILES)
    for name, values in _lengths(dataset, count_tokens):
        lengths.add_row(name, *(f"{percentile(values, share):,}" for share in PERCENTILES.values()))

    print_reading(dataset, console)
    for made in (cleaning, splits, lengths):
        console.print(made)


def print_reading(dataset: DatasetDir, console: Terminal) -> None:
    """Print what was read and as what, what was left alone or out, and an example of each change."""
    for line in _reading(dataset):
        console.print(line, soft_wrap=True)


def _reading(dataset: DatasetDir) -> Iterator[str]:
    manifest = dataset.manifest
    rows_read, rejected = manifest["source"]["rows"], manifest["rejected"]
    files = manifest.get("files", [])  # a dataset dir of an earlier version names none
    for form, each in itertools.groupby(files, key=lambda file: (file["form"], file["columns"])):
        columns = ", ".join(f"{name} from '{column}'" for name, column in form[1].items() if name != column)
        yield f"read as: {form[0] or 'nothing, for it has no sound row'}" + (f" ({columns})" if columns else "")
        yield from _some(
            f"  {file['file']}: {file['rows']:,} rows" + (f", the {file['split']} split" if file["split"] else "")
            for file in each
        )
    if (config := manifest["source"].get("config")) and (others := manifest["source"]["configs"]):
        yield f"config: {config}, of {', '.join(others)}"
    if left := manifest.get("left_alone"):
        yield f"files left alone: {len(left):,}"
        yield from _some(f"  {file['file']}: {file['reason']}" for file in left)
    if columns := manifest.get("left_out"):
        held = (f"{column} ({rows:,})" for column, rows in columns.items())
        yield f"columns left out, and how many rows hold something there: {', '.join(held)}"
    if bad := manifest.get("bad_rows"):
        yield f"bad rows left out: {bad:,}"
    for step, rows in manifest.get("conversations", {}).items():
        yield f"conversations, {TURN_STEPS[step]}: {rows:,}"
    for names, told in manifest.get("shared_questions", {}).items():
        kept = "kept" if told["kept"] else f"left out of {names.split()[0]}"
        yield f"{told['questions']:,} questions ({told['rows']:,} rows) stand in {names}, {kept}:"
        yield from (f"  {shortened(question)}" for question in told["some"])
    if used := manifest.get("fractions_used"):
        yield (
            f"few questions: so that each split has one, test_fraction is {used['test']:.3g} and validation_fraction "
            f"{used['validation']:.3g}"
        )
    for step, change in manifest.get("examples", {}).items():
        yield f"{step}, {change['file']}:{change['line']}: {change['before']!r} → {change['after']!r}"
    yield (
        f"{dataset.path}: {rows_read:,} rows read from {manifest['source']['name']}, {rejected:,} dropped, "
        f"{rows_read - rejected:,} kept"
    )


def _some(lines: Iterable[str]) -> Iterator[str]:
    """The first of many lines, and how many more there are; the manifest has all."""
    lines = list(lines)
    yield from lines[:MOST_LINES]
    if len(lines) > MOST_LINES:
        yield f"  and {len(lines) - MOST_LINES:,} more, see manifest.json"


def percentile(values: list[int], share: float) -> int:
    """The value at `share` (0 to 1) of the sorted values: the nearest one, so a length that a row really has."""
    return sorted(values)[round(share * (len(values) - 1))]


def _words_in(text: str) -> int:
    """How many pieces a text has; of a very long one they are not held."""
    return len(pieces(text)) if len(text) < LONG else count_of_pieces(text)


def _lengths(dataset: DatasetDir, count_tokens: CountTokens | None) -> list[tuple[str, list[int]]]:
    """Of all rows, which are read a batch at a time: each length's name and its values."""
    counts: dict[str, CountTokens] = {"words": lambda texts: list(map(_words_in, texts))}
    if count_tokens:
        counts["tokens"] = count_tokens
    lengths: dict[str, list[int]] = {f"{text}, {unit}": [] for unit in counts for text in ("prompt", "response")}
    total = sum(dataset.manifest["splits"][split]["rows"] for split in SPLITS)
    rows = iter(track((row for split in SPLITS for row in dataset.each_row(split)), "measuring", total))
    while batch := list(itertools.islice(rows, BATCH)):
        texts = {
            "prompt": [_prompt(row) for row in batch],
            "response": [_response(row) for row in batch],
        }
        for unit, count in counts.items():
            for text, column in texts.items():
                lengths[f"{text}, {unit}"] += count(column)
    return list(lengths.items())


def _prompt(row: dict[str, Any]) -> str:
    """What a row asks: in a conversation all that the system and the user say."""
    if not row.get("history") and not row.get("system"):
        return build_prompt(row["instruction"], row["input"])
    asked = [turn["content"] for turn in row["history"] if turn["role"] == "user"]
    return "\n".join(filter(None, (row["system"], *asked, row["instruction"], row["input"])))


def _response(row: dict[str, Any]) -> str:
    """What the assistant says, in all its turns."""
    answers = [turn["content"] for turn in row.get("history", ()) if turn["role"] == "assistant"]
    return "\n".join((*answers, row["output"])) if answers else row["output"]
