"""ROUGE-1, -2, -L and -Lsum F1 (Lin 2004) by the package rouge_score, as an `evaluate.Metric` that needs no network."""

import importlib.metadata
from collections.abc import Sequence

import datasets
import evaluate
from rouge_score import rouge_scorer, tokenizers

from finllm.text.words import words

TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SIGNATURE = (
    f"rouge_score {importlib.metadata.version('rouge_score')}, F1, stemmer: no, words: Unicode, sentences: by line feed"
)


class Rouge(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="ROUGE F1, the mean over examples, 0 to 1. " + SIGNATURE,
            citation="",
            inputs_description="Args: predictions, references: texts. use_aggregator: False gives a list per type.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, use_aggregator=True):
        scores = [scores_of(*pair) for pair in zip(predictions, references, strict=True)]
        columns = {type: [score[type] for score in scores] for type in TYPES}
        if not use_aggregator:
            return columns
        return {type: mean_of(values) for type, values in columns.items()}


class Words(tokenizers.Tokenizer):
    """Words of all scripts; in ASCII those of rouge_score's own tokenizer, which knows of nothing else."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


SCORER = rouge_scorer.RougeScorer(TYPES, tokenizer=Words())


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of the values that there are; None where there are none."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def scores_of(prediction: str, reference: str) -> dict[str, float | None]:
    """The four F1 scores of one prediction; None where the reference has no word, so that none could be found."""
    if not words(reference):
        return dict.fromkeys(TYPES)
    return {type: score.fmeasure for type, score in SCORER.score(reference, prediction).items()}
