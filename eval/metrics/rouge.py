"""ROUGE-1, -2, -L and -Lsum F1 (Lin 2004) by the package rouge_score, as an `evaluate.Metric` that needs no network."""

import importlib.metadata

import datasets
import evaluate
from rouge_score import rouge_scorer

TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SIGNATURE = f"rouge_score {importlib.metadata.version('rouge_score')}, F1, stemmer: no, sentences: by line feed"


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
        return {type: sum(values) / len(values) for type, values in columns.items()}


SCORER = rouge_scorer.RougeScorer(TYPES, use_stemmer=False)


def scores_of(prediction: str, reference: str) -> dict[str, float]:
    """The four F1 scores of one prediction."""
    return {type: score.fmeasure for type, score in SCORER.score(reference, prediction).items()}
