"""Figures of references that hold nothing, figures of every kind beside each other, and what is not said meanwhile."""

import logging
import math

import pytest

from eval.metrics.bleu import Bleu, counts_of, sentence_bleu
from eval.metrics.figures import GENERATION, LIKELIHOOD, measure
from eval.results import NUMBER_METRICS


def row(answer, reference, number=None, question="a"):
    own = {"question_id": question, "nll": 2.0, "tokens": 4, "correct_tokens": 1, "bytes": len(reference.encode()),
           "reference": reference, "prediction": answer, "stopped": True}  # fmt: skip
    return own | ({"number": number} if number else {})


def test_a_reference_of_blanks_alone_has_no_length_and_no_words():
    found = measure([row("tax is due", " ")]).metrics
    assert {name for name, each in found.items() if each is None} == {
        "length_ratio", "rouge1", "rouge2", "rougeL", "rougeLsum", "bleu"
    }  # fmt: skip
    assert found["stop_rate"].value == 1 and found["repetition"].value == 0
    both = measure([row("tax is due", " "), row("tax", "tax is", question="b")]).metrics
    assert both["length_ratio"].value == 4 / 2 and both["rouge1"].value == pytest.approx(2 / 3)


def test_figures_of_likelihoods_answers_and_numbers_stand_beside_each_other():
    number = {"value": "5", "unit": "$", "tolerance": "0"}
    found = measure([row("It is $5.", "It is $5.", number), row("Save more of it.", "Save more of it.", question="b")])
    assert list(found.metrics) == [*LIKELIHOOD, *GENERATION, *NUMBER_METRICS]
    assert found.numbers == 1 and found.metrics["number_right"].value == 1
    assert found.metrics["rougeL"].value == 1 and found.metrics["nll_per_token"].value == 0.5


def test_the_module_scores_answers_against_references_and_not_the_other_way_round():
    found = Bleu()._compute(["a b c d"], ["a b c d e f"])
    assert found["bleu"] == pytest.approx(100 * math.exp(1 - 6 / 4))
    other = Bleu()._compute(["a b c d e f"], ["a b c d"])
    assert other["bleu"] == pytest.approx(100 * (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_a_single_answer_is_scored_without_advice_on_how_to(caplog):
    """sacrebleu warns of sentences whose missing n-grams count as none found."""
    with caplog.at_level(logging.WARNING):
        counts_of("tax is due", "tax is due in may")
        sentence_bleu("tax is due", "tax is due in may")
    assert not caplog.records
