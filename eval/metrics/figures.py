"""From per-example rows to a split's figures with their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from eval.metrics import bleu, number, perplexity, rouge
from eval.results import NUMBER_METRICS, Interval, SplitResults
from eval.statistics.uncertainty import LEVEL, Figure, intervals
from finllm.text.words import pieces

# By their columns of summed statistics, see measure and _statistics
LIKELIHOOD = {
    "nll_per_token": Figure(1),
    "perplexity": Figure(1, low=1, exponential=True),
    "bits_per_byte": Figure(3),
    "token_accuracy": Figure(1, high=1),
}
GENERATION = {
    **dict.fromkeys(rouge.TYPES, Figure(5, high=1)),
    "stop_rate": Figure(0, high=1),
    "repetition": Figure(0, high=1),
    "length_ratio": Figure(4),
    "bleu": Figure(4, high=100),
}
NUMBERS = dict.fromkeys(NUMBER_METRICS, Figure(0, high=1))


def measure(rows: list[dict[str, Any]], tokenizer: str | None = None) -> SplitResults:
    """All figures of a split. Adds `rouge1` … `rougeLsum` and `bleu` to every row, None where nothing was generated or
    the reference has no word, and to each answer that must reach a number what eval/metrics/number.py says of it.
    `tokenizer` is BLEU's; without one the references choose it.
    """
    tokenizer = tokenizer or bleu.tokenizer_for(row["reference"] for row in rows)
    likelihood = np.array([[row["nll"], row["tokens"], row["correct_tokens"], row["bytes"]] for row in rows])
    questions = [row["question_id"] for row in rows]
    metrics = intervals(likelihood, questions, lambda sums: perplexity.from_sums(*sums), LIKELIHOOD)
    answered = []
    for row in rows:
        answer, generated = (row["prediction"], row["reference"]), row["prediction"] is not None
        scores = rouge.scores_of(*answer) if generated else dict.fromkeys(rouge.TYPES)
        row.update(scores, bleu=bleu.sentence_bleu(*answer, tokenizer) if generated else None)
        if generated:
            answered.append(row)
            if row.get("number"):
                row.update(number.looked_at(*answer, number.Wanted(**row["number"])))
    if answered:
        statistics = np.array([_statistics(row, tokenizer) for row in answered])
        questions = [row["question_id"] for row in answered]
        metrics |= intervals(statistics, questions, _generation_figures, GENERATION)
    asked = [row for row in answered if row.get("number")]
    if asked:
        statistics = np.array([[1, *(row[name] for name in NUMBER_METRICS)] for row in asked])
        questions = [row["question_id"] for row in asked]
        found = intervals(statistics, questions, _shares_of_numbers, NUMBERS)
        metrics |= {name: _at_an_end(interval, len(set(questions))) for name, interval in found.items()}
    return SplitResults(
        examples=len(rows),
        questions=len({row["question_id"] for row in rows}),
        tokens=sum(row["tokens"] for row in rows),
        bytes=sum(row["bytes"] for row in rows),
        generated=len(answered),
        metrics=metrics,
        numbers=len(asked),
    )


def _statistics(row: dict[str, Any], tokenizer: str) -> list[float]:
    """What adds up over answers: 1, the rates, lengths of answer and reference in pieces; and of answers whose
    reference has words: 1, the four ROUGE, whether the reference has four tokens, and BLEU's ten counts."""
    answer, reference = row["prediction"], row["reference"]
    own = [1, row["stopped"], repetition(answer), len(pieces(answer)), len(pieces(reference))]
    if row["rougeL"] is None:
        return [*own, *[0] * 16]
    counts = bleu.counts_of(answer, reference, tokenizer)
    return [*own, 1, *(row[type] for type in rouge.TYPES), counts[-1] >= bleu.ORDER, *counts]


def _generation_figures(sums: np.ndarray) -> dict[str, float | None]:
    """The figures of summed statistics; None where there is nothing that a figure could be about."""
    count, stopped, repeated, length, reference_length, worded, *rouges = sums[:10]
    return {
        **{type: value / worded if worded else None for type, value in zip(rouge.TYPES, rouges, strict=True)},
        "stop_rate": stopped / count,
        "repetition": repeated / count,
        "length_ratio": length / reference_length if reference_length else None,
        "bleu": bleu.from_counts(sums[11:]) if sums[10] else None,
    }


def _shares_of_numbers(sums: np.ndarray) -> dict[str, float]:
    return dict(zip(NUMBER_METRICS, sums[1:] / sums[0], strict=True))


def _at_an_end(interval: Interval, questions: int) -> Interval:
    """Wilson's interval (1927) of a share that is 0 or 1 on every question, whose jackknife has no width: "none of 15"
    does not say "none of all". Others are as they are."""
    if 0 < interval.value < 1:
        return interval
    from scipy.stats import binomtest  # takes a second to import

    ends = binomtest(round(interval.value * questions), questions).proportion_ci(LEVEL, method="wilson")
    return Interval(interval.value, float(ends.low), float(ends.high))


def repetition(text: str, n: int = 4) -> float:
    """Share of an answer's word n-grams that it has said before: seq-rep-n of Welleck et al. 2019, section 4."""
    words = pieces(text)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
