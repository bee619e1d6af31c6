"""What a likelihood depends on: not on later tokens, not on the batch, and more on its own question than on another.

No torch here: models are asked through eval/models/language_model.py. One model costs `FORWARD_ROWS` short examples
more, in 7 to 12 forward passes at a batch size of 16.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.metrics import rouge
from eval.models.language_model import LanguageModel, Score

# How far a log-probability may move by rounding alone, in nats. Rows of one shape are computed alike; a cut one is not.
TOLERANCE = {"float32": 2e-4, "float64": 1e-6}
COARSE_TOLERANCE = 0.1  # bfloat16, float16
CAUSALITY_EXAMPLES, SHUFFLED_EXAMPLES, ALONE_EXAMPLES = 2, 6, 3
FORWARD_ROWS = CAUSALITY_EXAMPLES * 5 + SHUFFLED_EXAMPLES + 3 * ALONE_EXAMPLES


def tolerance(model: LanguageModel) -> float:
    """Nats by which rounding may move one log-probability of this model."""
    return TOLERANCE.get(model.description.dtype, COARSE_TOLERANCE)


def sample(pairs: Sequence[tuple[list[int], list[int]]], size: int) -> list[int]:
    """Positions of `size` examples from the shorter ones: above the lower quartile in tokens, so cheap and ordinary."""
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]) + len(pairs[index][1]))
    start = min(len(order) // 4, max(0, len(order) - size))
    return order[start : start + size]


def causality(
    model: LanguageModel, pairs: Sequence[tuple[list[int], list[int]]], scores: Sequence[Score]
) -> dict[str, Any]:
    """Change all response tokens after t, or cut them off: the log-probabilities up to t must not move.

    response    a  b  c  d  EOS
    t = 1       a  b  x  y  z      replaced: at the first token, in the middle, at the last but one
    t = 2       a  b  c            cut: a model that knows how long the answer will be moves too
                └──┘ compared

    All rows go through the model together. The audit also fails where `score`, which makes the figures, is not the sum
    of these log-probabilities: it would then have looked at another computation.
    """
    generator = random.Random(0)
    chosen = [index for index in sample(pairs, CAUSALITY_EXAMPLES) if len(pairs[index][1]) > 1]
    pool = sorted({token for index in chosen for part in pairs[index] for token in part[:-1]})
    rows, compared = [], []  # compared: (row, row of the original, last position to compare)
    for index in chosen:
        prompt, response = pairs[index]
        original, last = len(rows), len(response) - 1
        rows.append((prompt, response))
        for t in sorted({0, last // 2, last - 1}):
            others = [generator.choice([other for other in pool if other != token]) for token in response[t + 1 :]]
            compared.append((len(rows), original, t))
            rows.append((prompt, response[: t + 1] + others))
        compared.append((len(rows), original, last // 2))
        rows.append((prompt, response[: last // 2 + 1]))
    found = model.log_probs(rows)
    moved = [float(np.abs(found[row][: t + 1] - found[original][: t + 1]).max()) for row, original, t in compared]
    originals = dict.fromkeys(original for _, original, _ in compared)
    sums = [
        abs(scores[index].nll + float(found[original].sum())) / len(pairs[index][1])
        for index, original in zip(chosen, originals, strict=True)
    ]
    limit = tolerance(model)
    largest, apart = float(np.max(moved)), float(np.max(sums))  # NaN stays NaN, and is not passed
    blind, honest = bool(largest <= limit), bool(apart <= limit)
    if not blind:
        said = f"log-probabilities move by up to {largest:.3g} nats when only later tokens change: it sees the future"
    elif not honest:
        said = (
            f"score and the sum of log_probs differ by {apart:.3g} nats a token: two computations, one of them audited"
        )
    else:
        said = f"log-probabilities move by at most {largest:.1g} nats when later tokens change or are cut off"
    return {
        "passed": blind and honest,
        "summary": f"{said} ({len(compared)} changes in {len(chosen)} examples, tolerance {limit:g})",
        "largest_difference": largest if np.isfinite(largest) else None,
        "score_difference": apart if np.isfinite(apart) else None,
        "tolerance": limit,
        "changes": len(compared),
    }


def sanity(
    model: LanguageModel,
    rows: Sequence[dict[str, Any]],
    pairs: Sequence[tuple[list[int], list[int]]],
    scores: Sequence[Score],
    batch_size: int,
) -> dict[str, Any]:
    """References must be likelier after their own question than after another, and a batch must change nothing.

    Nor must padding on the other side or packing, where a model is run so elsewhere (`LanguageModel.otherwise`).

    `rows` are those of predictions.jsonl, with their answers where there are any, `scores` what the whole run gave them
    in batches of `batch_size`; some are scored again alone.
    """
    chosen, seen = [], set()
    for index in sample(pairs, len(pairs)):
        if rows[index]["question_id"] not in seen and len(chosen) < SHUFFLED_EXAMPLES:
            seen.add(rows[index]["question_id"])
            chosen.append(index)
    said, figures, passed = [], {}, True
    # A long question before another's long answer may be more than the model's positions; what it has read is not.
    longest = max(len(prompt) + len(response) for prompt, response in pairs)
    swapped = [
        (index, other)
        for index, other in zip(chosen, chosen[1:] + chosen[:1], strict=True)
        if index != other and len(pairs[other][0]) + len(pairs[index][1]) <= longest
    ]
    if swapped:
        chosen, others = map(list, zip(*swapped, strict=True))
        shuffled = model.score([rows[i]["prompt"] for i in others], [rows[i]["reference"] for i in chosen])
        tokens = sum(scores[index].tokens for index in chosen)
        figures["nll_per_token"] = sum(scores[index].nll for index in chosen) / tokens
        figures["shuffled_nll_per_token"] = sum(score.nll for score in shuffled) / tokens
        better = figures["nll_per_token"] < figures["shuffled_nll_per_token"]
        passed &= bool(better)
        verb = "are likelier" if better else "are NOT likelier"
        said.append(
            f"{len(chosen)} references {verb} after their own questions than after others "
            f"({figures['nll_per_token']:.3f} and {figures['shuffled_nll_per_token']:.3f} nats a token)"
        )
    answered = [row for row in rows if row["prediction"] is not None]
    if len({row["question_id"] for row in answered}) > 1:
        figures |= _shuffled_rouge(answered)
        said.append(
            f"ROUGE-L is {figures['rougeL']:.3f} against the answers' own references and "
            f"{figures['shuffled_rougeL']:.3f} against those of other questions"
        )
    some = sample(pairs, ALONE_EXAMPLES)
    ways = model.otherwise([pairs[i] for i in some])
    if batch_size > 1 and len(rows) > 1:
        ways["alone"] = [model.score([rows[i]["prompt"]], [rows[i]["reference"]])[0].nll for i in some]
    for way, nll in ways.items():
        apart = float(
            np.max([abs(scores[i].nll - other) / scores[i].tokens for i, other in zip(some, nll, strict=True)])
        )
        same = bool(apart <= tolerance(model))
        passed &= same
        figures[f"{way.replace(' ', '_')}_difference"] = apart if np.isfinite(apart) else None
        verb = "changes nothing" if same else "CHANGES the likelihood"
        said.append(f"scoring {way} instead of in batches of {batch_size} {verb} ({apart:.1g} nats a token)")
    return {"passed": passed, "summary": "; ".join(said) or "one example alone allows no control", **figures}


def _shuffled_rouge(answered: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean ROUGE-L of the answers, and against the reference of the next answer that is to another question."""
    shuffled = []
    for index, row in enumerate(answered):
        following = (answered[(index + step) % len(answered)] for step in range(1, len(answered)))
        other = next(other for other in following if other["question_id"] != row["question_id"])
        shuffled.append(rouge.scores_of(row["prediction"], other["reference"])["rougeL"])
    own = [row["rougeL"] for row in answered]
    return {"rougeL": float(np.mean(own)), "shuffled_rougeL": float(np.mean(shuffled))}
