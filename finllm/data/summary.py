"""What a dataset dir holds, as tables on stdout."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from finllm.data.dataset_dir import DatasetDir
from finllm.data.rows import track
from finllm.data.split import SPLITS
from finllm.text.prompts import build_prompt
from finllm.text.words import pieces

PERCENTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}
BATCH = 1000  # texts given to count_tokens at once

CountTokens = Callable[[list[str]], list[int]]


def print_summary(dataset: DatasetDir, count_tokens: CountTokens | None = None) -> None:
    """Print rows by cleaning step and by split, and lengths of prompts and responses (all splits together).

    Lengths are in words (finllm/text/words.py) and, with `count_tokens`, in tokens; EOS is not counted.
    """
    from rich.table import Table

    from finllm.terminal import Terminal

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

    rows_read, rejected = manifest["source"]["rows"], manifest["rejected"]
    console.print(
        f"{dataset.path}: {rows_read:,} rows read from {manifest['source']['name']}, {rejected:,} dropped, "
        f"{rows_read - rejected:,} kept",
        soft_wrap=True,
    )
    for made in (cleaning, splits, lengths):
        console.print(made)


def percentile(values: list[int], share: float) -> int:
    """The value at `share` (0 to 1) of the sorted values: the nearest one, so a length that a row really has."""
    return sorted(values)[round(share * (len(values) - 1))]


def _lengths(dataset: DatasetDir, count_tokens: CountTokens | None) -> list[tuple[str, list[int]]]:
    """Of all rows, which are read a batch at a time: each length's name and its values."""
    counts: dict[str, CountTokens] = {"words": lambda texts: [len(pieces(text)) for text in texts]}
    if count_tokens:
        counts["tokens"] = count_tokens
    lengths: dict[str, list[int]] = {f"{text}, {unit}": [] for unit in counts for text in ("prompt", "response")}
    total = sum(dataset.manifest["splits"][split]["rows"] for split in SPLITS)
    rows = iter(track((row for split in SPLITS for row in dataset.each_row(split)), "measuring", total))
    while batch := list(itertools.islice(rows, BATCH)):
        texts = {
            "prompt": [build_prompt(row["instruction"], row["input"]) for row in batch],
            "response": [row["output"] for row in batch],
        }
        for unit, count in counts.items():
            for text, column in texts.items():
                lengths[f"{text}, {unit}"] += count(column)
    return list(lengths.items())
