"""What the report reads of run dirs that were evaluated: each checked for itself, then all against each other.

This module imports neither torch nor transformers nor datasets.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval import shapes
from eval.results import Results, SplitResults, how_to_evaluate, predictions
from finllm.errors import MANY, UserError, raise_problems
from finllm.files import read_jsonl
from finllm.models.find import weights_hash
from finllm.run_dir import RunDir


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
    proofs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ranked(self) -> bool:
        """Whether its likelihoods may be ranked; `results.unranked` says why not."""
        return self.results.unranked is None

    @classmethod
    def read(cls, path: Path, split_name: str) -> Run:
        results = Results.read(path)
        split = results.splits.get(split_name)
        if split is None:
            held = ", ".join(results.splits) or "none"
            raise UserError(
                f"{path} has no results on split {split_name!r} (it has: {held}); "
                f"evaluate it: {how_to_evaluate(path, split_name)}"
            )
        rows = predictions_of(path, split_name, split)
        folder = RunDir(path)
        evaluated = results.hashes.get("weights")
        if evaluated and folder.complete and folder.model.is_dir() and weights_hash(folder.model) != evaluated:
            raise UserError(
                f"{path}: its weights are not those that were evaluated (eval/results.json is of {evaluated[:16]}); "
                f"evaluate again: {how_to_evaluate(path, split_name)}"
            )
        summary = folder.summary() if folder.complete else {}
        metrics = read_jsonl(folder.metrics) if folder.metrics.exists() else []
        provenance = folder.provenance() if (path / "provenance.json").exists() else {}
        config = folder.config() if (path / "config.yaml").exists() else {}
        proofs = folder.proofs()
        wrong = [*shapes.problems(summary, shapes.SUMMARY, "summary.json: ")]
        wrong += shapes.problems(provenance, shapes.PROVENANCE, "provenance.json: ")
        wrong += shapes.problems(config, shapes.CONFIG, "config.yaml: ")
        wrong += shapes.problems(proofs, shapes.PROOFS, "proofs.json: ")
        for number, line in enumerate(metrics, 1):
            wrong += shapes.problems(line, shapes.METRICS_LINE, f"metrics.jsonl, line {number}: ")
        raise_problems(wrong, f"{path}, which training wrote; put its files back or train the run anew", MANY)
        return cls(path, results.name, results, split, rows, summary, metrics, provenance, config, proofs)


def predictions_of(path: Path, split_name: str, split: SplitResults) -> list[dict[str, Any]]:
    """The lines of `eval/predictions.jsonl` of a split; a `UserError` where its results were not made of them."""
    rows = [row for row in predictions(path) if row["split"] == split_name]
    raise_problems(
        _problems_of_pair(split, rows),
        f"{path}: eval/results.json and eval/predictions.jsonl do not belong together; "
        f"evaluate again: {how_to_evaluate(path, split_name)}",
    )
    return rows


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
    asked = texts_of(runs[0]) if runs else {}
    for run in runs[1:]:
        first, ours, theirs = runs[0], run.results.dataset, runs[0].results.dataset
        if ours["hash"] != theirs["hash"]:
            problems.append(
                f"{run.path} was evaluated on another dataset ({ours['name']}, hash {ours['hash']}) than {first.path} "
                f"({theirs['name']}, hash {theirs['hash']}); evaluate both on one"
            )
        elif {row["id"] for row in run.predictions} != {row["id"] for row in first.predictions}:
            fix = f"evaluate both on the whole {split_name} split"
            if run.split.left_out != first.split.left_out:
                fix = (
                    f"{len(run.split.left_out)} and {len(first.split.left_out)} were left out as too long; leave out "
                    f"the same of both: python eval/run.py {first.path} {run.path} --skip_too_long --overwrite (a base "
                    "model with its --model_name_or_path and --output_dir in that same command)"
                )
            problems.append(
                f"{run.path} was evaluated on other examples ({len(run.predictions)}) of dataset {ours['hash']} "
                f"than {first.path} ({len(first.predictions)}); {fix}"
            )
        elif ids := sorted(id for id, texts in texts_of(run).items() if texts != asked[id]):
            problems.append(
                f"{run.path} was evaluated on other questions or references than {first.path} in {len(ids):,} examples "
                f"of the same id ({', '.join(ids[:3])}{' …' if len(ids) > 3 else ''}); evaluate both on one dataset"
            )
    raise_problems(problems, "the runs to compare")
    for run, name in zip(runs, distinct_names(runs), strict=True):
        run.name = name
    return sorted(runs, key=lambda run: (not run.ranked, run.split.metrics["bits_per_byte"].value, run.name))


def texts_of(run: Run) -> dict[str, list[Any]]:
    """What every model is asked alike, by id."""
    return {
        row["id"]: [row[key] for key in ("question_id", "instruction", "input", "reference", "bytes")]
        for row in run.predictions
    }


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
