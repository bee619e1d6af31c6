"""The typed, versioned `eval/results.json` of a run dir, and the `eval/predictions.jsonl` beside it.

    results.json        per split: counts, and every metric with its confidence interval
    predictions.jsonl   a line an example: prompt, reference, the model's answer and its own numbers

eval/run.py writes both, eval/leaderboard.py reads both. What is written passes the same checks as what is read.
This module imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from eval.models.language_model import Description
from finllm.errors import UserError, did_you_mean, raise_problems
from finllm.files import read_json, read_jsonl, write_json
from finllm.run_dir import RunDir

AUDITS = ("causality", "contamination", "stopping", "memorisation", "template", "sanity")
METHODS = ("base", "full", "lora", "qlora", "scratch")
LIKELIHOOD_METRICS = ("nll_per_token", "perplexity", "bits_per_byte", "token_accuracy")
GENERATION_METRICS = (
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeLsum",
    "bleu",
    "stop_rate",
    "length_ratio",
    "repetition",
)
COUNTS = ("examples", "questions", "tokens", "bytes")

# What each key must hold: a type, a tuple of types, or the keys of an object.
INTERVAL = {"value": float, "low": float, "high": float}
SPLIT = {"examples": int, "questions": int, "tokens": int, "bytes": int, "generated": int, "metrics": dict}
RESULTS = {
    "name": str,
    "model": {
        "method": str,
        "base_model": (str, NoneType),
        "tokenizer": str,
        "total_parameters": int,
        "trainable_parameters": int,
    },
    "dataset": {"name": str, "hash": str},
    "template": {"id": str, "hash": str},
    "splits": dict,
    "confidence": {"level": float, "method": str, "resamples": int, "seed": int},
    "signatures": dict,
    "decoding": {"do_sample": bool, "max_new_tokens": int},
    "audits": dict,
    "seconds": {"score": float, "generate": float},
}
PREDICTION = {
    "id": str,
    "split": str,
    "question_id": str,
    "instruction": str,
    "input": str,
    "prompt": str,
    "reference": str,
    "prediction": (str, NoneType),
    "nll": float,
    "tokens": int,
    "correct_tokens": int,
    "bytes": int,
    "stopped": (bool, NoneType),
    "prediction_tokens": (int, NoneType),
    "rouge1": (float, NoneType),
    "rouge2": (float, NoneType),
    "rougeL": (float, NoneType),
    "rougeLsum": (float, NoneType),
    "bleu": (float, NoneType),
}


@dataclass(frozen=True)
class Interval:
    """A metric and its confidence interval, in the metric's own unit."""

    value: float
    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class SplitResults:
    """One split. `tokens` and `bytes` are those of the references; `generated` counts the examples with an answer.

    `metrics` holds all of LIKELIHOOD_METRICS and, when anything was generated, all of GENERATION_METRICS: nll_per_token
    in nats, perplexity, bits_per_byte, BLEU 0 to 100, length_ratio (answer to reference), everything else 0 to 1.
    `clean` holds the same for the examples that have no duplicate in the training data; None where there are none, or
    where the training data could not be looked at. `left_out` holds the ids of the examples that are not counted,
    since a model that was evaluated in the same command cannot read or answer them whole.
    """

    examples: int
    questions: int
    tokens: int
    bytes: int
    generated: int
    metrics: dict[str, Interval]
    clean: SplitResults | None = None
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, content: dict[str, Any]) -> SplitResults:
        """From checked JSON."""
        clean = content.get("clean")
        return cls(
            **{**_only(content, SPLIT), "metrics": _intervals(content["metrics"])},
            clean=clean and cls.of(clean),
            left_out=content.get("left_out", []),
        )


@dataclass(frozen=True)
class Results:
    """One model evaluated on one dataset; the keys of results.json, in its order.

    `audits` maps a name of AUDITS to an object with `passed` (bool), `summary` (a sentence) and its figures. `hashes`
    says by content what was evaluated: `weights`, an adapter's `base` and `tokenizer`; empty in results of versions
    that did not record it.
    """

    name: str
    model: Description
    dataset: dict[str, str]
    template: dict[str, str]
    splits: dict[str, SplitResults]
    confidence: dict[str, Any]
    signatures: dict[str, str]
    decoding: dict[str, Any]
    audits: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    hashes: dict[str, str] = field(default_factory=dict)

    def write(self, run_path: Path | str) -> None:
        """Write `eval/results.json`; a number that is not finite or a part that is missing is a `UserError`."""
        self.check(run_path)
        write_json(RunDir(run_path).eval / "results.json", asdict(self))

    def check(self, run_path: Path | str) -> None:
        """Raise the `UserError` that `write` would, and write nothing."""
        raise_problems(_problems_of_results(asdict(self)), str(RunDir(run_path).eval / "results.json"))

    @classmethod
    def read(cls, run_path: Path | str) -> Results:
        """Read `eval/results.json`; a missing, broken, incomplete or unknown file is a `UserError` with the fix."""
        RunDir(run_path).refuse_links()
        path = RunDir(run_path).eval / "results.json"
        fix = f"evaluate the run: python eval/run.py {run_path}"
        if not path.exists():
            raise UserError(f"{path} does not exist; {fix}")
        try:
            content = read_json(path)
            raise_problems(_problems_of_results(content), str(path))
        except UserError as error:
            raise UserError(f"{error}; {fix}") from None
        splits = {name: SplitResults.of(split) for name, split in content["splits"].items()}
        model = content["model"]
        model = Description(**_only(model, RESULTS["model"]), dtype=model.get("dtype", Description.dtype))
        hashes = content.get("hashes", {})
        return cls(**{**_only(content, RESULTS), "model": model, "splits": splits, "hashes": hashes})

    @property
    def sees_the_future(self) -> bool:
        """Whether the causality audit found that a token's score depends on later ones: such a model is not ranked."""
        return not self.audits.get("causality", {"passed": True})["passed"]


def predictions(run_path: Path | str) -> list[dict[str, Any]]:
    """The lines of `eval/predictions.jsonl`, each with every key of its contract, ids unique; else a `UserError`."""
    path = RunDir(run_path).eval / "predictions.jsonl"
    fix = f"evaluate the run: python eval/run.py {run_path}"
    try:
        rows = read_jsonl(path)
        problems = [
            problem for line, row in enumerate(rows, 1) for problem in _problems(row, PREDICTION, f"line {line}")
        ]
        if not problems:
            counts = Counter(row["id"] for row in rows)
            problems = [f"id {id} is on {count} lines" for id, count in counts.items() if count > 1]
            problems += [f"line {line} has no bytes" for line, row in enumerate(rows, 1) if row["bytes"] < 1]
        if len(problems) > 5:
            problems[5:] = [f"and {len(problems) - 5} more"]
        raise_problems(problems, str(path))
    except UserError as error:
        raise UserError(f"{error}; {fix}") from None
    return rows


def _only(content: dict[str, Any], shape: dict[str, Any]) -> dict[str, Any]:
    return {key: content[key] for key in shape}


def _intervals(metrics: dict[str, Any]) -> dict[str, Interval]:
    return {name: Interval(**_only(interval, INTERVAL)) for name, interval in metrics.items()}


def _problems(content: Any, shape: Any, place: str) -> Iterator[str]:
    """What is wrong with `content`, held against a shape as in RESULTS; other keys are let be."""
    if isinstance(shape, dict):
        if not isinstance(content, dict):
            yield f"{place} is {content!r}, not an object"
            return
        for key, inner in shape.items():
            where = f"{place}.{key}" if place else key
            if key in content:
                yield from _problems(content[key], inner, where)
            else:
                yield f"{where} is missing"
        return
    types = shape if isinstance(shape, tuple) else (shape,)
    # A whole number will do for a float, but True is neither.
    if type(content) not in types and not (float in types and type(content) is int):
        yield f"{place} is {content!r}, not {' or '.join('null' if t is NoneType else t.__name__ for t in types)}"
    elif isinstance(content, float) and not math.isfinite(content):
        yield f"{place} is {content}, not a finite number"


def _problems_of_results(content: dict[str, Any]) -> list[str]:
    problems = list(_problems(content, RESULTS, ""))
    if problems:
        return problems
    if content["model"]["method"] not in METHODS:
        problems.append(f"model.method is {content['model']['method']!r}, not one of {', '.join(METHODS)}")
    if content["model"]["total_parameters"] < 1:
        problems.append(f"model.total_parameters is {content['model']['total_parameters']}, not 1 or more")
    for name, audit in content["audits"].items():
        if name not in AUDITS:
            problems.append(f"audits.{name} is no audit{did_you_mean(name, AUDITS)}; there are {', '.join(AUDITS)}")
        broken = list(_problems(audit, {"passed": bool, "summary": str}, f"audits.{name}"))
        problems += broken or _not_finite(audit, f"audits.{name}")
    hashes = content.get("hashes", {})
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        problems.append(f"hashes is {hashes!r}, not an object of texts")
    for name, split in content["splits"].items():
        problems += _problems_of_split(split, f"splits.{name}")
    return problems


def _problems_of_split(split: dict[str, Any], place: str) -> list[str]:
    problems = list(_problems(split, SPLIT, place))
    if problems:
        return problems
    problems += [f"{place}.{count} is {split[count]}, not 1 or more" for count in COUNTS if split[count] < 1]
    known = {*LIKELIHOOD_METRICS, *(GENERATION_METRICS if split["generated"] else ())}
    problems += [f"{place}.metrics.{metric} is missing" for metric in sorted(known - split["metrics"].keys())]
    for metric, interval in split["metrics"].items():
        if metric not in known:
            problems.append(f"{place}.metrics.{metric} is not expected with {split['generated']} generated answers")
            continue
        broken = list(_problems(interval, INTERVAL, f"{place}.metrics.{metric}"))
        problems += broken
        if not broken and interval["low"] > interval["high"]:
            problems.append(f"{place}.metrics.{metric} has low {interval['low']} above high {interval['high']}")
    left_out = split.get("left_out", [])
    if not isinstance(left_out, list) or not all(isinstance(id, str) for id in left_out):
        problems.append(f"{place}.left_out is {left_out!r}, not a list of ids")
    clean = split.get("clean")
    if clean is not None:
        problems += _problems_of_split(clean, f"{place}.clean")
        if not problems and clean["examples"] > split["examples"]:
            problems.append(f"{place}.clean has {clean['examples']} examples, the split {split['examples']}")
    return problems


def _not_finite(figure: Any, place: str) -> list[str]:
    """The places of all numbers, at any depth, that are infinite or not a number."""
    if isinstance(figure, dict):
        return [problem for key, inner in figure.items() for problem in _not_finite(inner, f"{place}.{key}")]
    return list(_problems(figure, float, place)) if isinstance(figure, float) else []
