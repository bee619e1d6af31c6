"""The metric modules: through `evaluate.load` without a network, and against the libraries they stand on."""

import math

import evaluate
import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from eval.metrics import bleu, rouge
from eval.metrics.figures import measure, repetition
from eval.statistics.uncertainty import Figure, intervals

PREDICTIONS = ["A bond is a loan to a firm or a state.", "Tax is due in April", "", "the same words here"]
REFERENCES = [
    "A bond is a loan you make to a state or a firm.",
    "Tax falls due in April.",
    "An answer.",
    "the same words here",
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError(f"a connection was tried: {arguments}")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture
def load(tmp_path):
    return lambda name: evaluate.load(f"eval/metrics/{name}.py", cache_dir=str(tmp_path))


def test_rouge_is_rouge_score(load):
    scorer = rouge_scorer.RougeScorer(rouge.TYPES)
    each = [scorer.score(reference, prediction) for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)]
    expected = {type: sum(score[type].fmeasure for score in each) / len(each) for type in rouge.TYPES}
    assert load("rouge").compute(predictions=PREDICTIONS, references=REFERENCES) == pytest.approx(expected, abs=1e-12)


def test_bleu_is_sacrebleu_with_its_signature(load):
    metric = sacrebleu.metrics.BLEU()
    expected = metric.corpus_score(PREDICTIONS, [REFERENCES]).score
    found = load("bleu").compute(predictions=PREDICTIONS, references=REFERENCES)
    assert found == {"bleu": expected, "signature": str(metric.get_signature())}
    assert 0 < expected < 100


@pytest.mark.parametrize("count", [1, 3, 4])
def test_summed_counts_give_the_corpus_bleu(count):
    pairs = list(zip(PREDICTIONS, REFERENCES, strict=True))[:count]
    sums = np.sum([bleu.counts_of(*pair) for pair in pairs], axis=0)
    expected = sacrebleu.corpus_bleu(PREDICTIONS[:count], [REFERENCES[:count]]).score
    assert bleu.from_counts(sums) == pytest.approx(expected, abs=1e-9)


def test_perplexity_divides_sums_once(load):
    found = load("perplexity").compute(nll=[2.0, 10.0], tokens=[1, 9], correct_tokens=[1, 4], bytes=[4, 36])
    assert found == pytest.approx(
        {
            "nll_per_token": 1.2,
            "perplexity": math.exp(1.2),
            "bits_per_byte": 12 / math.log(2) / 40,
            "token_accuracy": 0.5,
        }
    )


@pytest.mark.parametrize(
    ("text", "share"), [("", 0), ("a b c", 0), ("a b c d e", 0), ("a a a a a a", 2 / 3), ("a b c d a b c d", 1 / 5)]
)
def test_repetition_is_the_share_of_four_grams_said_before(text, share):
    assert repetition(text) == pytest.approx(share)


def row(question, nll=1.0, prediction=None, reference="An answer of six words here", stopped=True):
    generated = prediction is not None
    return {"question_id": question, "nll": nll, "tokens": 6, "correct_tokens": 3, "bytes": len(reference),
            "reference": reference, "prediction": prediction, "stopped": stopped if generated else None}  # fmt: skip


def test_figures_of_answers():
    rows = [
        row("a", prediction="An answer of six words here"),
        row("b", prediction="An undeniably", stopped=False),  # of its words a third, of its letters nearly half
        row("c"),
    ]
    split = measure(rows)
    assert (split.examples, split.questions, split.generated) == (3, 3, 2)
    figures = {name: interval.value for name, interval in split.metrics.items()}
    assert figures["stop_rate"] == 0.5
    assert figures["length_ratio"] == 8 / 12
    assert figures["rouge1"] == pytest.approx((1 + 0.25) / 2)
    assert rows[0]["rougeL"] == 1.0 and rows[2]["rougeL"] is None and rows[2]["bleu"] is None
    assert rows[0]["bleu"] == pytest.approx(100)


def test_answers_to_one_question_are_drawn_together():
    """Ten copies of each answer add no knowledge: clustered intervals stay, those that ignore clusters shrink."""
    values = np.random.default_rng(1).normal(size=40)
    once = np.stack([values, np.ones(40)], axis=1)
    many = np.repeat(once, 10, axis=0)
    names = [str(i) for i in range(40)]

    def width(statistics, clusters):
        kinds = {"mean": Figure(1, low=-math.inf)}
        interval = intervals(statistics, clusters, lambda sums: {"mean": sums[0] / sums[1]}, kinds)["mean"]
        assert interval.value == pytest.approx(values.mean())
        return interval.high - interval.low

    clustered = width(many, [name for name in names for _ in range(10)])
    assert clustered == pytest.approx(width(once, names), rel=0.02)
    assert clustered == pytest.approx(2 * 1.96 * values.std() / math.sqrt(40), rel=0.1)
    assert width(many, [str(i) for i in range(400)]) < clustered / 2.5
