"""From run dirs to a report: which model predicts the reference answers best, how sure that is, and every answer.

    python eval/leaderboard.py runs/A runs/B … --output_dir DIR [--split test]

      leaderboard.json   every metric with its confidence interval, training cost, the finding in words
      leaderboard.md     the table, for a pull request
      index.html         one file that opens without a network: ranking, curves, cost, every question with its answers

Models are ranked on bits per byte, lower is better. Two models whose intervals overlap are not called different.
Everything is checked before anything is written. This module imports neither torch nor transformers nor datasets.
"""

from __future__ import annotations

import argparse
import json
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

from eval import report
from eval.results import Results, SplitResults, predictions
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


# What is said --------------------------------------------------------------------------------------------------------


def reference_of(run: Run, runs: list[Run]) -> Run | None:
    """The base model that a run is held against: the one it was made from, else the only one there is."""
    if run.results.model.method == "base":
        return None
    bases = [other for other in runs if other.results.model.method == "base"]
    own = [base for base in bases if base.results.model.base_model == run.results.model.base_model]
    return own[0] if own else bases[0] if len(bases) == 1 else None


def rows_of(runs: list[Run]) -> list[dict[str, Any]]:
    """One row a model, best first: what leaderboard.json holds and what the table and the page are made of."""
    rows = []
    for rank, run in enumerate(runs, 1):
        base, model, bits = reference_of(run, runs), run.results.model, run.split.metrics["bits_per_byte"]
        cost = ("train_seconds", "tokens_per_second", "peak_memory_bytes", "steps", "epochs", "best_validation_loss")
        rows.append(
            {
                "rank": None if run.results.sees_the_future else rank,
                "name": run.name,
                "path": str(run.path),
                **asdict(model),
                "trainable_share": model.trainable_parameters / model.total_parameters,
                **asdict(run.split),
                "reference": base.name if base else None,
                "bits_per_byte_to_base": bits.value - base.split.metrics["bits_per_byte"].value if base else None,
                "overlaps_best": bits.overlaps(runs[0].split.metrics["bits_per_byte"]),
                **{key: run.summary.get(key) for key in cost},
            }
        )
    return rows


def finding(rows: list[dict[str, Any]], level: float) -> list[str]:
    """What the numbers say, in sentences: the best model with its interval, its base, and whom it is not told from."""
    ranked = [row for row in rows if row["rank"]]
    if not ranked:
        return ["No model is ranked: each of them can see the tokens that it is asked to predict."]
    best = ranked[0]
    bits = best["metrics"]["bits_per_byte"]
    said = f"{bits['value']:.3f} bits per byte ({100 * level:g} % interval {bits['low']:.3f} to {bits['high']:.3f})"
    if len(ranked) == 1:
        return [f"{best['name']} predicts the reference answers with {said}."]
    base = next((row for row in ranked if row["name"] == best["reference"]), None)
    if best["method"] == "base":
        first = (
            f"No trained model here predicts the reference answers better than the base model {best['name']}: {said}."
        )
    elif base:
        held = base["metrics"]["bits_per_byte"]
        fewer = f"{held['value'] - bits['value']:.3f} fewer"
        whose = "its base model" if base["base_model"] == best["base_model"] else "the base model"
        first = (
            f"{best['name']} predicts the reference answers best: {said}, {fewer} than "
            f"{whose} {base['name']} ({held['value']:.3f}, {held['low']:.3f} to {held['high']:.3f})."
        )
    else:
        first = f"{best['name']} predicts the reference answers best: {said}."
    ties = [row["name"] for row in ranked[1:] if row["overlaps_best"]]
    if not ties:
        return [first, "No other model's interval overlaps its own."]
    names = " and ".join(filter(None, [", ".join(ties[:-1]), ties[-1]]))
    whose = "that of" if len(ties) == 1 else "those of"
    return [first, f"Its interval overlaps {whose} {names}, so they are not called different here."]


def caveats(runs: list[Run]) -> list[str]:
    """What a reader must know before comparing the columns of this very table."""
    written = [run for run in runs if run.split.generated]
    tokenizers = {run.results.model.tokenizer for run in runs}
    limits = sorted({run.results.decoding["max_new_tokens"] for run in written})
    blind = [run.name for run in runs if run.results.sees_the_future]

    def differ(part: str, among: list[Run]) -> bool:
        return len({json.dumps(getattr(run.results, part), sort_keys=True) for run in among}) > 1

    said = []
    if blind:
        said.append(f"Listed and not ranked, since they can see the tokens to predict: {', '.join(blind)}.")
    if len(tokenizers) > 1:
        said.append(
            f"There are {len(tokenizers)} tokenizers: compare perplexities only between models of the same one."
        )
    foreign = [
        run.name
        for run in runs
        if (base := reference_of(run, runs)) and base.results.model.base_model != run.results.model.base_model
    ]
    if foreign:
        said.append(f"Held against the only base model here, which they were not made from: {', '.join(foreign)}.")
    most = max(run.split.generated for run in runs)
    fewer = [f"{run.split.generated} of {run.name}" for run in runs if run.split.generated < most]
    if 0 < most < runs[0].split.examples:
        said.append(f"Answers were written to {most} of the {runs[0].split.examples} examples.")
    if fewer:
        said.append(f"ROUGE, BLEU and stop rate cover {most} answers, but only {', '.join(fewer)}.")
    if len(limits) > 1:
        said.append(f"Answers were cut at different limits: {', '.join(map(str, limits))} new tokens.")
    if differ("template", runs):
        said.append("The models were prompted with different templates.")
    if differ("signatures", written):
        said.append("ROUGE or BLEU were computed with different settings; see the signatures of each run.")
    if differ("confidence", runs):
        said.append("The intervals were made in different ways; see each run's results.json.")
    return said


# What is written -----------------------------------------------------------------------------------------------------


def print_table(rows: list[dict[str, Any]], sentences: list[str], notes: list[str], console: Console) -> None:
    """The finding and the columns that fit 80 characters; leaderboard.md has all of them."""
    table = Table(box=SIMPLE)
    for head in ("#", "model", "bits per byte", "to base", "perplexity", "ROUGE-L"):
        table.add_column(head, justify="left" if head == "model" else "right", overflow="fold", no_wrap=head != "model")
    for row in rows:
        show = report.shown(row)
        bits = f"{show['bits_per_byte']} ± {report.half_width(row['metrics']['bits_per_byte'])}"
        cells = [str(row["rank"] or "–"), row["name"], bits, show["to_base"], show["perplexity"]]
        table.add_row(*map(Text, [*cells, show["rougeL"]]))
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
    rows = rows_of(runs)
    sentences, notes = finding(rows, confidence["level"]), caveats(runs)
    text = report.markdown(rows, sentences, notes)
    page = report.page(runs, rows, sentences, notes, options.split)

    content = {
        "split": options.split,
        "dataset": runs[0].results.dataset,
        "confidence": confidence,
        "finding": sentences,
        "caveats": notes,
        "models": rows,
    }
    write_json(options.output_dir / "leaderboard.json", content)
    write_text(options.output_dir / "leaderboard.md", text)
    write_text(options.output_dir / "index.html", page)
    console = Console()
    print_table(rows, sentences, notes, console)
    console.print(Text(f"report: {options.output_dir / 'index.html'}"), soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
