"""Copies at the first and the last place, and what only the exact comparison or only the near one tells."""

import pytest

from eval.audits import overlap
from eval.audits.overlap import contamination, longest_overlaps, memorisation
from eval.metrics import bleu


def example(id, question, answer, question_id=None):
    return {"id": id, "question_id": question_id or id, "instruction": question, "input": "", "output": answer}


def answered(*rows):
    """Of each row its question, its answer and the reference."""
    return [{**example(str(number), question, reference), "prediction": prediction, "reference": reference,
             "rougeL": 0.0} for number, (question, prediction, reference) in enumerate(rows)]  # fmt: skip


@pytest.mark.parametrize("number", ["3.5", "3,5"])
def test_what_is_equal_but_for_punctuation_is_a_copy_even_where_no_number_is_the_same(number):
    """By their numbers the two are not near: exact alone says so."""
    found = contamination(
        [example("a", "Is a rate of 3-5 high?", ""), example("b", "Why?", "")],
        [example("t", f"Is a rate of {number} high?", "")],
    )
    assert (found["exact_questions"], found["near_questions"]) == (1, 0)
    assert found["contaminated"] == ["a"] and not found["passed"]


def test_of_many_copies_each_that_repeats_another_question_is_counted():
    """Of 34 alike a text is held against 32: those after the one of another question repeat that, and it the first."""
    test = [example(str(n), "What is it?", "", "r" if n == 31 else "q") for n in range(34)]
    assert contamination(test, [])["within"] == {"questions": 3, "answers": 0}


def test_training_texts_are_looked_at_once_a_part_at_a_time(monkeypatch):
    monkeypatch.setattr(overlap, "PART", 2)
    assert [*overlap._parts("abcde")] == ["ab", "cd", "e"] and [*overlap._parts("ab")] == ["ab"]
    assert [*overlap._parts("")] == []


@pytest.mark.parametrize(("answer", "text", "words"), [
    ("z a b c d e", "a b c d e z", 5), ("a b c d e z", "z a b c d e", 5), ("z a b c d e", "y a b c d e z", 5),
    ("a b c d e f g", "b c d e f g a", 6), ("b c d e f g a", "a b c d e f g", 6), ("a b c d", "a b c d", 0),
])  # fmt: skip
def test_a_run_at_the_beginning_of_one_text_is_not_taken_for_part_of_another(answer, text, words):
    """Whatever word the other end of that text has."""
    assert longest_overlaps([answer], [text]) == [words]


def test_every_answer_counts_the_first_and_the_last_among_them():
    long = " ".join(f"w{number}" for number in range(20))
    training = [example("t", "other", long)]
    for place in range(3):
        rows = answered(*[("gold", "none of it", "gold coins"), ("rent", "none of it", "x"), ("tax", "no", "y")])
        rows[place]["prediction"] = long
        found = memorisation(rows, training, True)
        assert found["memorised_share"] == pytest.approx(1 / 3) and not found["passed"]
        assert found["median_words"] == 0 and isinstance(found["median_words"], float)
    for questions, share in ((("gold", "a", "b"), 1 / 3), (("a", "x", "b"), 1 / 3), (("gold", "x", "y"), 1.0)):
        references = ("gold", "x", "y")
        found = memorisation(
            answered(*((q, "no", r) for q, r in zip(questions, references, strict=True))), training, True
        )
        assert found["baselines"]["copy the question"]["rouge1"] == pytest.approx(share)


def test_all_references_of_a_split_say_how_words_are_told_apart(monkeypatch):
    """Those of rows that were not answered too: BLEU of the baselines is told apart as that of the model."""
    asked = []
    monkeypatch.setattr(bleu, "tokenizer_for", lambda references: asked.extend(references) or "char")
    rows = answered(("a", "x", "one"), ("b", "cab", "abc de"), ("c", None, "three"))
    found = memorisation(rows, [example("t", "b", "abc de")], True)
    assert asked == ["one", "abc de", "three"]
    assert found["baselines"]["nearest training answer"]["bleu"] == pytest.approx(
        bleu.corpus_bleu(["abc de", "abc de"], ["one", "abc de"], "char")
    )
