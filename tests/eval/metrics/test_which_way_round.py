"""Which of two texts is the answer, all four ROUGE by name, and all references when one tokenizer is chosen."""

import pytest
import sacrebleu

from eval.metrics.figures import measure
from eval.metrics.rouge import Rouge, scores_of


def test_a_reference_without_words_has_no_score_and_an_answer_without_words_has_none_of_its_reference():
    nothing = {"rouge1": None, "rouge2": None, "rougeL": None, "rougeLsum": None}
    assert Rouge()._compute(["tax"], ["…"]) == nothing == scores_of("tax", "…")
    assert Rouge()._compute(["…"], ["tax"]) == dict.fromkeys(nothing, 0) == scores_of("…", "tax")
    assert Rouge()._compute(["tax is due"], ["tax was due"]) == pytest.approx(
        {"rouge1": 2 / 3, "rouge2": 0, "rougeL": 2 / 3, "rougeLsum": 2 / 3}
    )
    assert Rouge()._compute(["tax", "tax"], ["…", "tax"], use_aggregator=False) == {
        "rouge1": [None, 1], "rouge2": [None, 0], "rougeL": [None, 1], "rougeLsum": [None, 1]
    }  # fmt: skip


def test_lines_of_the_reference_are_sentences_that_are_each_held_against_all_of_the_answer():
    """A sentence of a reference finds its words in each sentence of the answer once: one line says "pay" twice."""
    assert scores_of("pay\npay", "pay pay")["rougeLsum"] == pytest.approx(0.5)
    assert scores_of("pay pay", "pay\npay")["rougeLsum"] == pytest.approx(1)


def test_the_first_and_the_last_reference_are_among_those_that_choose_the_tokenizer():
    pairs = [("国家付钱给他们", "国家付钱给银行"), ("tax is due", "tax is due now")]
    for answers, references in (zip(*pairs, strict=True), zip(*pairs[::-1], strict=True)):
        rows = [{"question_id": reference, "nll": 1.0, "tokens": 2, "correct_tokens": 1, "bytes": 9, "stopped": True,
                 "prediction": answer, "reference": reference}
                for answer, reference in zip(answers, references, strict=True)]  # fmt: skip
        expected = sacrebleu.metrics.BLEU(tokenize="zh").corpus_score(list(answers), [list(references)]).score
        assert measure(rows).metrics["bleu"].value == pytest.approx(expected)
