"""All audits of a model: whether its figures may be believed.

Each audit returns `{"passed": bool, "summary": one sentence with the figures, …figures}`, as results.json holds it.
Whether a likelihood sees the future is looked at in eval/audits/causality.py, what else it depends on in
eval/audits/likelihood.py, texts against training texts in eval/audits/overlap.py. No torch here: models are asked
through eval/models/language_model.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from eval.audits import overlap
from eval.audits.causality import causality
from eval.audits.likelihood import likelihood, padding, question, reproducibility
from eval.models.language_model import LanguageModel, Score
from eval.results import AUDITS
from finllm.run_dir import RunDir
from finllm.text.prompts import TEMPLATE_HASH

TRAINING_SAMPLE = 1000  # training examples whose length is looked at
LEAST_EOS_SHARE, LEAST_STOP_RATE = 0.95, 0.5


def audit(
    model: LanguageModel,
    run: RunDir,
    training: list[dict[str, str]] | None,
    examples: list[dict[str, str]],
    rows: list[dict[str, Any]],
    pairs: list[tuple[list[int], list[int]]],
    scores: dict[int, Score],
) -> dict[str, dict[str, Any]]:
    """All audits of one model. Those of texts fail where the data that the run was trained on is not here any more."""
    trained = run.complete
    found = {"reproducibility": reproducibility(model, pairs)}
    if found["reproducibility"]["random"]:
        noise = "not looked at: the same call twice gives other figures"
        found["causality"] = {"passed": False, "summary": noise, "unnormalised": 0.0}
    else:
        alone = found["reproducibility"]["depends_on_neighbours"]
        found["causality"] = causality(model, rows, pairs, alone)
    found["likelihood"] = likelihood(model, pairs, scores, found["causality"].pop("unnormalised"))
    if training is None:
        said = "the data that this run was trained on is not here (its folder is gone or holds other data), so nothing "
        gone = {"passed": False, "summary": said + "can be said of copies"}
        found |= {"contamination": gone, "memorisation": dict(gone)}
    else:
        found["contamination"] = _contamination(examples, training)
        found["memorisation"] = overlap.memorisation(rows, training, trained)
    max_length = run.config().get("max_length") if trained else None
    found["stopping"] = stopping(model, training if trained else None, max_length, rows)
    trained_with = run.provenance().get("template_hash") if trained else None
    found["template"] = template(trained, trained_with, model.template.hash)
    found["padding"] = padding(model, pairs, scores)
    found["question"] = question(model, rows, pairs, scores)
    return {name: found[name] for name in AUDITS}


_OF_DATA: dict[str, dict[str, Any]] = {}


def _contamination(examples: list[dict[str, str]], training: list[dict[str, str]]) -> dict[str, Any]:
    """It is of the data, which most models of a command share, and takes a minute on 50,000 rows: found out once."""
    key = hashlib.sha256(json.dumps([examples, training]).encode()).hexdigest()
    if key not in _OF_DATA:
        _OF_DATA[key] = overlap.contamination(examples, training)
    return dict(_OF_DATA[key])


def stopping(
    model: LanguageModel,
    training: Sequence[dict[str, str]] | None,
    max_length: int | None,
    rows: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Was the model taught to stop, and does it? `training` is None for a model that was not trained here.

    A training example that `max_length` cuts loses its EOS: the model is not taught to stop there. Fails under 95 % of
    examples with their EOS, or when fewer than half of the answers end by themselves.
    """
    said, figures, passed = [], {"eos_supervised": None}, True
    if training:
        some = sorted(training, key=lambda row: row["id"])[:TRAINING_SAMPLE]  # ids are hashes: a fixed random choice
        prompts = zip(model.template.prompts(some), some, strict=True)
        lengths = [sum(map(len, model.encode(prompt, row["output"]))) for prompt, row in prompts]
        share = sum(max_length is None or length <= max_length for length in lengths) / len(lengths)
        figures = {"eos_supervised": share, "max_length": max_length, "training_examples": len(some)}
        passed = share >= LEAST_EOS_SHARE
        said.append(f"{_percent(share)} of {len(some):,} training examples taught to stop (max_length {max_length})")
    answered = [row for row in rows if row["prediction"] is not None]
    if answered:
        stopped = sum(row["stopped"] for row in answered)
        figures |= {"stop_rate": stopped / len(answered), "cut_by_limit": len(answered) - stopped}
        passed &= figures["stop_rate"] >= LEAST_STOP_RATE
        said.append(
            f"{stopped:,} of {len(answered):,} answers stopped by themselves, "
            f"{len(answered) - stopped:,} were cut by the limit of new tokens"
        )
    return {"passed": bool(passed), "summary": "; ".join(said) or "not trained here, and no answers written", **figures}


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def template(trained: bool, trained_with: str | None, asked_with: str = TEMPLATE_HASH) -> dict[str, Any]:
    """The template of evaluation and generation is, by its hash, the one that the run's provenance names."""
    if not trained:
        said, passed = f"not trained here; asked with template {asked_with[:12]}", True
    elif passed := trained_with == asked_with:
        said = f"trained and asked with the same template, {asked_with[:12]}"
    else:
        said = f"trained with template {str(trained_with)[:12]} and asked with {asked_with[:12]}"
    return {"passed": passed, "summary": said, "trained_with": trained_with, "asked_with": asked_with}
