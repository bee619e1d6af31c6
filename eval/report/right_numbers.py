"""How many answers reach their number, beside answers without thought; and every two models compared."""

from __future__ import annotations

from typing import Any

from eval.evaluated import Run
from eval.report.numbers import percentage
from eval.report.tables import p_text, table_of
from eval.results import NUMBER_METRICS
from eval.statistics.comparison import ALPHA, compare_numbers

HEADS = {
    "number_right": "right",
    "number_close": "within 1 %",
    "number_right_bare": "right, % left out",
    "no_number": "no number",
    "text_after_number": "text after it",
}
HOW_TO_READ = (
    "Right is the number of the reference, within its own rounding, of the same sign and unit; a currency may be left "
    "out. Percent left out counts 9.4 and 0.094 for 9.4 % too. The last number of an answer counts, or the first after "
    "'Answer:'; text after it are answers that go on for longer than the reference."
)


def view(runs: list[Run]) -> dict[str, Any] | None:
    """What leaderboard.json holds under `numbers`, models from the most right answers to the fewest; None where no
    answer of any model must reach a number."""
    asked = [run for run in runs if run.split.numbers]
    if not asked:
        return None
    rows = [
        {"name": run.name, "answers": run.split.numbers}
        | {name: vars(run.split.metrics[name]) for name in NUMBER_METRICS}
        for run in asked
    ]
    most = max(asked, key=lambda run: (run.split.numbers, len(run.split.number_floors)))
    return {
        "rows": sorted(rows, key=lambda row: (-row["number_right"]["value"], row["name"])),
        "floors": most.split.number_floors,
        "comparisons": compare_numbers(asked),
    }


def said(numbers: dict[str, Any] | None) -> list[str]:
    """The sentence about the most right answers."""
    if not numbers:
        return []
    best, floors = numbers["rows"][0], numbers["floors"]
    right = best["number_right"]
    if not right["value"]:
        most = max(row["number_right"]["high"] for row in numbers["rows"])
        return [
            f"No model reaches the number of any of its {best['answers']:,} answers that must reach one (at most "
            f"{percentage(most)} would, of all such questions)."
        ]
    beside = ", ".join(f"{name} {percentage(share)}" for name, share in floors.items())
    tested = f" ({low_to_high(right)})"
    alike = [
        row["name"] for row in numbers["rows"][1:] if not _worse(numbers["comparisons"], best["name"], row["name"])
    ]
    sentence = (
        f"The number is right in {percentage(right['value'])}{tested} of {best['answers']:,} answers of {best['name']}"
    )
    sentence += f"; without thought: {beside}." if beside else "."
    if alike and numbers["comparisons"]:
        sentence += f" In this no test tells it from {', '.join(alike)}."
    return [sentence]


def markdown(numbers: dict[str, Any] | None, level: float) -> str:
    """The section of leaderboard.md."""
    if not numbers:
        return ""
    rows = numbers["rows"]
    lines = []
    for row in rows:
        cells = [f"{percentage(row[name]['value'])} ({low_to_high(row[name])})" for name in HEADS]
        lines.append([row["name"], f"{row['answers']:,}", *cells, *to_best(numbers, row["name"])])
    lines += [
        [name, "", percentage(share), *[""] * (len(HEADS) - 1), "", ""] for name, share in numbers["floors"].items()
    ]
    heads = ["model", "answers", *HEADS.values(), f"to {rows[0]['name']}", "p"]
    intro = f"**Is the number right?** Shares of the answers that must reach a number ({100 * level:g} % intervals). "
    return f"\n{intro}{HOW_TO_READ}\n\n{table_of(heads, lines)}\n"


def low_to_high(interval: dict[str, float]) -> str:
    return f"{100 * interval['low']:.0f}–{100 * interval['high']:.0f}"


def to_best(numbers: dict[str, Any], name: str) -> list[str]:
    """The difference of a model to the best one in percentage points, with its interval, and the p-value."""
    found = _between(numbers["comparisons"], numbers["rows"][0]["name"], name)
    if not found:
        return ["–", "–"]
    sign = 1 if found["a"] == name else -1
    text = f"{100 * sign * found['difference']:+.0f}"
    if found["low"] is not None:
        low, high = sorted((100 * sign * found["low"], 100 * sign * found["high"]))
        text += f" ({low:+.0f} to {high:+.0f})"
    return [text.replace("-", "−"), p_text(found["p_adjusted"])]


def _between(comparisons: list[dict[str, Any]], one: str, other: str) -> dict[str, Any] | None:
    return next((each for each in comparisons if {each["a"], each["b"]} == {one, other} and one != other), None)


def _worse(comparisons: list[dict[str, Any]], best: str, name: str) -> bool:
    found = _between(comparisons, best, name)
    return bool(found) and found["p_adjusted"] < ALPHA
