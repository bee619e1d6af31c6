"""Copies held against slow references and whole figures by hand, wherever among the training rows they stand."""

import itertools
import math
import random
from collections import Counter

import pytest

from eval.audits import overlap
from eval.audits.overlap import (
    answer_of,
    answers_of,
    contamination,
    longest_overlaps,
    memorisation,
    nearest_answers,
    question_of,
)

WORDS = ["bond", "fund", "tax", "rent", "gold", "loan", "share", "bank", "save", "debt"]


def example(id, question, answer, question_id=None, **others):
    return {
        "id": id,
        "question_id": question_id or id,
        "instruction": question,
        "input": "",
        "output": answer,
        **others,
    }


def turns(*contents):
    roles = itertools.cycle(("user", "assistant"))
    return {"history": [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]}


def test_what_a_user_says_and_what_is_taught_in_a_conversation():
    row = example("a", "And now?", "Nothing.", input="in May", **turns("First?", "One.", "Second?", "Two."))
    assert question_of(row) == "First?\nSecond?\nAnd now?\nin May"
    assert question_of(example("b", "Why?", "So.")) == "Why?" and question_of(example("b", "Why?", "")) == "Why?"
    assert answer_of(row) == "Nothing."
    other = example("b", "Why?", "So.", **turns("Third?", "Three."))
    assert answers_of([row, example("c", "Who?", "He."), other]) == ["Nothing.", "He.", "So.", "One.", "Two.", "Three."]


# Contamination -------------------------------------------------------------------------------------------------------

LONG = "My partner and I earn about forty thousand a year, how much of it should we put aside for our pension?"
BOND = "A bond is a loan to a state or to a firm, which pays interest on it until the day on which it is paid back."
FEES = "How high are the fees of a fund that holds shares of {} firms from all over the world?"
RENT = "How much is the rent of a flat of {} rooms in the middle of London?"
TEST = [
    example("e", "What is gold?", "It is a metal."),
    example("d", LONG, "Half of it, and more than that in good years."),
    example("c", RENT.format(3), BOND),
    example("b", FEES.format(20), "They are about one part in a hundred of what the fund holds."),
    example("a", "", "Nobody asked for any of this, and nobody ever will."),
    example("f", "Who pays?", "He or she pays."),
]
COPIES = [
    example("t", "what is GOLD", "None."),
    example("u", LONG.replace("forty", "sixty"), "Two."),
    example("v", "Other?", BOND.replace("interest", "money")),
    example("w", FEES.format(35), "Three."),
    example("x", FEES.format(40), "Four."),
    example("y", RENT.format(4), "he or she pays"),
]


@pytest.mark.parametrize("part", [1, 4, 6, 2048])
def test_every_kind_of_copy_is_found_wherever_it_stands(monkeypatch, part):
    monkeypatch.setattr(overlap, "PART", part)
    """Of what is a copy by its answer it is not counted that its question stands there with other numbers."""
    expected = {
        "passed": False, "exact_questions": 1, "near_questions": 1, "exact_answers": 0, "near_answers": 1,
        "within": {"questions": 0, "answers": 0}, "other_numbers": 1, "training_examples": 6, "threshold": 0.5,
        "contaminated": ["c", "d", "e"],
        "summary": "3 of 6 examples have a duplicate among 6 training examples (questions: 1 exact, 1 near; "
        "answers: 0 exact, 1 near); 0 questions and 0 answers repeat within the split; 1 other questions stand in "
        "training with other numbers",
    }  # fmt: skip
    for start in range(6) if part == 4 else (0, 3):
        training = COPIES[start:] + COPIES[:start]
        assert contamination(random.Random(start).sample(TEST, 6), training) == expected


def test_every_kind_of_copy_is_counted_as_what_it_is():
    for number, (found, counted) in enumerate([
        (["e"], "exact_questions"), (["d"], "near_questions"), (["c"], "near_answers"), ([], "other_numbers"),
        ([], "other_numbers"), ([], "other_numbers"),
    ]):  # fmt: skip
        one = contamination(TEST, [COPIES[number]])
        counts = {name: one[name] for name in one if name.startswith(("exact", "near", "other"))}
        assert one["contaminated"] == found and one["passed"] is (not found)
        assert {name: count for name, count in counts.items() if count} == {counted: 1}


@pytest.mark.parametrize(
    ("answer", "copied"), [("It is none of it.", True), ("It is none ofit.", False), ("It is none of . . .", False)]
)
def test_an_answer_of_five_words_may_be_a_copy(answer, copied):
    training = [example("t", "One?", "other words than these"), example("u", "Two?", answer.upper())]
    found = contamination([example("a", "Three?", answer)], training)
    assert (found["exact_answers"], found["near_answers"], found["passed"]) == (copied, 0, not copied)
    asked = contamination([example("a", "Why", "")], [example("t", "why?", "So.")])  # of questions one word is enough
    assert (asked["exact_questions"], asked["near_questions"]) == (1, 0)
    assert contamination([example("a", "", "")], [example("t", "", "")])["passed"]
    assert contamination([example("a", "?", "")], [example("t", "?", "")])["exact_questions"] == 1


def test_what_repeats_within_the_split_is_of_another_question():
    answer = "It is a loan to a state or to a firm."
    test = [example(str(n), question, answer, question_id) for n, (question, question_id) in enumerate([
        ("What is a bond?", "q"), ("what is a BOND", "q"), ("What is a bond", "r"), ("Who lends?", "s"),
        ("Who lends?", "s"),
    ])]  # fmt: skip
    found = contamination(test, [])
    assert found["within"] == {"questions": 1, "answers": 3}
    assert found["passed"] and found["contaminated"] == [] and found["training_examples"] == 0
    assert contamination(test[::-1], [])["within"] == {"questions": 2, "answers": 3}
    short = [{**row, "output": "No."} for row in test]
    shifted = contamination([example("x", "Why?", "No."), *short, example("y", "Why not?", answer), *test[:1]], [])
    assert shifted["within"] == {"questions": 2, "answers": 1}


INSTRUCTION = "Answer the following question of a customer as a friendly and honest adviser of a bank would do: {}"
ASKED = ["gold", "rents", "taxes", "loans", "debts", "funds", "shares", "bonds", "pensions", "wages", "fees", "prices",
         "cash", "coins", "wills", "trusts", "yields", "options", "futures", "swaps", "deeds", "notes"]  # fmt: skip


@pytest.mark.parametrize(("others", "alike"), [(19, True), (20, False), (21, False)])
def test_what_more_than_twenty_of_all_texts_have_in_common_makes_no_two_alike(others, alike):
    """The test texts and the training texts together."""
    training = [example(str(n), INSTRUCTION.format(asked), "So.") for n, asked in enumerate(ASKED[:others])]
    test = [example("a", INSTRUCTION.format("crypto"), "No.")]
    found = contamination(test, training)
    assert (found["near_questions"], found["exact_questions"]) == (alike, 0)
    assert contamination(test, training[::-1])["near_questions"] == alike
    numbered = [{**row, "instruction": f"{row['instruction']} ({n})"} for n, row in enumerate([*test, *training])]
    assert contamination(numbered[:1], numbered[1:])["other_numbers"] == alike


# Memorisation --------------------------------------------------------------------------------------------------------


def longest_by_hand(answer, training):
    """Every two places, word by word."""
    longest = 0
    for text in training:
        for one, other in itertools.product(range(len(answer)), range(len(text))):
            length = 0
            while answer[one + length : one + length + 1] == text[other + length : other + length + 1] != []:
                length += 1
            longest = max(longest, length)
    return longest if longest >= 5 else 0


@pytest.mark.parametrize("seed", range(8))
def test_the_longest_run_of_any_texts(seed):
    draw = random.Random(seed)
    some = WORDS[: 2 + seed % 3]
    answers, training = ([draw.choices(some, k=draw.randrange(16)) for _ in range(count)] for count in (6, 5))
    training.append(["x", *answers[0][-7:]])  # at the end of both
    training.append([*answers[1][:6], "y"])  # at the beginning
    found = longest_overlaps([*map(" ".join, answers)], [*map(" ".join, training)])
    assert found == [longest_by_hand(answer, training) for answer in answers]
    for answer in ("a b c d e", "x a b c d e", "a b c d e x"):
        for text in ("a b c d e", "y a b c d e", "a b c d e y", "y a b c d e y"):
            assert longest_overlaps([answer], [text]) == [5]
    assert longest_overlaps([" ".join(answers[2])], []) == [0] and longest_overlaps([], ["a b c d e f"]) == []


@pytest.mark.parametrize("seed", range(8))
def test_the_nearest_question_of_any(seed):
    draw = random.Random(seed)
    questions = [draw.choices(WORDS, k=draw.randrange(1, 8)) for _ in range(14)]
    rows = [example(str(number), " ".join(words), f"answer {number}") for number, words in enumerate(questions)]
    training, asked = rows[:9], rows[9:]
    holding = Counter(word for words in questions for word in {*words})
    weights = [{word: count * math.log(14 / holding[word]) for word, count in Counter(words).items()}
               for words in questions]  # fmt: skip

    def cosine(one, other):
        lengths = [math.sqrt(sum(value**2 for value in each.values())) for each in (one, other)]
        return sum(value * other.get(word, 0) for word, value in one.items()) / math.prod(lengths)

    found = nearest_answers(asked, training)
    assert len(found) == 5
    for number, answer in enumerate(found, 9):
        cosines = [cosine(weights[number], each) for each in weights[:9]]
        assert cosines[int(answer.removeprefix("answer "))] == pytest.approx(max(cosines))


def test_of_two_questions_that_are_as_near_the_first_is_taken():
    training = [example("s", "gold", "1"), example("t", "rent?", "2"), example("u", "RENT", "3")]
    assert nearest_answers([example("a", "Rent", "x"), example("b", "none", "x")], training) == ["2", "1"]
    assert nearest_answers([example("a", "", "x")], [example("s", "", "1"), example("t", "", "2")]) == ["1"]


RUN = " ".join(f"w{number}" for number in range(24))


def answered(*predictions):
    return [{**example(str(number), "w0 w1", "r"), "prediction": prediction, "reference": "w0 w1 w2 w3 w4",
             "rougeL": 0.1 * number} for number, prediction in enumerate(predictions)]  # fmt: skip


def test_every_figure_of_what_is_memorised():
    rows = answered("w0 w1 w2 w3 w4 w5 w6", None, RUN, "none of it", "w1 w2 w3 w4 w5")
    training = [example("s", "other", "nothing"), example("t", "w0 w1 please", RUN, **turns("x", f"before {RUN} y"))]
    found = memorisation(rows, training, trained=True)
    assert [row.get("verbatim_words") for row in rows] == [7, None, 24, 0, 5]
    of_copies = {"rouge1": 4 / 7, "rouge2": 2 / 5, "rougeL": 4 / 7, "rougeLsum": 4 / 7, "bleu": 0.0}
    of_nearest = {"rouge1": 10 / 29, "rouge2": 8 / 27, "rougeL": 10 / 29, "rougeLsum": 10 / 29}
    bleu = 100 * (5 / 24 * 4 / 23 * 3 / 22 * 2 / 21) ** 0.25
    assert found == {
        "passed": False, "longest_words": 24, "median_words": 6.0, "memorised_share": 0.25,
        "baselines": {"copy the question": pytest.approx(of_copies),
                      "nearest training answer": pytest.approx({**of_nearest, "bleu": bleu})},
        "summary": "25 % of 4 answers hold 20 or more words of one training answer (longest 24, median 6); ROUGE-L is "
        "0.225, that of copying 0.571 (copy the question) and 0.345 (nearest training answer)",
    }  # fmt: skip
    assert "one training answer, not trained on, (longest 24" in memorisation(rows, training, False)["summary"]


@pytest.mark.parametrize(("words", "copied", "of", "passed"), [
    (20, 1, 20, True), (20, 2, 20, False), (19, 2, 2, True), (20, 1, 19, False),
])  # fmt: skip
def test_a_twentieth_of_the_answers_may_hold_twenty_words_of_an_answer(words, copied, of, passed):
    run = " ".join(RUN.split()[:words])
    rows = answered(*[run] * copied, *["none of it"] * (of - copied))
    found = memorisation(rows, [example("t", "w0", f"x {run} y")], True)
    assert (found["passed"], found["memorised_share"]) == (passed, copied / of if words == 20 else 0)


def test_without_answers_or_words_nothing_is_told():
    nothing = {"passed": True, "summary": "no answers written, nothing to compare"}
    assert memorisation(answered(None, None), [], True) == nothing
    rows = [{**row, "reference": "…", "rougeL": None} for row in answered("w0", "w1")]
    found = memorisation(rows, [example("t", "w0", "x")], True)
    none = {"rouge1": None, "rouge2": None, "rougeL": None, "rougeLsum": None, "bleu": None}
    assert found["baselines"] == {"copy the question": none, "nearest training answer": none}
    assert "ROUGE-L is not defined (no words in the references), that of copying not defined" in found["summary"]
    some = memorisation([*rows, *answered("w0")], [example("t", "w0", "w0 w1 w2 w3 w4")], True)
    assert some["baselines"]["nearest training answer"]["rougeL"] == 1.0 and "ROUGE-L is 0.000" in some["summary"]
