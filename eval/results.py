"""The typed, versioned `eval/results.json` of a run dir, and the `eval/predictions.jsonl` beside it.

    results.json        per split: counts, and every metric with its confidence interval
    predictions.jsonl   a line an example: prompt, reference, the model's answer and its own numbers

eval/run.py writes both, eval/leaderboard.py reads both. What is written passes the same checks as what is read.
This module imports no torch.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from eval import shapes
from eval.models.language_model import Description
from eval.shapes import COUNT, SHARE, SIZE, Each, Maybe, Number
from finllm.errors import MANY, UserError, did_you_mean, raise_problems, shortened
from finllm.files import read_json, read_jsonl, write_json
from finllm.run_dir import RunDir

# What is wrong with the figure that models are ranked by, where one of these audits fails.
UNRANKED = {
    "causality": "it sees the future",
    "reproducibility": "its likelihood is not reproducible",
    "likelihood": "its score is not the likelihood that was audited",
}
AUDITS = (*UNRANKED, "padding", "question", "contamination", "stopping", "memorisation", "template")
METHOD = re.compile(r"[a-z][a-z0-9_]{0,60}")  # base, scratch, full, partial, lora, qlora, or another of peft's types
LIKELIHOOD_METRICS = ("nll_per_token", "perplexity", "bits_per_byte", "token_accuracy")
GENERATION_METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "stop_rate", "length_ratio", "repetition")
NUMBER_METRICS = ("number_right", "number_close", "number_right_bare", "no_number", "text_after_number")
COUNTS = ("examples", "questions", "tokens", "bytes")

MOST_NAME, MOST_TEXT = 255, 20_000  # characters: of a folder's name, and of any text in results.json
NULLABLE = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "length_ratio")  # see SplitResults
RANGES = {  # of each metric; what has no upper end here has none
    **dict.fromkeys(LIKELIHOOD_METRICS, Number(-0.01)),
    **dict.fromkeys((*GENERATION_METRICS, *NUMBER_METRICS), Number(0, 1 + 1e-6)),
    "token_accuracy": Number(0, 1 + 1e-6),
    "bleu": Number(0, 100 + 1e-6),
    "length_ratio": Number(0),
}

# What each key must hold, see eval/shapes.py
INTERVAL = {"value": float, "low": float, "high": float}
SPLIT = {
    **dict.fromkeys(("examples", "questions", "tokens", "bytes", "generated"), COUNT),
    "metrics": dict,
    "left_out": Maybe(Each(str)),
    "numbers": Maybe(COUNT),
    "number_floors": Maybe(Each(SHARE, named=True)),
}
RESULTS = {
    "name": str,
    "model": {
        "method": str,
        "base_model": (str, NoneType),
        "tokenizer": str,
        "total_parameters": COUNT,
        "trainable_parameters": COUNT,
        "dtype": Maybe(str),
    },
    "dataset": {"name": str, "hash": str},
    "template": {"id": str, "hash": str},
    "splits": dict,
    "confidence": {"level": Number(0.01, 0.9999), "method": str},
    "signatures": Each(str, named=True),
    "decoding": {"do_sample": bool, "max_new_tokens": COUNT},
    "audits": dict,
    "seconds": {"score": SIZE, "generate": SIZE},
    "hashes": Maybe(Each(str, named=True)),
}
PREDICTION = {
    "id": str,
    "split": str,
    "question_id": str,
    "instruction": str,
    "input": str,
    "system": Maybe(str),
    "history": Maybe(Each({"role": str, "content": str})),
    "prompt": str,
    "reference": str,
    "prediction": (str, NoneType),
    "nll": Number(-0.01),
    "tokens": COUNT,
    "correct_tokens": COUNT,
    "bytes": COUNT,
    "stopped": (bool, NoneType),
    "prediction_tokens": (COUNT, NoneType),
    **dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), (SHARE, NoneType)),
    "bleu": (RANGES["bleu"], NoneType),
    "number": Maybe({"value": str, "unit": str, "tolerance": str}),
    "number_read": Maybe(str),
    **dict.fromkeys(NUMBER_METRICS, Maybe(bool)),
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
    What means nothing is None: ROUGE and BLEU where no reference has a word, BLEU where none has four tokens.
    `clean` holds the same for the examples that have no duplicate in the training data; None where there are none, or
    where the training data could not be looked at. `left_out` holds the ids of the examples that are not counted,
    since a model that was evaluated in the same command cannot read or answer them whole. `numbers` counts the answers
    that must reach a number: where there are any, `metrics` holds all of NUMBER_METRICS, and `number_floors` what
    answers without thought would score of `number_right`.
    """

    examples: int
    questions: int
    tokens: int
    bytes: int
    generated: int
    metrics: dict[str, Interval | None]
    clean: SplitResults | None = None
    left_out: list[str] = field(default_factory=list)
    numbers: int = 0
    number_floors: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, content: dict[str, Any]) -> SplitResults:
        """From checked JSON."""
        clean = content.get("clean")
        return cls(
            **{**_only(content, SPLIT), "metrics": _intervals(content["metrics"])},
            clean=clean and cls.of(clean),
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
        fix = f"evaluate the run: {how_to_evaluate(run_path)}"
        try:
            content = read_json(path)
            raise_problems(_problems_of_results(content), str(path))
        except UserError as error:
            raise UserError(f"{error}; {fix}") from None
        splits = {name: SplitResults.of(split) for name, split in content["splits"].items()}
        model = Description(**_only(content["model"], RESULTS["model"]))
        return cls(**{**_only(content, RESULTS), "model": model, "splits": splits})

    @property
    def unranked(self) -> str | None:
        """Why this model is not ranked, in words; None for one that is. Results without an audit are as they say."""
        failed = [name for name in UNRANKED if not self.audits.get(name, {"passed": True})["passed"]]
        if self.audits.get("reproducibility", {}).get("random"):  # then nothing else can be looked at
            failed = ["reproducibility"]
        return UNRANKED[failed[0]] if failed else None


def predictions(run_path: Path | str) -> list[dict[str, Any]]:
    """The lines of `eval/predictions.jsonl`, each with every key of its contract, ids unique; else a `UserError`."""
    path = RunDir(run_path).eval / "predictions.jsonl"
    fix = f"evaluate the run: {how_to_evaluate(run_path)}"
    try:
        rows = read_jsonl(path)
        problems = [
            problem for line, row in enumerate(rows, 1) for problem in shapes.problems(row, PREDICTION, f"line {line}")
        ]
        if not problems:
            counts = Counter(row["id"] for row in rows)
            problems = [f"id {id} is on {count} lines" for id, count in counts.items() if count > 1]
            problems += [f"line {line} has no bytes" for line, row in enumerate(rows, 1) if row["bytes"] < 1]
        raise_problems(problems, str(path), MANY)
    except UserError as error:
        raise UserError(f"{error}; {fix}") from None
    return rows


def how_to_evaluate(run_path: Path | str, split: str = "test") -> str:
    """The command that evaluates a run dir or a base model, and replaces what it has of results, damaged or not."""
    run = RunDir(run_path)
    words = ["python", "eval/run.py", str(run_path)]
    if not (run.path / "config.yaml").exists() and (run.path / "provenance.json").exists():  # it was not trained
        try:
            held = run.provenance()
        except UserError:
            held = {}
        base, template = (each if isinstance(each := held.get(key), str) else "" for key in ("base_model", "template"))
        words[2:] = ["--model_name_or_path", base or "MODEL", "--dataset_name", "DATASET_DIR"]
        words += ["--output_dir", str(run_path), *(["--template", template] if template not in ("", "alpaca") else [])]
    words += ["--split", split] if split != "test" else []
    words += (
        ["--overwrite"] if any((run.eval / name).exists() for name in ("results.json", "predictions.jsonl")) else []
    )
    return shlex.join(words)


def _only(content: dict[str, Any], shape: dict[str, Any]) -> dict[str, Any]:
    """The named keys, without those that may be absent or null and are."""
    return {key: content[key] for key in shape if content.get(key) is not None or not isinstance(shape[key], Maybe)}


def _intervals(metrics: dict[str, Any]) -> dict[str, Interval | None]:
    return {name: interval and Interval(**_only(interval, INTERVAL)) for name, interval in metrics.items()}


def _problems_of_results(content: dict[str, Any]) -> list[str]:
    problems = list(shapes.problems(content, RESULTS, ""))
    if problems:
        return problems
    name = content["name"]
    if not name.strip() or len(name) > MOST_NAME:
        problems.append(f"name has {len(name.strip()):,} characters, not 1 to {MOST_NAME}")
    problems += _long_texts(content, "")
    if not METHOD.fullmatch(content["model"]["method"]):
        problems.append(f"model.method is {shortened(content['model']['method'])}, not a name in small letters")
    if content["model"]["total_parameters"] < 1:
        problems.append(f"model.total_parameters is {content['model']['total_parameters']}, not 1 or more")
    for name, audit in content["audits"].items():
        if name not in AUDITS:
            problems.append(f"audits.{name} is no audit{did_you_mean(name, AUDITS)}; there are {', '.join(AUDITS)}")
        broken = list(shapes.problems(audit, shapes.AUDIT, f"audits.{name}"))
        problems += broken or _not_finite(audit, f"audits.{name}")
    for name, split in content["splits"].items():
        problems += _problems_of_split(split, f"splits.{name}")
    return problems


def _problems_of_split(split: dict[str, Any], place: str) -> list[str]:
    problems = list(shapes.problems(split, SPLIT, place))
    if problems:
        return problems
    problems += [f"{place}.{count} is {split[count]}, not 1 or more" for count in COUNTS if split[count] < 1]
    known = {*LIKELIHOOD_METRICS, *(GENERATION_METRICS if split["generated"] else ())}
    known |= {*NUMBER_METRICS} if split.get("numbers") else set()
    problems += [f"{place}.metrics.{metric} is missing" for metric in sorted(known - split["metrics"].keys())]
    for metric, interval in split["metrics"].items():
        if metric not in known:
            problems.append(f"{place}.metrics.{metric} is not expected with {split['generated']} generated answers")
            continue
        if interval is None and metric in NULLABLE:
            continue
        broken = list(shapes.problems(interval, INTERVAL, f"{place}.metrics.{metric}"))
        problems += broken
        if not broken:
            broken = list(shapes.problems(interval["value"], RANGES[metric], f"{place}.metrics.{metric}.value"))
            problems += broken
        if not broken and interval["low"] > interval["high"]:
            problems.append(f"{place}.metrics.{metric} has low {interval['low']} above high {interval['high']}")
    clean = split.get("clean")
    if clean is not None:
        problems += _problems_of_split(clean, f"{place}.clean")
        if not problems and clean["examples"] > split["examples"]:
            problems.append(f"{place}.clean has {clean['examples']} examples, the split {split['examples']}")
    return problems


def _long_texts(value: Any, place: str) -> list[str]:
    """The places of texts that no page could show; answers stand in predictions.jsonl."""
    if isinstance(value, str):
        long = len(value) > MOST_TEXT
        return [f"{place} is a text of {len(value):,} characters, not {MOST_TEXT:,} or fewer"] if long else []
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [problem for key, each in inside for problem in _long_texts(each, f"{place}.{key}".lstrip("."))]


def _not_finite(figure: Any, place: str) -> list[str]:
    """The places of all numbers, at any depth, that are infinite or not a number."""
    if isinstance(figure, dict):
        return [problem for key, inner in figure.items() for problem in _not_finite(inner, f"{place}.{key}")]
    if isinstance(figure, list):
        return [problem for key, inner in enumerate(figure) for problem in _not_finite(inner, f"{place}[{key}]")]
    return list(shapes.problems(figure, float, place)) if isinstance(figure, float) else []
