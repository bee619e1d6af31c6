"""What a likelihood depends on beside what was written before: chance, the batch, padding, the question.

No torch here: models are asked through eval/models/language_model.py. What it must never depend on, what comes after,
is looked at in eval/audits/causality.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.audits import causality as causal
from eval.metrics import rouge
from eval.models.language_model import LanguageModel, Pair, Score

# How far a log-probability may move by rounding alone, in nats. Rows of one shape are computed alike; a cut one is not.
TOLERANCE = {"float32": 2e-4, "float64": 1e-6}
COARSE_TOLERANCE = 0.1  # bfloat16, float16, int8
QUESTIONS, OTHERWISE_TEXTS = 12, 3
LEVEL = 0.05


def tolerance(model: LanguageModel) -> float:
    """Nats by which rounding may move one log-probability of this model as it computes."""
    return TOLERANCE.get(model.description.dtype, COARSE_TOLERANCE)


def sample(pairs: Sequence[Pair], size: int) -> list[int]:
    """Positions of `size` examples from the shorter ones: above the lower quartile in tokens, so cheap and ordinary."""
    order = causal.by_length(pairs)
    start = min(len(order) // 4, max(0, len(order) - size))
    return order[start : start + size]


def reproducibility(model: LanguageModel, pairs: Sequence[Pair]) -> dict[str, Any]:
    """The same text has the same likelihood at every call, and whatever stands beside it in the batch.

    A short and a long text go through the model together, so that one is padded; once more; and each alone. In float32:
    dropout that was left on is to be told from rounding.
    """
    order = causal.by_length(pairs)
    some = [pairs[index] for index in dict.fromkeys([order[0], order[len(order) * 9 // 10]])]
    with model.in_float32():
        first, again = model.log_probs(some), model.log_probs(some)
        alone = [model.log_probs([pair])[0] for pair in some]
    limit = causal.tolerance(model)
    repeated = float(np.max(np.abs(np.concatenate(first) - np.concatenate(again))))
    beside = float(np.max(np.abs(np.concatenate(first) - np.concatenate(alone))))
    random, moved = not repeated <= limit, not beside <= limit
    if random:
        said = f"the same call twice moves log-probabilities by up to {repeated:.3g} nats: dropout or other noise is on"
    elif moved:
        said = f"what stands beside a text in its batch moves its log-probabilities by up to {beside:.3g} nats"
    else:
        most = max(repeated, beside)
        said = f"log-probabilities move by at most {most:.1g} nats at a second call and without neighbours"
    return {
        "passed": not random and not moved,
        "summary": f"{said} ({len(some)} texts, tolerance {limit:g})",
        "repeated_difference": repeated if np.isfinite(repeated) else None,
        "neighbours_difference": beside if np.isfinite(beside) else None,
        "random": random,
        "depends_on_neighbours": moved and not random,
        "tolerance": limit,
    }


def likelihood(
    model: LanguageModel, pairs: Sequence[Pair], scores: Sequence[Score], unnormalised: float | None
) -> dict[str, Any]:
    """What `score` reported is the sum of `log_probs`, the computation that the audits look at; and Σ p is 1.

    Compared on the longest, the median and random texts, as the model computes. `unnormalised`: how far the causality
    audit found the log of Σ p from 0; None where it was no number.
    """
    some = causal.texts_to_look_at(pairs)
    found = [model.log_probs([pairs[index]])[0] for index in some]  # each alone: padding costs what a text does
    apart = float(
        np.max(
            [
                abs(scores[index].nll + float(log_probs.sum())) / len(log_probs)
                for index, log_probs in zip(some, found, strict=True)
            ]
        )
    )
    counted = all(scores[index].tokens == len(pairs[index][1]) for index in some)
    limit = tolerance(model)
    same, whole = apart <= limit, unnormalised is not None and unnormalised <= causal.tolerance(model)
    if not same:
        said = (
            f"score and the sum of log_probs differ by {apart:.3g} nats a token: two computations, one of them audited"
        )
    elif not counted:
        said = "score counts other tokens than the responses have"
    elif not whole:
        said = "the probabilities of all tokens do not sum to 1" + (
            f" (their log is {unnormalised:.3g})" if unnormalised is not None else ""
        )
    else:
        said = f"score is the sum of the audited log-probabilities within {apart:.1g} nats a token, and Σ p is 1"
    return {
        "passed": bool(same and whole and counted),
        "summary": f"{said} ({len(some)} texts, tolerance {limit:g})",
        "score_difference": apart if np.isfinite(apart) else None,
        "unnormalised": unnormalised,
        "tolerance": limit,
    }


def padding(model: LanguageModel, pairs: Sequence[Pair], scores: Sequence[Score]) -> dict[str, Any]:
    """Padding on the other side and packing change nothing, where a model is run so elsewhere (`otherwise`)."""
    some = sample(pairs, OTHERWISE_TEXTS)
    said, figures, passed = [], {}, True
    for way, nll in model.otherwise([pairs[i] for i in some]).items():
        apart = float(
            np.max([abs(scores[i].nll - other) / scores[i].tokens for i, other in zip(some, nll, strict=True)])
        )
        same = bool(apart <= tolerance(model))
        passed &= same
        figures[f"{way.replace(' ', '_')}_difference"] = apart if np.isfinite(apart) else None
        verb = "changes nothing" if same else "CHANGES the likelihood"
        said.append(f"scoring {way} {verb} ({apart:.1g} nats a token)")
    return {"passed": passed, "summary": "; ".join(said) or "this model is run in one way alone", **figures}


def question(
    model: LanguageModel, rows: Sequence[dict[str, Any]], pairs: Sequence[Pair], scores: Sequence[Score]
) -> dict[str, Any]:
    """Whether references are likelier after their own question than after another's.

    Fails where they are surely less likely, by a paired permutation test over questions (Fisher 1935): prompts and
    responses then do not belong together. A model that was barely trained looks at its question so little that nothing
    is told, and that is said.

    `rows` are those of predictions.jsonl; of those with answers the ROUGE-L against another's reference stands beside.
    """
    chosen, seen = [], set()
    for index in sample(pairs, len(pairs)):
        if rows[index]["question_id"] not in seen and len(chosen) < QUESTIONS:
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
        own, others = map(list, zip(*swapped, strict=True))
        shuffled = model.score([rows[i]["prompt"] for i in others], [rows[i]["reference"] for i in own])
        worse = np.array(
            [(there.nll - scores[i].nll) / scores[i].tokens for i, there in zip(own, shuffled, strict=True)]
        )
        if np.isfinite(worse).all():
            passed, sentence, figures = _told(worse)
            said.append(sentence)
        else:
            passed = False
            said.append("the likelihood of a reference after another question is no finite number")
    # Of a reference without words there is no ROUGE
    answered = [row for row in rows if row["prediction"] is not None and row["rougeL"] is not None]
    if len({row["question_id"] for row in answered}) > 1:
        figures |= _shuffled_rouge(answered)
        said.append(
            f"ROUGE-L is {figures['rougeL']:.3f} against the answers' own references and "
            f"{figures['shuffled_rougeL']:.3f} against those of other questions"
        )
    return {"passed": passed, "summary": "; ".join(said) or "one question alone allows no control", **figures}


def _told(worse: np.ndarray) -> tuple[bool, str, dict[str, Any]]:
    """Whether it is not surely negative, how that is said, and the figures. `worse`: nats a token, by question."""
    from scipy.stats import permutation_test  # takes a second to import

    # Of float32, as the models' numbers are: what differs by its rounding alone is a tie, whatever the processor.
    # Of so few questions every way of turning the signs is looked at, none is drawn.
    p_value = float(permutation_test((np.float32(worse),), np.mean, permutation_type="samples").pvalue)
    told, gained = p_value < LEVEL, float(worse.mean())
    verb = "are likelier" if gained > 0 else "are LESS likely"
    said = (
        f"{len(worse)} references {verb if told else 'cannot be told to be likelier or less likely'} after their own "
        f"questions than after others (by {gained:.3g} nats a token, p = {p_value:.2g})"
    )
    return not told or gained > 0, said, {"nats_gained": gained, "p_value": p_value, "questions": len(worse)}


def _shuffled_rouge(answered: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean ROUGE-L of the answers, and against the reference of the next answer that is to another question."""
    shuffled = []
    for index, row in enumerate(answered):
        following = (answered[(index + step) % len(answered)] for step in range(1, len(answered)))
        other = next(other for other in following if other["question_id"] != row["question_id"])
        shuffled.append(rouge.scores_of(row["prediction"], other["reference"])["rougeL"])
    own = [row["rougeL"] for row in answered]
    return {"rougeL": float(np.mean(own)), "shuffled_rougeL": float(np.mean(shuffled))}
