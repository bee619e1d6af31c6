"""From run dirs to a report: which model predicts the reference answers best, how sure that is, and every answer.

    python eval/leaderboard.py runs/A runs/B … --output_dir DIR [--split test]

      leaderboard.json   every metric with its confidence interval, training cost, the finding in words
      leaderboard.md     the table, for a pull request
      study.md           with --study: what recipes/compare.py found, a row a method
      index.html         one file that opens without a network: ranking, curves, cost, every question with its answers

Models stand in the order of their bits per byte, lower is better. Every two are held against each other on the same
questions (eval/statistics/comparison.py); beside its place each has the interval of ranks that the tests leave it.
Everything is checked before anything is written. This module imports neither torch nor transformers nor datasets.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python put eval/ on the path, where `statistics` would hide the standard library's
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.box import SIMPLE
from rich.table import Table

from eval.evaluated import Run, read_runs
from eval.report import numbers, right_numbers, study, tables
from eval.report.data import contamination_apart
from eval.report.findings import caveats, finding, is_base_of, of_the_data, reference_of, spreads
from eval.report.page import page
from eval.statistics.comparison import TEST, Rank, compare, ranks
from eval.statistics.seeds import compare_recipes, recipes
from eval.statistics.uncertainty import LEVEL
from finllm.errors import UserError, run_command, visible
from finllm.files import json_text, write_together
from finllm.terminal import Parser, Terminal


def rows_of(runs: list[Run], rank_of: dict[str, Rank | None]) -> list[dict[str, Any]]:
    """One row a model, best first: what leaderboard.json holds and what the table and the page are made of."""
    rows = []
    for run in runs:
        base, model, bits = reference_of(run, runs), run.results.model, run.split.metrics["bits_per_byte"]
        rank = rank_of[run.name]
        cost = ("train_seconds", "tokens_per_second", "peak_memory_bytes", "steps", "epochs", "best_validation_loss")
        rows.append(
            {
                "position": rank and rank.position,
                "rank_low": rank and rank.low,
                "rank_high": rank and rank.high,
                "may_be_best": rank and rank.may_be_best,
                "name": run.name,
                "path": str(run.path),
                **asdict(model),
                "trainable_share": model.trainable_parameters / model.total_parameters,
                **asdict(run.split),
                "reference": base.name if base else None,
                "reference_is_its_base": bool(base and is_base_of(base, run)),
                "bits_per_byte_to_base": bits.value - base.split.metrics["bits_per_byte"].value if base else None,
                "audits": run.results.audits,
                "unranked": run.results.unranked,
                **{key: run.summary.get(key) for key in cost},
            }
        )
    return rows


def print_table(rows: list[dict[str, Any]], sentences: list[str], notes: list[str], console: Terminal) -> None:
    """The finding and the columns that fit 80 characters; leaderboard.md has all of them."""
    table = Table(box=SIMPLE)
    for head in ("#", "rank", "model", "bits per byte", "to base", "perplexity", "ROUGE-L"):
        table.add_column(head, justify="left" if head == "model" else "right", overflow="fold", no_wrap=head != "model")
    for row in rows:
        show = numbers.shown(row)
        bits = f"{show['bits_per_byte']} ± {numbers.half_width(row['metrics']['bits_per_byte'])}"
        cells = [show["position"], show["rank"], row["name"], bits, show["to_base"], show["perplexity"], show["rougeL"]]
        table.add_row(*(visible(cell, lines=False) for cell in cells))
    console.print(" ".join(sentences), table, *notes, sep="\n")


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="eval/leaderboard.py", description="Compare evaluated runs in one report.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run dirs that eval/run.py has evaluated")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the three files of the report")
    parser.add_argument("--study", type=Path, help="the study dir of recipes/compare.py whose final runs these are")
    parser.add_argument("--split", default="test", help="the split to compare on (default: test)")
    options = parser.parse_args(arguments)
    if options.output_dir.exists() and not options.output_dir.is_dir():
        raise UserError(f"{options.output_dir} is a file; --output_dir names a folder")

    runs = read_runs(options.runs, options.split)
    confidence = runs[0].results.confidence
    comparisons = compare(runs)
    contamination, runs = contamination_apart(runs)
    studied = study.view(study.read_study(options.study, runs), runs) if options.study else None
    rows, pooled, compared = rows_of(runs, ranks(runs, comparisons)), recipes(runs), compare_recipes(runs)
    right = right_numbers.view(runs)
    sentences = finding(rows, confidence["level"]) + spreads(pooled) + of_the_data(contamination, runs)
    sentences += right_numbers.said(right)
    notes = caveats(runs)
    floors = (
        max(runs, key=lambda run: run.split.generated).results.audits.get("memorisation", {}).get("baselines") or {}
    )
    text = tables.markdown(rows, sentences, notes)
    text += tables.below(rows, comparisons, pooled, compared, floors, LEVEL) + right_numbers.markdown(right, LEVEL)
    html = page(
        runs, rows, sentences, notes, options.split, comparisons, pooled, compared, contamination, studied, right
    )

    content = {
        "split": options.split,
        "dataset": runs[0].results.dataset,
        "confidence": confidence,
        "finding": sentences,
        "caveats": notes,
        "contamination": contamination,
        "models": rows,
        "test": TEST,
        "comparisons": comparisons,
        "recipes": pooled,
        "recipe_comparisons": compared,
        "baselines": floors,
        "numbers": right,
        "study": studied,
    }
    files = {"leaderboard.json": json_text(content), "leaderboard.md": text, "index.html": html}
    if studied:
        files["study.md"] = study.markdown(studied, runs[0].split.questions)
    write_together({options.output_dir / name: each for name, each in files.items()})
    console = Terminal()
    if studied:
        console.print(*studied["findings"], sep="\n")
    else:
        print_table(rows, sentences, notes, console)
    console.print(f"report: {options.output_dir / 'index.html'}", soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
