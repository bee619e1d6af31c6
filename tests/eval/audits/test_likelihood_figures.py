"""Chance, neighbours, padding and the question: of which texts they are found out, and every figure, by hand."""

import contextlib
import itertools
import math

import numpy as np
import pytest

from eval.audits.causality import causality, texts_to_look_at
from eval.audits.likelihood import _shuffled_rouge, _told, likelihood, padding, question, reproducibility
from eval.models.language_model import Description, Score

# Eleven texts of 3 to 23 tokens, not in the order of their lengths
TEXTS = [([number] * (number + 1), [20 + number] * number + [49]) for number in (4, 7, 1, 10, 3, 11, 9, 2, 8, 6, 5)]
SHORTEST, LONG = 2, 3  # of eleven texts nine tenths of the way is the tenth
PROMPTS = [f"prompt {number}" for number in range(len(TEXTS))]
ROWS = [{"question_id": f"q{number}", "prompt": prompt, "reference": f"reference {number}", "prediction": None}
        for number, prompt in enumerate(PROMPTS)]  # fmt: skip


class Told:
    """Every token costs nothing, but for what a test says of a call, a text and a place."""

    def __init__(self, moved=lambda call, pair, place: 0.0, dtype="float32", ways=None, swapped=None):
        self.moved, self.ways, self.swapped = moved, ways or {}, swapped
        self.description = Description("base", "m", "m", 1, 0, dtype)
        self.fine, self.calls = False, []

    def encode(self, prompt, response):
        return TEXTS[PROMPTS.index(prompt)][0], []

    def log_probs(self, pairs):
        self.calls.append((self.fine, list(pairs)))
        call = len(self.calls)
        return [np.array([self.moved(call, pair, place) for place in range(len(pair[1]))]) for pair in pairs]

    def distributions(self, pairs, positions):
        self.calls.append((self.fine, list(pairs)))
        return [np.full(50, 0.0) for _ in pairs]

    @contextlib.contextmanager
    def in_float32(self):
        self.fine = True
        yield
        self.fine = False

    def otherwise(self, pairs):
        self.calls.append((self.fine, list(pairs)))
        return {way: [found(pair) for pair in pairs] for way, found in self.ways.items()}

    def score(self, prompts, responses):
        self.calls.append([*zip(prompts, responses, strict=True)])
        return [self.swapped(*pair) for pair in zip(prompts, responses, strict=True)]


def nothing(texts=TEXTS):
    return [Score(0.0, len(response), 0) for _, response in texts]


def test_chance_and_neighbours_are_looked_at_of_a_short_and_a_long_text_in_float32():
    model = Told()
    found = reproducibility(model, TEXTS)
    some = [TEXTS[SHORTEST], TEXTS[LONG]]
    assert model.calls == [(True, some), (True, some), (True, some[:1]), (True, some[1:])]
    assert found == {
        "passed": True, "repeated_difference": 0.0, "neighbours_difference": 0.0, "random": False,
        "depends_on_neighbours": False, "tolerance": 2e-4,
        "summary": "log-probabilities move by at most 0 nats at a second call and without neighbours "
        "(2 texts, tolerance 0.0002)",
    }  # fmt: skip
    causality(model, ROWS, TEXTS)
    assert all(fine for fine, _ in model.calls)
    model.calls.clear()
    likelihood(model, TEXTS, nothing(), 0.0)  # as it computes
    assert model.calls == [(False, [TEXTS[index]]) for index in texts_to_look_at(TEXTS)]
    for count, looked_at in ((1, 1), (2, 2), (10, 2), (20, 2)):
        texts = [([1], [2] * number) for number in range(1, count + 1)]
        model.calls.clear()
        assert f"({looked_at} texts," in reproducibility(model, texts)["summary"]
        assert model.calls[0][1] == [texts[0], texts[count * 9 // 10]][:looked_at]


@pytest.mark.parametrize("apart", [1.0, -1.0, 3e-4, 2e-4, -2e-4, 1e-4, math.inf, math.nan])
@pytest.mark.parametrize("text", [SHORTEST, LONG])
@pytest.mark.parametrize("calls", [{2}, {3, 4}, {1}])
def test_every_token_is_held_against_itself(apart, text, calls):
    """At the second call, alone, and at the first call, from which both others then are away."""
    held = apart if math.isfinite(apart) else None
    small = math.isfinite(apart) and abs(apart) <= 2e-4
    for place in range(len(TEXTS[text][1])):
        token = (TEXTS[text], place)
        model = Told(lambda call, pair, at, token=token: apart if call in calls and (pair, at) == token else 0.0)
        found = reproducibility(model, TEXTS)
        repeated, beside = (0.0 if calls == other else held and abs(held) for other in ({3, 4}, {2}))
        assert (found["repeated_difference"], found["neighbours_difference"]) == (repeated, beside)
        assert found["passed"] is small and found["random"] is (not small and calls != {3, 4})
        assert found["depends_on_neighbours"] is (not small and calls == {3, 4})
        said = f"at most {abs(apart):.1g} nats" if small else "same call twice" if calls != {3, 4} else "stands beside"
        assert said in found["summary"] and (small or f"{abs(apart):.3g} nats" in found["summary"])


def test_weights_in_eight_bits_may_move_by_a_tenth():
    for apart, passed in ((0.1, True), (0.11, False)):
        found = reproducibility(Told(lambda call, *_, apart=apart: apart * (call == 2), "int8"), TEXTS)
        assert (found["passed"], found["tolerance"]) == (passed, 0.1)


LIMITS = {"float32": 2e-4, "float64": 1e-6, "bfloat16": 0.1, "float16": 0.1, "int8": 0.1}


@pytest.mark.parametrize(("dtype", "limit"), LIMITS.items())
@pytest.mark.parametrize("sign", [1, -1])
def test_the_score_of_each_text_looked_at_is_its_sum(dtype, limit, sign):
    for index in range(len(TEXTS)):
        seen, tokens = index in texts_to_look_at(TEXTS), len(TEXTS[index][1])
        for size, same in ((0.98, True), (1.02, False)):
            scores = nothing()
            scores[index] = Score(sign * size * limit * tokens, tokens, 0)
            found = likelihood(Told(dtype=dtype), TEXTS, scores, 0.0)
            assert found["passed"] is (same or not seen) and found["tolerance"] == limit
            assert found["score_difference"] == pytest.approx(size * limit if seen else 0.0)
            assert ("two computations" in found["summary"]) is (not found["passed"])
        for wrong in (tokens + 1, tokens - 1):
            scores[index] = Score(0.0, wrong, 0)
            found = likelihood(Told(dtype=dtype), TEXTS, scores, 0.0)
            assert found["passed"] is not seen and ("counts other tokens" in found["summary"]) is seen
    exact = [Score(-limit * len(response), len(response), 0) for _, response in TEXTS]
    one = [(prompt, response) for prompt, response in TEXTS if len(response) in (2, 4, 8)]
    assert (
        len(one) == 3
        and likelihood(Told(dtype=dtype), one, [Score(limit * len(r), len(r), 0) for _, r in one], 0.0)["passed"]
    )
    moved = likelihood(Told(lambda *_: limit / 2, dtype=dtype), TEXTS, exact, 0.0)
    assert moved["score_difference"] == pytest.approx(limit / 2) and moved["passed"]


@pytest.mark.parametrize(("dtype", "unnormalised", "passed", "said"), [
    ("float32", 2e-4, True, "and Σ p is 1"), ("float32", 3e-4, False, "to 1 (their log is 0.0003) ("),
    ("bfloat16", 3e-4, False, "to 1 (their log is 0.0003) ("), ("int8", 0.1, True, "and Σ p is 1"),
    ("int8", 0.11, False, "to 1 (their log is 0.11) ("), ("float32", None, False, "do not sum to 1 ("),
])  # fmt: skip
def test_the_probabilities_sum_to_one(dtype, unnormalised, passed, said):
    found = likelihood(Told(dtype=dtype), TEXTS, nothing(), unnormalised)
    assert said in found["summary"] and f"(5 texts, tolerance {LIMITS[dtype]:g})" in found.pop("summary")
    assert found == {
        "passed": passed, "score_difference": 0.0, "unnormalised": unnormalised, "tolerance": LIMITS[dtype]
    }  # fmt: skip


def test_a_score_that_is_no_number_is_none_at_all():
    for nll in (math.nan, math.inf):
        scores = [Score(nll, len(response), 0) for _, response in TEXTS]
        found = likelihood(Told(), TEXTS, scores, 0.0)
        assert (found["passed"], found["score_difference"]) == (False, None)


def test_three_texts_above_the_quarter_are_run_in_every_other_way():
    some = [4, 0, 10]  # of eleven texts by length the third to the fifth
    model = Told(ways={"packed": lambda pair: 0.0})
    expected = {"passed": True, "packed_difference": 0.0,
                "summary": "scoring packed changes nothing (0 nats a token)"}  # fmt: skip
    assert padding(model, TEXTS, nothing()) == expected
    assert model.calls == [(False, [TEXTS[index] for index in some])]
    for index, apart in itertools.product(some, (3e-4, -3e-4, 1.5e-4, math.nan)):
        ways = {
            "packed": lambda pair, index=index, apart=apart: 8 * apart * (pair == TEXTS[index]),
            "padded on the left": lambda pair: 0.0,
        }
        scores = [Score(0.0, 8, 0)] * len(TEXTS)
        found = padding(Told(ways=ways), TEXTS, scores)
        passed = abs(apart) < 2e-4
        assert found["passed"] is passed
        assert found["packed_difference"] == (None if math.isnan(apart) else pytest.approx(abs(apart)))
        assert found["padded_on_the_left_difference"] == 0.0
        verb = "changes nothing" if passed else "CHANGES the likelihood"
        assert found["summary"] == (
            f"scoring packed {verb} ({abs(apart):.1g} nats a token); "
            "scoring padded on the left changes nothing (0 nats a token)"
        )
    at_limit = padding(Told(ways={"packed": lambda pair: 8 * 2e-4}), TEXTS, [Score(0.0, 8, 0)] * len(TEXTS))
    assert at_limit["passed"] and at_limit["packed_difference"] == 2e-4


# The question --------------------------------------------------------------------------------------------------------


def test_each_reference_is_held_against_the_prompt_of_the_next_longer_text():
    """Where both together are no longer than the longest text: of the last, that is the shortest prompt."""
    model = Told(swapped=lambda prompt, reference: Score(6.0, 3, 0))
    order = sorted(range(11), key=lambda index: len(TEXTS[index][0]))
    scores = [Score(2.0, 4, 0)] * 11
    found = question(model, ROWS, TEXTS, scores)
    pairs = list(zip(order[1:] + order[:1], order, strict=True))
    assert model.calls == [[(ROWS[other]["prompt"], ROWS[own]["reference"]) for other, own in pairs]]
    assert found == {
        "passed": True, "nats_gained": 1.0, "p_value": 2 / 2**11, "questions": 11,
        "summary": "11 references are likelier after their own questions than after others "
        "(by 1 nats a token, p = 0.00098)",
    }  # fmt: skip


def test_twelve_questions_the_shortest_each_once():
    texts = [([1] * (30 - number), [2]) for number in range(30)]  # the shortest are the last
    data = [{**ROWS[0], "question_id": number // 2, "prompt": number, "reference": number} for number in range(30)]
    model = Told(swapped=lambda prompt, reference: Score(1.0, 1, 0))
    found = question(model, data, texts, nothing(texts))
    chosen = [*range(29, 5, -2)]
    assert len(chosen) == found["questions"] == 12
    assert model.calls == [[*zip(chosen[1:] + chosen[:1], chosen, strict=True)]]


@pytest.mark.parametrize(("prompt", "asked"), [(9, True), (10, False)])
def test_no_text_is_longer_than_the_longest(prompt, asked):
    """A prompt of nine tokens before another's reference of three is as long as the longest text."""
    texts = [([1], [2, 2, 49]), ([1] * prompt, [49]), ([1, 1], [2] * 9 + [49])]
    model = Told(swapped=lambda prompt, reference: Score(1.0, 1, 0))
    found = question(model, ROWS[:3], texts, nothing(texts))
    order = [0, 1, 2]  # by length
    every = [("prompt 1", "reference 0"), ("prompt 2", "reference 1"), ("prompt 0", "reference 2")]
    assert sorted(range(3), key=lambda index: sum(map(len, texts[index]))) == order
    assert model.calls == [every if asked else every[1:]] and found["questions"] == 2 + asked


def test_one_figure_that_is_no_number_is_enough():
    for wrong, at in itertools.product((math.nan, math.inf, -math.inf), (0, 5, 10)):
        told = Told(
            swapped=lambda prompt, reference, at=at, wrong=wrong: Score(wrong if prompt == PROMPTS[at] else 1.0, 1, 0)
        )
        found = question(told, ROWS, TEXTS, nothing())
        assert found == {
            "passed": False, "summary": "the likelihood of a reference after another question is no finite number"
        }  # fmt: skip


def p_value_of(worse):
    """Two-sided, over every way of turning signs."""
    observed = sum(worse)
    sums = [sum(sign * each for sign, each in zip(signs, worse, strict=True))
            for signs in itertools.product((1, -1), repeat=len(worse))]  # fmt: skip
    above, below = sum(each >= observed for each in sums), sum(each <= observed for each in sums)
    return min(1.0, 2 * min(above, below) / len(sums))


@pytest.mark.parametrize(("worse", "passed", "said"), [
    ([1, 2, 4, 8, 16], True, "cannot be told"), ([-1, -2, -4, -8, -16], True, "cannot be told"),  # p = 0.0625
    ([1, 2, 4, 8, 16, 32], True, "are likelier"), ([-1, -2, -4, -8, -16, -32], False, "are LESS likely"),  # 0.03125
    ([-1, -2, 4, 8, 16, 32, 64], True, "cannot be told"), ([-1, 2, 4, 8, 16, 32, 64], True, "are likelier"),
    ([1, -1], True, "cannot be told"), ([3, 3, 3, 3, -3, 5, 7, 9], True, "are likelier"),
    ([1, -2, -4, -8, -16, -32, -64], False, "are LESS likely"), ([0, 0, 0], True, "cannot be told"),
])  # fmt: skip
def test_whether_a_question_is_worth_nats_is_told_at_five_in_a_hundred(worse, passed, said):
    expected = p_value_of(worse)
    assert (expected < 0.05) is ("cannot" not in said)
    told, sentence, figures = _told(np.array(worse, float))
    mean = sum(worse) / len(worse)
    assert figures == {"nats_gained": pytest.approx(mean), "p_value": pytest.approx(expected), "questions": len(worse)}
    assert told is passed and sentence == (
        f"{len(worse)} references {said}{' to be likelier or less likely' if 'cannot' in said else ''} after their own "
        f"questions than after others (by {mean:.3g} nats a token, p = {expected:.2g})"
    )


def test_what_differs_by_rounding_is_a_tie():
    worse = np.array([0.3, 0.1, 0.2, -0.4, 0.5, 0.6])
    whole = [3, 1, 2, -4, 5, 6]
    for step in (1e-11, -1e-11):
        assert _told(worse + step * np.arange(6))[2]["p_value"] == p_value_of(whole)


def test_answers_are_held_against_the_next_of_another_question_around_the_end():
    words = ["tax now", "bond", "fund", "gold"]
    answered = [{"question_id": question, "prediction": words[said], "reference": words[own], "rougeL": 0.25 * said}
                for question, said, own in (("a", 0, 3), ("b", 3, 0), ("b", 1, 2), ("b", 3, 1))]  # fmt: skip
    # against "tax now", "gold" (around the end), "gold", "gold"
    assert _shuffled_rouge(answered) == {"rougeL": 1.75 / 4, "shuffled_rougeL": (1 + 1 + 0 + 1) / 4}
    data = [{**row, "prompt": "", "tokens": 1} for row in answered]
    unanswered = {**ROWS[0], "question_id": "c", "reference": "nothing of it"}
    texts = [([1], [49])] * 5
    model = Told(swapped=lambda *_: Score(0.0, 1, 0))
    found = question(model, [*data, unanswered], texts, nothing(texts))
    assert (found["rougeL"], found["shuffled_rougeL"], found["questions"]) == (1.75 / 4, 0.75, 3)
    assert "ROUGE-L is 0.438 against the answers' own references and 0.750 against" in found["summary"]
    turned = question(model, [unanswered, *data], texts, nothing(texts))
    assert (turned["rougeL"], turned["shuffled_rougeL"], turned["questions"]) == (1.75 / 4, 0.75, 3)
    for two in (data[:2], data[1::-1], [unanswered, *data[:2]], [*data[:2], unanswered]):
        found = question(model, two, texts[: len(two)], nothing(texts[: len(two)]))
        assert (found["rougeL"], found["shuffled_rougeL"]) == (0.75 / 2, 1.0)
    assert "rougeL" not in question(model, [*data[1:], unanswered], texts[:4], nothing(texts[:4]))
    alone = question(model, data[:1], texts[:1], nothing(texts[:1]))
    assert alone == {"passed": True, "summary": "one question alone allows no control"}


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_reference_without_words_is_held_against_no_answer_and_an_answer_without_them_is_wrong(at):
    """The one has no ROUGE, that of the other is 0."""
    data = [{**ROWS[number], "prediction": words, "reference": words, "rougeL": 0.5}
            for number, words in enumerate(("gold", "…", "gold tax"))]  # fmt: skip
    data[1] |= {"reference": "gold", "rougeL": 0.0}
    data.insert(at, {**ROWS[3], "prediction": "gold", "reference": "…", "rougeL": None})
    texts = [([1], [49])] * 4
    found = question(Told(swapped=lambda *_: Score(0.0, 1, 0)), data, texts, nothing(texts))
    assert found["rougeL"] == pytest.approx(1 / 3)
    assert found["shuffled_rougeL"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    data = [{**row, "rougeL": None} for row in data]
    found = question(Told(swapped=lambda *_: Score(0.0, 1, 0)), data, texts, nothing(texts))
    assert "rougeL" not in found and "ROUGE" not in found["summary"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_where_there_are_no_more_than_three_texts_all_are_run_in_every_other_way(count):
    model = Told(ways={"packed": lambda pair: 0.0})
    assert padding(model, TEXTS[:count], nothing())["passed"]
    assert sorted(model.calls[0][1]) == sorted(TEXTS[:count])
