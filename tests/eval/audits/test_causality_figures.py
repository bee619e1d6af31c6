"""Seven texts by hand: which tokens of them are looked at, what is put in their place, and what each figure is."""

import contextlib
import math

import numpy as np
import pytest

from eval.audits import causality as causal
from eval.audits.causality import Look, _is_length_alone, _knows_the_end, causality, texts_to_look_at
from eval.models.language_model import Description

EOS, VOCABULARY = 49, 50
TEXTS = [
    ([1, 2], [3, 4, EOS]),
    ([5], [6, EOS]),
    ([7, 8, *[9] * 7], [10, 11, 12, 13, 14, EOS]),  # the longest
    ([15], [16, 17, 18, 19, EOS]),  # the median
    ([20, 21], [22, EOS]),
    ([23, 23], [24, 25, 26, 27, EOS]),
    ([28], [29, 30, 31, 32, 33, 34, EOS]),
]
MEDIAN = 3
# By the generator below: of texts and positions the first of those that may be drawn, of tokens the smallest
LOOKED_AT = [(2, 0), (2, 1), (2, 5), (3, 0), (3, 1), (3, 2), (3, 4), (1, 0), (4, 0), (0, 0)]
REPLACED = ([15], [16, 17, 1, 1, 1])
ROWS = [{"prompt": number, "reference": number} for number in range(len(TEXTS))]


class First:
    """Draws the first of what it is given, and keeps what tokens it was given to choose from."""

    def __init__(self):
        self.chose_from = []

    def sample(self, population, size):
        return list(population)[:size]

    def choice(self, options):
        self.chose_from.append(options)
        return options[0]


@pytest.fixture
def first(monkeypatch):
    generator = First()
    monkeypatch.setattr(causal, "_generator", lambda pairs: generator)
    return generator


class Told:
    """`whole` says a token's log-probability in a text, `after` that of any token after a text so far."""

    def __init__(self, whole=lambda pair, place: 0.0, after=lambda pair: 0.0, beside=0.0, reading=None):
        self.whole, self.after, self.beside, self.reading = whole, after, beside, reading
        self.description = Description("base", "m", "m", 1, 0)
        self.asked, self.together = [], []

    def encode(self, prompt, response):
        read = [response] if prompt == self.reading != response else []
        return [*TEXTS[prompt][0], *read], TEXTS[response][1]

    def log_probs(self, pairs):
        self._note(pairs)
        moved = self.beside * (len(pairs) > 1)
        return [np.array([self.whole(pair, place) + moved for place in range(len(pair[1]))]) for pair in pairs]

    def distributions(self, pairs, positions):
        self._note(pairs)
        moved = self.beside * (len(pairs) > 1)
        return [np.full(VOCABULARY, self.after(pair) + moved) for pair in pairs]

    def in_float32(self):
        return contextlib.nullcontext()

    def _note(self, pairs):
        self.asked += pairs
        self.together.append(len(pairs))


def is_token(pair, place, text, position):
    return (pair, place) == (TEXTS[text], position)


@pytest.mark.parametrize("alone", [False, True])
def test_which_texts_a_model_is_asked_for(first, alone):
    model = Told()
    found = causality(model, ROWS, TEXTS, alone)
    cut = [(TEXTS[text][0], TEXTS[text][1][:position]) for text, position in LOOKED_AT]
    expected = [*(TEXTS[text] for text in (2, 1, 4, 0, MEDIAN)), REPLACED, *cut]
    assert sorted(model.asked) == sorted(expected)
    assert model.together == ([1] * 16 if alone else [1, 1, 1, 1, 2, 10])  # a call costs as much as a long text
    every_token = [*range(1, 23), EOS]  # of the five texts
    assert first.chose_from == [[other for other in every_token if other != token] for token in (18, 19, EOS)]
    said = found.pop("summary")
    assert said.endswith("when the rest is cut off or replaced (10 tokens of 5 texts, tolerance 0.0002)")
    assert found == {
        "passed": True, "largest_difference": 0.0, "depends_on_length": False, "tolerance": 2e-4, "tokens": 10,
        "unnormalised": pytest.approx(math.log(VOCABULARY)),
    }  # fmt: skip


def test_rows_are_looked_at_together_unless_they_move_each_other(first):
    model = Told()
    causality(model, ROWS, TEXTS)
    assert model.together == [1, 1, 1, 1, 2, 10]
    assert causality(Told(beside=0.5), ROWS, TEXTS)["largest_difference"] == 0.5
    assert causality(Told(beside=0.5), ROWS, TEXTS, alone=True)["largest_difference"] == 0.0


@pytest.mark.parametrize(("text", "position"), LOOKED_AT)
@pytest.mark.parametrize("apart", [1.0, -1.0])
def test_one_token_that_knows_itself_is_enough(first, text, position, apart):
    """Also of a model that is another with each length: what moves there is more than the length."""

    def known(pair, place):
        return apart * is_token(pair, place, text, position)

    found = causality(Told(known), ROWS, TEXTS)
    assert (found["passed"], found["largest_difference"]) == (False, 1.0) and "sees the future" in found["summary"]
    model = Told(lambda pair, place: known(pair, place) + 0.3 * len(pair[1]), lambda pair: 0.3 * len(pair[1]))
    found = causality(model, ROWS, TEXTS)
    assert (found["passed"], found["depends_on_length"]) == (False, False) and "sees the future" in found["summary"]


@pytest.mark.parametrize(("place", "seen"), [(0, True), (1, True), (2, True), (3, False), (4, False)])
@pytest.mark.parametrize("apart", [2e-4, -2e-4, 3e-4, -3e-4, 1.0, -1.0])
def test_what_stands_before_other_tokens_and_the_first_of_them_may_not_move(first, place, seen, apart):
    """Nor where all but texts of five tokens are another model's; of the rest of the other tokens nothing is known."""

    def replaced(pair, at):
        return apart * ((pair, at) == (REPLACED, place))

    found = causality(Told(replaced), ROWS, TEXTS)
    assert found["largest_difference"] == (abs(apart) if seen else 0.0)
    assert found["passed"] is (abs(apart) == 2e-4 or not seen)

    def of_length(pair, at=None):
        return replaced(pair, at) + (len(pair[1]) != 5)

    found = causality(Told(of_length, of_length), ROWS, TEXTS)
    if place < 2:
        assert found["passed"] is found["depends_on_length"] is (abs(apart) == 2e-4)
    assert found["largest_difference"] == pytest.approx(1.0 + max(0, -apart * (place == 2)))


def test_a_token_may_move_by_the_limit_itself(first):
    moved = Told(lambda pair, place: 2e-4 * is_token(pair, place, 2, 1))
    found = causality(moved, ROWS, TEXTS)
    assert found["passed"] and not found["depends_on_length"] and "move by at most 0.0002 nats" in found["summary"]
    assert _is_length_alone(Told(), TEXTS, [Look(2, 1, 2e-4, 5.0)])
    assert not _is_length_alone(Told(), TEXTS, [Look(2, 1, 2.1e-4, 5.0)])


@pytest.mark.parametrize(("slope", "passed", "said"), [(1.0, True, "no leak"), (-1.0, False, "knows where the text")])
def test_what_moves_with_the_length_is_a_leak_where_it_is_surer_of_eos_at_the_end(first, slope, passed, said):
    """Of the median: the others end fewer than eight tokens before the longest, or their EOS is not looked at."""
    found = causality(Told(lambda pair, place: slope * len(pair[1]), lambda pair: slope * len(pair[1])), ROWS, TEXTS)
    assert found["passed"] is passed and found["depends_on_length"] and said in found["summary"]
    assert found["largest_difference"] == 6.0  # the first token of the longest


def test_no_prompt_may_be_another_with_another_response(first):
    for number in range(len(TEXTS)):
        found = causality(Told(reading=number), ROWS, TEXTS)
        assert not found["passed"] and "it reads what it is asked for" in found["summary"]
        assert found["largest_difference"] == 0.0
    assert causality(Told(reading=0), ROWS[:1], TEXTS[:1])["passed"]  # there is no other response


@pytest.mark.parametrize("apart", [0.5, -0.5, math.nan, math.inf])
def test_the_probabilities_at_every_place_sum_to_one(first, apart):
    even = -math.log(VOCABULARY)
    for text, position in LOOKED_AT:
        cut = (TEXTS[text][0], TEXTS[text][1][:position])
        found = causality(
            Told(lambda *_: even, lambda pair, cut=cut: even + (apart if pair == cut else 0.0)), ROWS, TEXTS
        )
        expected = pytest.approx(0.5) if math.isfinite(apart) else None
        assert found["unnormalised"] == found["largest_difference"] == expected


@pytest.mark.parametrize("texts", [[([1], [EOS])], [([EOS], [EOS])], [([1], [EOS]), ([2, 3], [4, EOS])]])
def test_texts_of_nothing_but_eos(texts):
    found = causality(Told(), ROWS[: len(texts)], texts)
    assert not found["passed"] or found["largest_difference"] == 0.0
    assert found["tokens"] == len(texts) + (len(texts) > 1)


def test_what_fills_a_text_is_of_the_first_hundred_texts(first, monkeypatch):
    monkeypatch.setitem(globals(), "VOCABULARY", 4000)
    texts = [([1000 + number], [2000 + number, 3000 + number]) for number in range(250)]
    assert _is_length_alone(Told(), texts, [Look(7, 0, 0.0, 1.0)])
    every = [*range(1000, 1100), *range(2000, 2100), *range(3000, 3100)]
    assert first.chose_from == [[other for other in every if other != token] for token in (2007, 3007)] * 2


def test_the_random_texts_are_the_same_in_every_version():
    """Figures of one model by two versions of this are of the same tokens. Nobody knows them before the texts."""
    texts = [([1] * (number % 7), [number] * (1 + number * 7 % 11)) for number in range(250)]
    assert texts_to_look_at(texts) == [223, 119, 212, 232, 202]
    others = {tuple(texts_to_look_at([*texts[:n], ([1] * (n % 7), [0] * len(texts[n][1])), *texts[n + 1 :]]))
              for n in (1, 50, 99)}  # fmt: skip
    assert len(others) == 3 and (223, 119, 212, 232, 202) not in others


def test_the_end_is_known_by_more_than_a_tenth_of_a_nat_in_every_text():
    short, long = ([1], [2, EOS]), ([3], [4] * 9 + [EOS])
    for texts, at in (([short, long], 0), ([long, short], 1), ([short, short, long], 1)):
        assert _knows_the_end(Told(), texts, [Look(at, 1, 0.2, 0.0)])
        assert not _knows_the_end(Told(), texts, [Look(at, 1, 0.1, 0.0)])
        assert not _knows_the_end(Told(), texts, [Look(at, 1, 0.2, 0.0), Look(at, 1, 0.0, 0.0)])
        assert not _knows_the_end(Told(), texts, [Look(at, 1, 0.0, 0.0), Look(at, 1, 0.2, 0.0)])
        shorter = [(prompt, response[1:]) if response[0] == 4 else (prompt, response) for prompt, response in texts]
        assert not _knows_the_end(Told(), shorter, [Look(at, 1, 0.2, 0.0)])  # seven tokens: too little is known
