"""study.md: a study for a pull request, made from what the view of a report shows."""

from __future__ import annotations

from typing import Any

from eval.report.numbers import count, decimals, duration, memory
from eval.report.tables import cell


def markdown(content: dict[str, Any], questions: int) -> str:
    """study.md, for a pull request."""
    heads = [
        "rank",
        "method",
        "bits per byte",
        "spread",
        "rate",
        "good rates",
        "trainable",
        "train time",
        "peak memory",
        "forgetting",
    ]
    lines = [heads, ["--:", ":--", *["--:"] * (len(heads) - 2)]]
    for row in content["rows"]:
        rank = (
            "–"
            if row["low"] is None
            else str(row["low"])
            if row["low"] == row["high"]
            else f"{row['low']}–{row['high']}"
        )
        low, high = row["interval"]
        width = "–" if row["width"] is None else " to ".join(dict.fromkeys(f"{rate:g}" for rate in row["width"]))
        lines.append([
            rank, cell(row["name"]), f"{row['bits_per_byte']:.3f} ({low:.3f} to {high:.3f})",
            decimals(row["spread"], 4), "–" if row["rate"] is None else f"{row['rate']:g}", width,
            count(row["trainable_parameters"]), duration(row["train_seconds"]), memory(row["peak_memory_bytes"]),
            decimals(row["forgetting"], 4),
        ])  # fmt: skip
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    held = content["equal_seconds"]
    equal = [_equal_seconds(held, names) for names in content["groups"] if held]
    settings = "\n".join(f"**{cell(name)}**\n\n```yaml\n{text}```\n" for name, text in content["chosen"].items())
    return "\n\n".join([
        " ".join(map(cell, content["findings"])),
        table,
        f"{content['budget']['steps']} steps each, rates searched on validation loss with seed {content['seeds'][0]}, "
        f"{len(content['seeds'])} seeds at the chosen rate, {questions:,} test questions, {content['trainings']} "
        f"trainings in {duration(content['seconds'])}. Good rates are those within one standard error of the best. "
        "Ranks hold for all rows at once, 95 % sure, other seeds and questions drawn. Forgetting is KL(base ‖ tuned) "
        "in nats a token on texts that the base model wrote.",
        *(f"**After equal seconds**, validation loss {first}" for first in equal[:1]),
        *(f"Of another tokenizer, whose tokens are not those above, {more}" for more in equal[1:]),
        "**Chosen settings**, beside what all methods share:\n\n" + settings,
    ])  # fmt: skip


def _equal_seconds(held: dict[str, dict[str, Any]], names: list[str]) -> str:
    """Methods of one tokenizer, that of the least loss first."""
    lines = [
        f"- {cell(name)}: {held[name]['validation_loss']:.4f} nats a token, at step {held[name]['step']:.0f}"
        for name in sorted(names, key=lambda name: held[name]["validation_loss"])
    ]
    return f"after {duration(held[names[0]]['seconds'])} of training:\n\n" + "\n".join(lines)
