"""From run dirs to a report: which model predicts the reference answers best, how sure that is, and every answer.

    python eval/leaderboard.py runs/A runs/B … --output_dir DIR [--split test]
    python eval/leaderboard.py runs/A runs/B … --judge judge.html [--questions 40]     a page for people who judge blind
    python eval/leaderboard.py runs/A runs/B … --votes votes-*.json --output_dir DIR   the report, with their votes

      leaderboard.json   every metric with its confidence interval, training cost, the finding in words
      leaderboard.md     the table, for a pull request
      study.md           with --study: what recipes/compare.py found, a row a method
      index.html         one file that opens without a network: ranking, curves, cost, every question with its answers

Models stand in the order of their bits per byte, lower is better. Every two are held against each other on the same
questions (eval/statistics/comparison.py); beside its place each has the interval of ranks that the tests leave it.
Everything is checked before anything is written. This module imports neither torch nor transformers nor datasets.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python put eval/ on the path, where `statistics` would hide the standard library's
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.box import SIMPLE
from rich.table import Table

from eval.evaluated import Run, read_runs
from eval.judge.page import judge_page
from eval.judge.votes import read_votes
from eval.report import numbers, people, people_tables, right_numbers, study, study_tables, tables
from eval.report.data import contamination_apart
from eval.report.findings import caveats, finding, is_base_of, of_the_data, reference_of, spreads
from eval.report.page import page
from eval.statistics.comparison import TEST, Rank, compare, ranks
from eval.statistics.seeds import compare_recipes, recipes
from eval.statistics.uncertainty import LEVEL
from finllm.errors import UserError, run_command, visible
from finllm.files import json_text, write_text, write_together
from finllm.terminal import Parser, Terminal

QUESTIONS = 40  # screens of a judge's page


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


def check_flags(options: argparse.Namespace) -> None:
    """Refuse flags that do not go together, before anything is read."""
    problems = []
    if options.output_dir is None and options.votes:
        problems.append("--votes goes into the report; give --output_dir, its folder")
    elif options.output_dir is None and options.judge is None:
        problems.append("give --output_dir, the folder for the report, or --judge, a page for people who judge")
    if options.output_dir and options.output_dir.exists() and not options.output_dir.is_dir():
        problems.append(f"{options.output_dir} is a file; --output_dir names a folder")
    if options.judge and options.judge.is_dir():
        problems.append(f"--judge {options.judge} is a folder; name a file")
    if options.questions is not None and options.judge is None:
        problems.append("--questions says how long the page of --judge is; name that file with --judge judge.html")
    if options.questions is not None and options.questions < 1:
        problems.append(f"--questions is {options.questions}; it must be at least 1")
    if problems:
        raise UserError("; ".join(problems))


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="eval/leaderboard.py", description="Compare evaluated runs in one report.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run dirs that eval/run.py has evaluated")
    parser.add_argument("--output_dir", type=Path, help="folder for the three files of the report")
    parser.add_argument("--study", type=Path, help="the study dir of recipes/compare.py whose final runs these are")
    parser.add_argument("--split", default="test", help="the split to compare on (default: test)")
    parser.add_argument("--judge", type=Path, help="write a page on which a person judges these models' answers blind")
    parser.add_argument("--questions", type=int, help=f"screens of that page (default: {QUESTIONS})")
    parser.add_argument(
        "--votes", type=Path, nargs="+", help="files that the page saved: what people say of these models"
    )
    options = parser.parse_args(arguments)
    check_flags(options)
    runs, console = read_runs(options.runs, options.split), Terminal()
    if options.judge:
        number = options.questions or QUESTIONS
        write_text(options.judge, judge_page(runs, number))
        said = f"{options.judge} has {number} screens. Send the file to whoever knows the field; what comes back, "
        console.print(f"{said}votes-NAME.json, goes into --votes", soft_wrap=True)
    if options.output_dir is None:
        return
    confidence = runs[0].results.confidence
    comparisons = compare(runs)
    contamination, runs = contamination_apart(runs)
    studied = study.view(study.read_study(options.study, runs), runs) if options.study else None
    rows, pooled, compared = rows_of(runs, ranks(runs, comparisons)), recipes(runs), compare_recipes(runs)
    right = right_numbers.view(runs)
    liked = people.view(runs, read_votes(options.votes, runs)) if options.votes else None
    sentences = finding(rows, confidence["level"]) + spreads(pooled) + of_the_data(contamination, runs)
    sentences += right_numbers.said(right) + (people_tables.said(liked) if liked else [])
    notes = caveats(runs)
    floors = (
        max(runs, key=lambda run: run.split.generated).results.audits.get("memorisation", {}).get("baselines") or {}
    )
    text = tables.markdown(rows, sentences, notes)
    text += tables.below(rows, comparisons, pooled, compared, floors, LEVEL)
    text += right_numbers.markdown(right, LEVEL) + people_tables.markdown(liked)
    html = page(
        runs, rows, sentences, notes, options.split, comparisons, pooled, compared, contamination, studied, right, liked
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
        "people": liked,
        "study": studied,
    }
    files = {"leaderboard.json": json_text(content), "leaderboard.md": text, "index.html": html}
    if studied:
        files["study.md"] = study_tables.markdown(studied, runs[0].split.questions)
    write_together({options.output_dir / name: each for name, each in files.items()})
    if studied:
        console.print(*studied["findings"], sep="\n")
    else:
        print_table(rows, sentences, notes, console)
    console.print(f"report: {options.output_dir / 'index.html'}", soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
