"""From per-example rows to a split's figures with their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from eval.metrics import bleu, perplexity, rouge
from eval.results import SplitResults
from eval.statistics.uncertainty import bootstrap


def measure(rows: list[dict[str, Any]]) -> SplitResults:
    """All figures of a split. Adds `rouge1` … `rougeLsum` and `bleu` to every row, None where nothing was generated."""
    likelihood = np.array([[row["nll"], row["tokens"], row["correct_tokens"], row["bytes"]] for row in rows])
    metrics = bootstrap(likelihood, [row["question_id"] for row in rows], lambda sums: perplexity.from_sums(*sums))
    answered = []
    for row in rows:
        generated = row["prediction"] is not None
        scores = rouge.scores_of(row["prediction"], row["reference"]) if generated else dict.fromkeys(rouge.TYPES)
        row.update(scores, bleu=bleu.sentence_bleu(row["prediction"], row["reference"]) if generated else None)
        if generated:
            answered.append(row)
    if answered:
        statistics = np.array([_statistics(row) for row in answered])
        metrics |= bootstrap(statistics, [row["question_id"] for row in answered], _generation_figures)
    return SplitResults(
        examples=len(rows),
        questions=len({row["question_id"] for row in rows}),
        tokens=sum(row["tokens"] for row in rows),
        bytes=sum(row["bytes"] for row in rows),
        generated=len(answered),
        metrics=metrics,
    )


RATES = (*rouge.TYPES, "stop_rate", "repetition")


def _statistics(row: dict[str, Any]) -> list[float]:
    """What adds up over answers: 1, the rates, words of answer and reference, and BLEU's ten counts."""
    answer, reference = row["prediction"], row["reference"]
    rates = [*(row[type] for type in rouge.TYPES), row["stopped"], repetition(answer)]
    return [1, *rates, len(answer.split()), len(reference.split()), *bleu.counts_of(answer, reference)]


def _generation_figures(sums: np.ndarray) -> dict[str, float]:
    count, rates, (words, reference_words), counts = sums[0], sums[1:7], sums[7:9], sums[9:]
    return {
        **dict(zip(RATES, rates / count, strict=True)),
        "length_ratio": words / reference_words,
        "bleu": bleu.from_counts(counts),
    }


def repetition(text: str, n: int = 4) -> float:
    """Share of an answer's word n-grams that it has said before: seq-rep-n of Welleck et al. 2019, section 4."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
