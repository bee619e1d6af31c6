"""Audits of models whose every figure is set: what each says of a figure just within its limit and just beyond."""

import contextlib
import math
import random

import numpy as np
import pytest

from eval.audits import overlap
from eval.audits.audit import audit, stopping, template
from eval.audits.causality import (
    Look,
    _cuts,
    _is_length_alone,
    _knows_the_end,
    by_length,
    causality,
    texts_to_look_at,
)
from eval.audits.likelihood import _shuffled_rouge, likelihood, padding, question, reproducibility, sample
from eval.audits.overlap import contamination, memorisation
from eval.models.language_model import Description, Score
from eval.results import AUDITS
from finllm.text.prompts import TEMPLATE_HASH, build_prompt
from finllm.text.templates import Alpaca

VOCABULARY = 50


class Set:
    """Every token has the likelihood of one in fifty, moved by what a test says of a row, its position and its call."""

    template = Alpaca()

    def __init__(
        self, moved=lambda prompt, response, position: 0.0, cut=lambda response, position: 0.0, dtype="float32"
    ):
        self.moved, self.cut, self.description = moved, cut, Description("base", "m", "m", 1, 0, dtype)
        self.ways, self.swapped, self.calls = {}, 0.0, 0

    def encode(self, prompt, response):
        return [ord(letter) % 40 for letter in prompt], [*(ord(letter) % 40 for letter in response), 49]

    def log_probs(self, pairs):
        self.calls += 1
        return [
            np.array([-math.log(VOCABULARY) + self.moved(prompt, response, place) for place in range(len(response))])
            for prompt, response in pairs
        ]

    def distributions(self, pairs, positions):
        return [
            np.full(VOCABULARY, -math.log(VOCABULARY)) + self.cut(response, position)
            for (_, response), position in zip(pairs, positions, strict=True)
        ]

    def in_float32(self):
        return contextlib.nullcontext()

    def otherwise(self, pairs):
        nll = [len(response) * math.log(VOCABULARY) for _, response in pairs]
        return {way: [each + apart * len(pair[1]) for each, pair in zip(nll, pairs, strict=True)]
                for way, apart in self.ways.items()}  # fmt: skip

    def score(self, prompts, responses):
        pairs = [self.encode(*pair) for pair in zip(prompts, responses, strict=True)]
        return [Score(len(response) * (math.log(VOCABULARY) + self.swapped), len(response), 0) for _, response in pairs]


def rows(count=12):
    return [{"id": f"{number:02}", "question_id": f"q{number}", "instruction": f"Question {number}?", "input": "",
             "prompt": f"Question {number}?" * (1 + number % 3), "reference": "abcdefghij"[: 3 + number % 7] * 2,
             "output": "abc", "prediction": None, "stopped": None, "rougeL": None}
            for number in range(count)]  # fmt: skip


def asked(model, data=None):
    data = data or rows()
    pairs = [model.encode(row["prompt"], row["reference"]) for row in data]
    return data, pairs, model.score([row["prompt"] for row in data], [row["reference"] for row in data])


@pytest.mark.parametrize(("apart", "dtype", "passed"), [
    (0.0, "float32", True), (1.9e-4, "float32", True), (2.1e-4, "float32", False), (-2.1e-4, "float32", False),
    (2.1e-4, "bfloat16", False), (0.09, "int8", True), (0.11, "int8", False), (math.nan, "float32", False),
    (-math.inf, "float32", False),
])  # fmt: skip
def test_a_token_that_moves_when_the_rest_is_cut_off(apart, dtype, passed):
    """By more than rounding: the whole texts are `apart` from the cut ones, and so from those filled up otherwise."""
    data, pairs, _ = asked(Set())
    originals = [response for _, response in pairs]
    model = Set(moved=lambda prompt, response, place: apart if response in originals else 0.0, dtype=dtype)
    found = causality(model, data, pairs)
    assert found["passed"] is passed, found
    expected = pytest.approx(abs(apart), abs=1e-9) if math.isfinite(apart) else None
    assert found["largest_difference"] == expected
    assert passed or "it sees the future" in found["summary"]
    assert found["tolerance"] == (0.1 if dtype == "int8" else 2e-4) and found["depends_on_length"] is False


def test_what_moves_with_the_length_alone_is_no_leak_unless_one_token_is_no_number():
    data, pairs, _ = asked(Set())
    longest = max(len(response) for _, response in pairs)

    def of_length(response, position=None):
        return 0.01 * len(response)

    found = causality(Set(lambda prompt, response, place: of_length(response), of_length), data, pairs)
    assert found["passed"] and found["depends_on_length"] and found["largest_difference"] > 0.05
    assert "no leak" in found["summary"]
    broken = Set(
        lambda prompt, response, place: math.nan if len(response) == longest and place else of_length(response),
        of_length,
    )
    found = causality(broken, data, pairs)
    assert not found["passed"] and found["largest_difference"] is None


@pytest.mark.parametrize("place", ["first", "last", "random"])
def test_it_is_looked_at_the_first_token_at_eos_and_between(place):
    data, pairs, _ = asked(Set())
    originals = [response for _, response in pairs]

    def moved(prompt, response, position):
        wanted = {"first": position == 0, "last": position == len(response) - 1,
                  "random": 0 < position < len(response) - 1}  # fmt: skip
        return 1.0 if response in originals and wanted[place] else 0.0

    assert not causality(Set(moved=moved), data, pairs)["passed"]


def test_what_is_counted():
    data, pairs, _ = asked(Set())
    found = causality(Set(), data, pairs)
    # 5 texts; of the longest and the median the first token, EOS and one or two others, of the rest one each
    assert found["tokens"] == 3 + 4 + 3 and "10 tokens of 5 texts, tolerance 0.0002" in found["summary"]
    assert found["unnormalised"] == pytest.approx(0, abs=1e-12)
    assert causality(Set(cut=lambda *_: 0.5, moved=lambda *_: 0.5), data, pairs)["unnormalised"] == pytest.approx(0.5)
    (one,) = asked(Set(), rows(1))[1]
    assert causality(Set(), rows(1), [one])["passed"]


@pytest.mark.parametrize(("apart", "random", "passed"), [
    (1.9e-4, True, True), (2.1e-4, True, False), (math.nan, True, False), (1.9e-4, False, True), (2.1e-4, False, False),
    (math.nan, False, False),
])  # fmt: skip
def test_a_second_call_and_neighbours(apart, random, passed):
    _, pairs, _ = asked(Set())
    model = Set()
    model.moved = lambda *_: apart if (model.calls == 2 if random else model.calls > 2) else 0.0
    found = reproducibility(model, pairs)
    assert (found["passed"], found["random"], found["depends_on_neighbours"]) == (
        passed, random and not passed, not random and not passed
    )  # fmt: skip
    key = "repeated_difference" if random else "neighbours_difference"
    assert found[key] == (None if math.isnan(apart) else pytest.approx(apart))
    assert "(2 texts, tolerance 0.0002)" in found["summary"] and model.calls == 4


@pytest.mark.parametrize(("apart", "dtype", "passed"), [
    (1.9e-4, "float32", True), (2.1e-4, "float32", False), (-2.1e-4, "float32", False), (0.09, "bfloat16", True),
    (0.11, "float16", False), (0.9e-6, "float64", True), (1.1e-6, "float64", False), (math.nan, "float32", False),
])  # fmt: skip
def test_the_score_is_what_is_audited(apart, dtype, passed):
    model = Set(dtype=dtype)
    _, pairs, scores = asked(model)
    moved = [Score(each.nll + apart * each.tokens, each.tokens, 0) for each in scores]
    found = likelihood(model, pairs, moved, 0.0)
    assert found["passed"] is passed
    assert found["score_difference"] == (None if math.isnan(apart) else pytest.approx(abs(apart), rel=1e-6))
    other = [Score(each.nll, each.tokens + 1, 0) for each in scores]
    assert "counts other tokens" in likelihood(model, pairs, other, 0.0)["summary"]
    assert not likelihood(model, pairs, other, 0.0)["passed"]


@pytest.mark.parametrize(("unnormalised", "passed"), [(1.9e-4, True), (2.1e-4, False), (None, False)])
def test_probabilities_sum_to_one(unnormalised, passed):
    model = Set()
    _, pairs, scores = asked(model)
    found = likelihood(model, pairs, scores, unnormalised)
    assert found["passed"] is passed and found["unnormalised"] == unnormalised
    assert passed or "do not sum to 1" in found["summary"]


@pytest.mark.parametrize(("apart", "passed"), [(1.9e-4, True), (-2.1e-4, False), (2.1e-4, False), (math.nan, False)])
def test_every_other_way_is_held_against_the_score(apart, passed):
    model = Set()
    model.ways = {"packed": 0.0, "padded on the left": apart, "upside down": 0.0}
    _, pairs, scores = asked(model)
    found = padding(model, pairs, scores)
    assert found["passed"] is passed and found["packed_difference"] == pytest.approx(0, abs=1e-9)
    expected = None if math.isnan(apart) else pytest.approx(abs(apart), rel=1e-5)
    assert (
        found["padded_on_the_left_difference"] == expected and found["summary"].count("changes nothing") == 2 + passed
    )
    assert padding(Set(), pairs, scores) == {"passed": True, "summary": "this model is run in one way alone"}


def test_a_sample_is_of_the_shorter_half_above_the_quarter():
    pairs = [([0] * length, [1]) for length in (9, 3, 5, 7, 1, 8, 2, 6)]
    assert sample(pairs, 3) == [1, 2, 7] and sample(pairs, 8) == [4, 6, 1, 2, 7, 3, 5, 0] and sample(pairs, 7)[0] == 6


@pytest.mark.parametrize("gained", [0.5, -0.5])
def test_the_nats_that_a_question_is_worth(gained):
    model = Set()
    data, pairs, scores = asked(model)
    model.swapped = gained
    found = question(model, data, pairs, scores)
    assert found["nats_gained"] == pytest.approx(gained) and found["passed"] is (gained > 0)
    assert 2 <= found["questions"] <= 12 and found["p_value"] < 0.05
    assert question(model, data[:1], pairs[:1], scores)["summary"] == "one question alone allows no control"
    twice = [{**row, "question_id": "same"} for row in data]
    assert "nats_gained" not in question(model, twice, pairs, scores)


def test_answers_are_held_against_the_reference_of_the_next_other_question():
    texts = [("a", "tax now", "tax now"), ("a", "tax", "tax due now"), ("b", "cash", "cash or tax now")]
    answered = [{"question_id": q, "prediction": p, "reference": r, "rougeL": own}
                for (q, p, r), own in zip(texts, (1.0, 0.5, 0.4), strict=True)]  # fmt: skip
    found = _shuffled_rouge(answered)
    assert found["rougeL"] == pytest.approx(1.9 / 3)
    assert found["shuffled_rougeL"] == pytest.approx((4 / 6 + 2 / 5 + 0) / 3)


@pytest.mark.parametrize(("stopped", "of", "passed"), [(1, 2, True), (4, 9, False), (0, 3, False), (9, 9, True)])
def test_half_of_the_answers_stop(stopped, of, passed):
    data = [{"prediction": "x", "stopped": number < stopped} for number in range(of)]
    found = stopping(Set(), None, None, [*data, {"prediction": None, "stopped": None}])
    assert found["passed"] is passed and found["stop_rate"] == stopped / of and found["cut_by_limit"] == of - stopped
    assert found["eos_supervised"] is None and f"{stopped} of {of} answers stopped by themselves" in found["summary"]


@pytest.mark.parametrize(("short", "passed"), [(19, True), (18, False)])
def test_nineteen_of_twenty_training_examples_keep_their_eos(short, passed):
    training = [{"id": f"{number:02}", "instruction": "?", "input": "", "output": "a" * (5 if number < short else 50)}
                for number in range(20)]  # fmt: skip
    length = len(Set().encode("", "a" * 5)[1])
    prompt = len(Set().encode(build_prompt("?"), "")[0])
    limit = prompt + length
    found = stopping(Set(), training, limit, [])
    assert (found["eos_supervised"], found["passed"]) == (short / 20, passed)
    assert found["max_length"] == limit and found["training_examples"] == 20
    assert stopping(Set(), training, None, [])["eos_supervised"] == 1
    failed = [{"prediction": "x", "stopped": True}]
    assert stopping(Set(), training, limit, failed)["passed"] is passed  # either alone fails it


def test_only_the_template_that_was_trained_with_passes():
    assert template(True, TEMPLATE_HASH)["passed"] is True
    other = template(True, "f" * 64)
    assert other["passed"] is False and other["trained_with"] == "f" * 64 and other["asked_with"] == TEMPLATE_HASH
    assert template(False, None)["passed"] is True and template(True, None)["passed"] is False


class Run:
    complete = True

    def config(self):
        return {"max_length": 400}

    def provenance(self):
        return {"template_hash": "f" * 64}


class Base:
    complete = False


@pytest.mark.parametrize("trained", [True, False])
def test_all_audits_in_their_order_each_of_its_own(trained):
    model = Set()
    data, pairs, scores = asked(model)
    data = [{**row, "prediction": "abc", "stopped": row["id"] < "03", "rougeL": 0.0} for row in data]
    training = [{**row, "output": "abc " * 30} for row in data[:3]]
    found = audit(model, Run() if trained else Base(), training, data, data, pairs, scores)
    assert tuple(found) == AUDITS and "unnormalised" not in found["causality"]
    assert found["template"]["passed"] is not trained and found["likelihood"]["unnormalised"] < 1e-9
    assert found["stopping"]["eos_supervised"] == (1.0 if trained else None)
    assert found["stopping"].get("max_length") == (400 if trained else None) and not found["stopping"]["passed"]
    assert found["contamination"]["exact_questions"] == 3 and not found["contamination"]["passed"]
    assert ("not trained on" in found["memorisation"]["summary"]) is not trained
    gone = audit(model, Run(), None, data, data, pairs, scores)
    for name in ("contamination", "memorisation"):
        assert gone[name]["passed"] is False and "is not here" in gone[name]["summary"]
    assert gone["stopping"]["eos_supervised"] is None
    noisy = Set()
    noisy.moved = lambda *_: float(noisy.calls)
    found = audit(noisy, Base(), training, data, data, pairs, scores)
    assert found["reproducibility"]["random"] and found["causality"]["passed"] is False
    assert "not looked at" in found["causality"]["summary"] and found["causality"].get("unnormalised") is None
    assert [found[name]["passed"] for name in ("reproducibility", "causality")] == [False, False]


def example(id, question, answer, question_id=None):
    return {"id": id, "question_id": question_id or id, "instruction": question, "input": "", "output": answer}


FEES = "How high are the fees of a fund that holds shares of {} firms from all over the world?"


def test_what_counts_as_a_copy():
    test = [
        example("a", "What is a bond?", "It is a loan to a state or to a firm."),
        example("b", FEES.format(20), "They are about one part in a hundred of what it holds."),
        example("c", "Which tax is due?", "None of it."),
        example("d", "Why save at all?", "Because nobody knows what the next year brings."),
        example("e", "Who pays for it?", "Those who earn more than they need to live."),
        example("f", "Who pays?", "Those who earn more than they need, to live!", "e"),
    ]
    training = [
        example("t", "what is a BOND", "A promise."),
        example("u", FEES.format(35), "It depends."),
        example("v", "Another one?", "None of it."),
        example("w", "One more?", "because nobody knows what the next year brings"),
    ]
    found = contamination(test, training)
    assert found["contaminated"] == ["a", "d"]
    figures = (
        "exact_questions",
        "near_questions",
        "exact_answers",
        "near_answers",
        "other_numbers",
        "training_examples",
    )
    assert [found[name] for name in figures] == [1, 0, 1, 0, 1, 4]
    assert found["within"] == {"questions": 0, "answers": 0} and found["threshold"] == 0.5  # e and f are one question
    apart = [*test[:5], {**test[5], "question_id": "f"}]
    assert contamination(apart, training)["within"]["answers"] == 1
    assert contamination(list(reversed(test)), list(reversed(training)))["contaminated"] == ["a", "d"]
    assert contamination(test, [])["passed"] and contamination(test, training)["passed"] is False


def test_near_answers_are_copied_parts_and_near_questions_are_not():
    part = "The owner of a share has a part of the firm and of all that it earns, and may say what it is to do with it."
    test = [example("a", "First?", part + " That is why shares are worth more when more is earned, as all know.")]
    inside = [
        example("t", "Second?", "Nobody asked, but here it is nonetheless for you, my dear and only reader. " + part)
    ]
    found = contamination(test, inside)
    assert (found["near_answers"], found["near_questions"]) == (1, 0)
    turned = contamination([{**row, "instruction": row["output"], "output": "No."} for row in test],
                           [{**row, "instruction": row["output"], "output": "Yes."} for row in inside])  # fmt: skip
    assert (turned["near_answers"], turned["near_questions"]) == (0, 0)


@pytest.mark.parametrize(("words", "copied", "of", "passed"), [(20, 1, 20, True), (20, 2, 20, False), (19, 9, 9, True)])
def test_one_answer_in_twenty_may_hold_twenty_words_of_a_training_answer(words, copied, of, passed):
    text = " ".join(f"w{number}" for number in range(words))
    answered = [{**example(str(n), "q w0", "r"), "prediction": text if n < copied else "other words than these of it",
                 "reference": "w0 w1 w2 w3 w4", "rougeL": 0.25} for n in range(of)]  # fmt: skip
    training = [example("s", "nothing", "alike"), example("t", "q w0", f"before {text} after")]
    found = memorisation([*answered, {**answered[0], "prediction": None}], training, trained=True)
    assert found["passed"] is passed and found["longest_words"] == words
    assert found["memorised_share"] == (copied / of if words >= 20 else 0)
    assert found["median_words"] == (words if 2 * copied > of else 0)
    copy, nearest = found["baselines"].values()
    assert copy["rouge1"] == pytest.approx(2 / 7) and nearest["rouge1"] == pytest.approx(10 / (words + 7))
    assert nearest["bleu"] > copy["bleu"] == 0 and "ROUGE-L is 0.250" in found["summary"]
    assert memorisation([{**answered[0], "prediction": None}], training, True)["passed"]


def test_the_nearest_training_question_is_that_with_the_rarest_words_in_common():
    training = [
        example("s", "what is tax", "1"),
        example("t", "what is gold", "2"),
        example("u", "what is what is", "3"),
    ]
    asked_for = [example("a", "gold what", "x"), example("b", "TAX, is?", "x"), example("c", "is is", "x")]
    assert overlap.nearest_answers(asked_for, training)[:2] == ["2", "1"]


def test_a_question_of_nothing_but_a_word_that_all_have_is_near_to_none():
    """The weight of that word is zero, and so is the row's length."""
    training = [example("u", "what", "1"), example("u", "what tax", "2"), example("u", "what gold", "3")]
    assert overlap.nearest_answers([example("a", "what gold", "x")], training) == ["3"]


# Where a text ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("whole", "longer", "knows"), [
    ((-1.0, -1.0), (-1.11, -1.2), True), ((-1.0, -1.0), (-1.09, -1.2), False), ((-1.0, -1.0), (-0.5, -1.2), False),
])  # fmt: skip
def test_a_model_knows_the_end_where_eos_is_surer_at_every_end(whole, longer, knows):
    """By 0.1 nats in each text that ends 8 tokens or more before the longest one; others are not looked at."""
    pairs = [([1, 2], [3, 4, 49]), ([1, 2, 3], [4, 49]), ([5, 6], [7] * 10 + [49]), ([1, 2], [3, 4, 5, 49])]
    asked = []

    class Ends(Set):
        def distributions(self, rows, positions):
            ((prompt, response),), (position,) = rows, positions
            asked.append((prompt, response, position))
            found = np.full(VOCABULARY, -9.0)
            found[49] = longer[len(asked) - 1]
            return [found]

    looks = [Look(0, 2, whole[0], 0.0), Look(0, 1, 5.0, 0.0), Look(1, 1, whole[1], 0.0), Look(1, 0, 5.0, 0.0),
             Look(2, 10, -1.0, 0.0), Look(3, 3, -1.0, 0.0)]  # fmt: skip
    assert _knows_the_end(Ends(), pairs, looks) is knows
    first, second = ([1, 2], [3, 4, 49, 1, 2, 1, 2, 1, 2, 1, 2], 2), ([1, 2, 3], [4, 49, 1, 2, 3, 1, 2, 3, 1, 2], 1)
    assert asked == [first, second]
    assert _knows_the_end(Ends(), pairs, looks[4:]) is False  # nothing could be looked at


@pytest.mark.parametrize(("filled", "alone"), [
    ((0.0, 0.0), True), ((1.9e-4, -1.9e-4), True), ((2.1e-4, 0.0), False), ((0.0, -2.1e-4), False),
    ((0.0, math.nan), False),
])  # fmt: skip
def test_what_moved_is_of_the_length_alone_where_any_filling_brings_it_back(filled, alone):
    pairs, asked = [([1, 2], [3, 4, 5, 49]), ([6], [7, 8, 49])], []

    class Filled(Set):
        def distributions(self, rows, positions):
            (row,), (position,) = rows, positions
            asked.append((*row, position))
            found = np.full(VOCABULARY, -9.0)
            found[[4, 8]] = -1.0 + filled[len(asked) % 2]
            return [found]

    assert _is_length_alone(Filled(), pairs, [Look(0, 1, -1.0, -2.0)]) is alone
    for prompt, response, position in asked:
        assert (prompt, response[:1], len(response), position) == ([1, 2], [3], 4, 1)
        assert all(new != old and new in {*range(1, 9), 49} for new, old in zip(response[1:], [4, 5, 49], strict=True))
    asked.clear()
    both = [Look(1, 1, -1.0, -2.0), Look(0, 1, -1.0, -2.0)]
    assert _is_length_alone(Filled(), pairs, both) is alone and len(asked) == (4 if alone else 2)


def test_which_texts_and_positions_are_looked_at():
    pairs = [([0] * (5 * number % 23), [1] * (1 + 7 * number % 19)) for number in range(20)]
    lengths = [len(prompt) + len(response) for prompt, response in pairs]
    order = by_length(pairs)
    assert sorted(order) == [*range(20)] and [lengths[index] for index in order] == sorted(lengths)
    chosen = texts_to_look_at(pairs)
    assert chosen[:2] == [order[-1], order[10]] and len({*chosen}) == 5 and chosen == texts_to_look_at(pairs)
    assert texts_to_look_at(pairs[:1]) == [0] and sorted(texts_to_look_at(pairs[:2])) == [0, 1]
    generator = random.Random(0)
    for _ in range(50):
        inner = _cuts([0] * 9, 2, True, generator)
        assert inner == sorted({*inner}) and len(inner) == 4 and (inner[0], inner[-1]) == (0, 8)
        (one,) = _cuts([0] * 9, 1, False, generator)
        assert 0 <= one <= 8
    assert {_cuts([0] * 3, 1, False, generator)[0] for _ in range(50)} == {0, 1, 2}
    assert {tuple(_cuts([0] * 4, 1, True, generator)) for _ in range(50)} == {(0, 1, 3), (0, 2, 3)}
    assert _cuts([0], 2, True, generator) == [0] and _cuts([0, 0], 1, True, generator) == [0, 1]
