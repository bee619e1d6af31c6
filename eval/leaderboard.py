"""From run dirs to a report: which model predicts the reference answers best, how sure that is, and every answer.

    python eval/leaderboard.py runs/A runs/B … --output_dir DIR [--split test]

      leaderboard.json   every metric with its confidence interval, training cost, the finding in words
      leaderboard.md     the table, for a pull request
      index.html         one file that opens without a network: ranking, curves, cost, every question with its answers

Models are ranked on bits per byte, lower is better. Every two are held against each other on the same questions
(eval/comparison.py); those that a test cannot tell from the best of their group share its rank.
Everything is checked before anything is written. This module imports neither torch nor transformers nor datasets.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python put eval/ on the path, the packages lie one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval import report, tables
from eval.comparison import compare, ranks, recipes
from eval.findings import caveats, finding, out_of_order, reference_of, spreads
from eval.results import Results, SplitResults, predictions
from eval.uncertainty import TEST
from finllm.run import RunDir, UserError, raise_problems, read_jsonl, run_command, write_json, write_text


@dataclass
class Run:
    """One run dir, read and checked for itself. A model evaluated without training has no summary and no curves."""

    path: Path
    name: str
    results: Results
    split: SplitResults
    predictions: list[dict[str, Any]]
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, split_name: str) -> Run:
        results = Results.read(path)
        split = results.splits.get(split_name)
        if split is None:
            held = ", ".join(results.splits) or "none"
            raise UserError(
                f"{path} has no results on split {split_name!r} (it has: {held}); "
                f"evaluate it: python eval/run.py {path} --split {split_name}"
            )
        rows = [row for row in predictions(path) if row["split"] == split_name]
        raise_problems(
            _problems_of_pair(split, rows),
            f"{path}: eval/results.json and eval/predictions.jsonl do not belong together; "
            f"evaluate again: python eval/run.py {path}",
        )
        folder = RunDir(path)
        return cls(
            path=path,
            name=results.name,
            results=results,
            split=split,
            predictions=rows,
            summary=folder.summary() if folder.complete else {},
            metrics=read_jsonl(folder.metrics) if folder.metrics.exists() else [],
            provenance=folder.provenance() if (path / "provenance.json").exists() else {},
            config=folder.config() if (path / "config.yaml").exists() else {},
        )


def _problems_of_pair(split: SplitResults, rows: list[dict[str, Any]]) -> list[str]:
    counts = {
        "examples": len(rows),
        "questions": len({row["question_id"] for row in rows}),
        "tokens": sum(row["tokens"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "generated": sum(row["prediction"] is not None for row in rows),
    }
    problems = [
        f"results count {getattr(split, name)} {name}, predictions hold {count}"
        for name, count in counts.items()
        if getattr(split, name) != count
    ]
    if not problems:
        bits = sum(row["nll"] for row in rows) / (math.log(2) * counts["bytes"])
        stated = split.metrics["bits_per_byte"].value
        if not math.isclose(bits, stated, rel_tol=1e-3):
            problems.append(f"results say {stated:.4f} bits per byte, the predictions' nll gives {bits:.4f}")
    return problems


def read_runs(paths: list[Path], split_name: str) -> list[Run]:
    """The runs, best first; everything that forbids comparing them is raised at once."""
    if not paths:
        raise UserError("no run dirs given; name at least one: python eval/leaderboard.py runs/A --output_dir DIR")
    problems: list[str] = []
    runs: list[Run] = []
    for path, count in Counter(path.resolve() for path in paths).items():
        given = next(candidate for candidate in paths if candidate.resolve() == path)
        if count > 1:
            problems.append(f"{given} is given {count} times; name it once")
        try:
            runs.append(Run.read(given, split_name))
        except UserError as error:
            problems.append(str(error))
    for run in runs[1:]:
        first, ours, theirs = runs[0], run.results.dataset, runs[0].results.dataset
        if ours["hash"] != theirs["hash"]:
            problems.append(
                f"{run.path} was evaluated on another dataset ({ours['name']}, hash {ours['hash']}) than {first.path} "
                f"({theirs['name']}, hash {theirs['hash']}); evaluate both on one"
            )
        elif {row["id"] for row in run.predictions} != {row["id"] for row in first.predictions}:
            problems.append(
                f"{run.path} was evaluated on other examples ({len(run.predictions)}) of dataset {ours['hash']} "
                f"than {first.path} ({len(first.predictions)}); evaluate both on the whole {split_name} split"
            )
    raise_problems(problems, "the runs to compare")
    for run, name in zip(runs, distinct_names(runs), strict=True):
        run.name = name
    return sorted(
        runs, key=lambda run: (run.results.sees_the_future, run.split.metrics["bits_per_byte"].value, run.name)
    )


def distinct_names(runs: list[Run]) -> list[str]:
    """Each run's own name; where several share one, the shortest end of their paths that tells them apart."""
    counts = Counter(run.name for run in runs)
    parts = [run.path.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(part[-length:]) for part in parts]
        names = [run.name if counts[run.name] == 1 else end for run, end in zip(runs, ends, strict=True)]
        if len(set(names)) == len(names):
            return names
    return [str(run.path.resolve()) for run in runs]


# What is written -----------------------------------------------------------------------------------------------------


def rows_of(runs: list[Run], rank_of: dict[str, int | None]) -> list[dict[str, Any]]:
    """One row a model, best first: what leaderboard.json holds and what the table and the page are made of."""
    rows = []
    for run in runs:
        base, model, bits = reference_of(run, runs), run.results.model, run.split.metrics["bits_per_byte"]
        cost = ("train_seconds", "tokens_per_second", "peak_memory_bytes", "steps", "epochs", "best_validation_loss")
        rows.append(
            {
                "rank": rank_of[run.name],
                "name": run.name,
                "path": str(run.path),
                **asdict(model),
                "trainable_share": model.trainable_parameters / model.total_parameters,
                **asdict(run.split),
                "reference": base.name if base else None,
                "bits_per_byte_to_base": bits.value - base.split.metrics["bits_per_byte"].value if base else None,
                "audits": run.results.audits,
                **{key: run.summary.get(key) for key in cost},
            }
        )
    return rows


def print_table(rows: list[dict[str, Any]], sentences: list[str], notes: list[str], console: Console) -> None:
    """The finding and the columns that fit 80 characters; leaderboard.md has all of them."""
    table = Table(box=SIMPLE)
    for head in ("#", "model", "bits per byte", "to base", "perplexity", "ROUGE-L"):
        table.add_column(head, justify="left" if head == "model" else "right", overflow="fold", no_wrap=head != "model")
    for row in rows:
        show = report.shown(row)
        bits = f"{show['bits_per_byte']} ± {report.half_width(row['metrics']['bits_per_byte'])}"
        cells = [report.shown_rank(row, rows), row["name"], bits, show["to_base"], show["perplexity"], show["rougeL"]]
        table.add_row(*map(Text, cells))
    console.print(Text(" ".join(sentences)), table, *map(Text, notes), sep="\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="eval/leaderboard.py", description="Compare evaluated runs in one report.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run dirs that eval/run.py has evaluated")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the three files of the report")
    parser.add_argument("--split", default="test", help="the split to compare on (default: test)")
    options = parser.parse_args(arguments)
    if options.output_dir.exists() and not options.output_dir.is_dir():
        raise UserError(f"{options.output_dir} is a file; --output_dir names a folder")

    runs = read_runs(options.runs, options.split)
    confidence = runs[0].results.confidence
    comparisons = compare(runs)
    rank_of = ranks(runs, comparisons)
    runs = sorted(runs, key=lambda run: rank_of[run.name] or math.inf)  # stable: by bits per byte within a rank
    rows, pooled = rows_of(runs, rank_of), recipes(runs)
    sentences, notes = finding(rows, confidence["level"]) + out_of_order(rows) + spreads(pooled), caveats(runs)
    floors = max(runs, key=lambda run: run.split.generated).results.audits.get("memorisation", {}).get("baselines", {})
    text = report.markdown(rows, sentences, notes)
    text += tables.below(rows, comparisons, pooled, floors, confidence["level"])
    page = report.page(runs, rows, sentences, notes, options.split, comparisons, pooled)

    content = {
        "split": options.split,
        "dataset": runs[0].results.dataset,
        "confidence": confidence,
        "finding": sentences,
        "caveats": notes,
        "models": rows,
        "test": TEST,
        "comparisons": comparisons,
        "recipes": pooled,
        "baselines": floors,
    }
    write_json(options.output_dir / "leaderboard.json", content)
    write_text(options.output_dir / "leaderboard.md", text)
    write_text(options.output_dir / "index.html", page)
    console = Console()
    print_table(rows, sentences, notes, console)
    console.print(Text(f"report: {options.output_dir / 'index.html'}"), soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
