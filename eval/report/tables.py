"""leaderboard.md, the table of a pull request: the ranking, then differences, seeds, and what copying scores."""

from __future__ import annotations

import re
from typing import Any

from eval.report.numbers import decimals, difference_interval, few_questions, half_width, shown
from eval.statistics.comparison import TEST
from finllm.errors import visible

HOW_TO_READ = (
    "Rows stand in the order of bits per byte of the reference answers, lower is better, ± half the width of the "
    "interval. Rank is the interval of ranks that paired tests leave, 95 % sure for all rows at once: a row may be "
    "better than one above it. Perplexity stands beside its tokenizer: do not compare it between tokenizers."
)


def markdown(rows: list[dict[str, Any]], sentences: list[str], notes: list[str]) -> str:
    """leaderboard.md: the table as a pull request shows it, the finding above it and how to read it below."""
    heads = ["#", "rank", "model", "method", "bits per byte", "to base", "perplexity (tokenizer)", "ROUGE-L", "BLEU"]
    heads += ["stop rate", "trainable parameters", "train time", "peak memory"]
    lines = [" | ".join(heads), " | ".join(["--:", "--:", ":--", ":--"] + ["--:"] * (len(heads) - 4))]
    for row in rows:
        metrics, show = row["metrics"], shown(row)
        cells = [show["position"], show["rank"], cell(row["name"]), row["method"]]
        cells += [f"{show['bits_per_byte']} ± {half_width(metrics['bits_per_byte'])}", show["to_base"]]
        cells += [f"{show['perplexity']} ({cell(row['tokenizer'])})", show["rougeL"], show["bleu"], show["stop_rate"]]
        cells += [f"{show['trainable_parameters']} ({show['trainable_share']})", show["train_seconds"], show["memory"]]
        lines.append(" | ".join(cells))
    table = "\n".join(f"| {line} |" for line in lines)
    return "\n\n".join([cell(" ".join(sentences)), table, " ".join([HOW_TO_READ, *map(cell, notes)])]) + "\n"


def below(
    rows: list[dict[str, Any]],
    comparisons: list[dict[str, Any]],
    pooled: list[dict[str, Any]],
    compared: list[dict[str, Any]],
    floors: dict[str, dict[str, float]],
    level: float,
) -> str:
    """The further sections of leaderboard.md; nothing where there is nothing to say."""
    sections = []
    if comparisons:
        best = [each for each in comparisons if rows[0]["name"] in (each["a"], each["b"])]
        lines = [_difference(each, rows[0]["name"]) for each in best]
        sections.append(
            f"**Differences to {cell(rows[0]['name'])}** in bits per byte, on the same questions. Intervals and p "
            f"({TEST}) hold for {len(comparisons)} comparison{'s' if len(comparisons) > 1 else ''} at once: where p is "
            f"below {1 - level:.2g}, the interval leaves out 0 and two models are told apart.\n\n"
            + table_of(["model", "difference", f"{100 * level:g} % interval", "p"], lines)
        )
        questions = rows[0]["questions"]
        few = [
            f"- {cell(each['a'])} and {cell(each['b'])}: {few_questions(each, questions)}"
            for each in comparisons
            if each["few_questions"]
        ]
        if few:
            sections.append("**Few questions decide** these differences; others may turn them.\n\n" + "\n".join(few))
    if pooled:
        lines = [_seeds(recipe) for recipe in pooled]
        heads = ["runs", "seeds", "bits per byte", "spread over seeds", "ROUGE-L", "its spread"]
        sections.append(
            "**Seeds of one recipe**, pooled; the spread is a standard deviation, the interval of other seeds and "
            "other questions.\n\n" + table_of(heads, lines)
        )
    if compared:
        lines = [
            [
                *(", ".join(each["a"]), ", ".join(each["b"])),
                *(f"{each['difference']:+.3f}", difference_interval(each), p_text(each["p_adjusted"])),
            ]
            for each in compared
        ]
        sections.append(
            "**Differences of recipes** in bits per byte, other seeds and other questions drawn; p and intervals are "
            f"Bonferroni's for {len(compared)} comparison{'s' if len(compared) > 1 else ''}.\n\n"
            + table_of(["recipe", "against", "difference", f"{100 * level:g} % interval", "p"], lines)
        )
    if floors:
        lines = [
            [name, *(decimals(scores[key], digits) for key, digits in (("rouge1", 3), ("rougeL", 3), ("bleu", 1)))]
            for name, scores in floors.items()
        ]
        sections.append(
            "**What copying scores** on the answered questions: a model that is not above it shows no knowledge.\n\n"
            + table_of(["", "ROUGE-1", "ROUGE-L", "BLEU"], lines)
        )
    failed = [
        f"- {cell(row['name'])}, {name}: {cell(audit['summary'])}"
        for row in rows
        for name, audit in row["audits"].items()
        if not audit["passed"]
    ]
    if failed:
        sections.append("**Audits that did not pass**\n\n" + "\n".join(failed))
    return "".join(f"\n{section}\n" for section in sections)


def cell(text: Any) -> str:
    """Text that Markdown, and a terminal that prints the file, show as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|~#$&!])", r"\\\1", visible(" ".join(str(text).split())))


def p_text(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _difference(each: dict[str, Any], best: str) -> list[str]:
    """Of the other model less the best one, whichever of them stands first in the comparison."""
    sign = 1 if each["b"] == best else -1
    other = each["a"] if sign == 1 else each["b"]
    return [other, f"{sign * each['difference']:+.3f}", difference_interval(each, sign), p_text(each["p_adjusted"])]


def _seeds(recipe: dict[str, Any]) -> list[str]:
    bits, rouge = recipe["metrics"]["bits_per_byte"], recipe["metrics"].get("rougeL")
    return [
        ", ".join(recipe["runs"]),
        ", ".join(map(str, recipe["seeds"])),
        f"{bits['mean']:.3f} ({recipe['bits_per_byte']['low']:.3f} to {recipe['bits_per_byte']['high']:.3f})",
        f"± {bits['spread']:.3f}",
        *([f"{rouge['mean']:.3f}", f"± {rouge['spread']:.3f}"] if rouge else ["–", "–"]),
    ]


def table_of(heads: list[str], lines: list[list[str]]) -> str:
    rows = [heads, [":--", *["--:"] * (len(heads) - 1)], *([cell(text) for text in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
