"""Each limit of near duplicates from both sides, with counts made up for it; and by which texts common is decided."""

from types import SimpleNamespace

import numpy as np
import pytest

from finllm.data import grams, near_duplicates
from finllm.data.grams import Grams, common_grams
from finllm.data.near_duplicates import _alike, _copied, _inside, _other_numbers, _same_numbers, _share_with_numbers

ONE = np.array([0])


def text(size, shared=0, words=99, varies=1.0, numbers=(), with_number=0):
    """Of one text what the rules ask: its number of grams, how many it shares with the other one, and so on."""
    counts = {"sizes_N": size, "words_N": words, "varies_N": varies, "with_number_N": with_number,
              "of_numbers_N": sum(map(int, numbers))}  # fmt: skip
    arrays = {name: np.array([value]) for name, value in counts.items()}
    return SimpleNamespace(**arrays, numbers=[numbers], shared=lambda *_, **__: np.array([shared]))


@pytest.mark.parametrize(
    ("size", "other", "shared", "varies", "other_varies", "holds"),
    [
        # A half of all grams of both
        (3, 3, 2, 1, 1, True), (3, 4, 2, 1, 1, False), (30, 31, 20, 1, 1, False), (8, 4, 4, 1, 1, True),
        # Three in ten where some is common to many texts, and more than a fifth is not
        (6, 7, 3, 0.9, 1, True), (6, 7, 3, 1, 0.21, True), (6, 7, 3, 0.2, 1, False), (6, 7, 3, 1, 1, False),
        (6, 8, 3, 0.9, 1, False), (6, 7, 3, 0.9, 0.2, False), (3, 3, 2, 0.1, 0.1, True),
    ],
)  # fmt: skip
def test_alike_and_alike_but_for_the_numbers(size, other, shared, varies, other_varies, holds):
    for ours, theirs in (((), ()), (("1",), ("1",)), (("1",), ("2",)), (("1",), ())):
        one, two = text(size, shared, varies=varies, numbers=ours), text(other, varies=other_varies, numbers=theirs)
        assert _alike(one, two, ONE, ONE).tolist() == [holds and ours == theirs]
        assert _other_numbers(one, two, ONE, ONE).tolist() == [holds and ours != theirs]


@pytest.mark.parametrize(
    ("size", "shared", "words", "varies", "holds"),
    [
        (10, 9, 9, 1, True), (10, 10, 9, 1, True), (10, 8, 9, 1, False), (20, 18, 9, 1, True), (11, 9, 9, 1, False),
        (10, 9, 2, 1, True), (10, 9, 1, 1, False), (10, 9, 4, 0.5, True), (10, 9, 3, 0.5, False),
    ],
)  # fmt: skip
def test_inside(size, shared, words, varies, holds):
    inner = text(size, shared, words, varies)
    assert _inside(inner, text(99), ONE, ONE).tolist() == [holds]
    for inside, outside, fits in (
        (("1",), ("1",), True), (("1",), ("1", "2"), True), (("1", "1"), ("1",), False), (("1",), (), False),
        (("1", "1"), ("1", "1", "3"), True), (("1", "2"), ("2", "2"), False),
    ):  # fmt: skip
        inner.numbers = [inside]
        assert _inside(inner, text(99, numbers=outside), ONE, ONE).tolist() == [holds and fits]


@pytest.mark.parametrize(
    ("size", "shared", "words", "varies", "holds"),
    [
        (20, 7, 99, 1, True), (20, 6, 99, 1, False), (40, 14, 99, 1, True), (40, 13, 99, 1, False),
        (20, 7, 16, 1, True), (20, 7, 15, 1, False), (20, 7, 32, 0.5, True), (20, 7, 31, 0.5, False),
    ],
)  # fmt: skip
def test_copied(size, shared, words, varies, holds):
    assert _copied(text(size, shared, words, varies), text(99), ONE, ONE).tolist() == [holds]


def test_four_in_five_numbers_in_the_same_places(monkeypatch):
    shares = iter([np.array([1, 1, 0.5, 0.0]), np.array([0.8, 0.79, 0.4, 0.0])])
    monkeypatch.setattr(near_duplicates, "_share_with_numbers", lambda *_: next(shares))
    pairs = (np.array([0, 1, 2, 3]), np.array([4, 3, 2, 1]))
    texts = [f"text {number}" for number in range(5)]
    one, other = _same_numbers(pairs, texts, None, texts, None)
    assert (one.tolist(), other.tolist()) == ([0, 2, 3], [4, 2, 1])


def test_whose_grams_with_a_number_are_counted():
    """Those of the text that has fewer grams, of the first where both have as many."""
    for size, other, share in ((5, 6, 3 / 4), (6, 6, 3 / 4), (7, 6, 3 / 8)):
        ours, theirs = text(size, 3, with_number=4), text(other, with_number=8)
        assert _share_with_numbers(ours, ONE, theirs, ONE).tolist() == [share]
    assert _share_with_numbers(text(5, 0), ONE, text(5), ONE).tolist() == [0]
    assert _share_with_numbers(text(5, 1, with_number=1), ONE, text(5), ONE).tolist() == [1]


def test_of_many_texts_each_n_th_decides_what_is_common(monkeypatch):
    monkeypatch.setattr(grams, "MOST_SAMPLED", 40)
    gram = set(Grams(["qqqq"], 5, 2).values_G.tolist()[1:])
    letters = "bdfghjklmnprstvwxyz"
    words = [f"{a}{b}{c}" for a in letters for b in "aeiou" for c in letters]

    def is_common(count, holds):
        texts = [f"{words[number]} qqqq" if holds(number) else words[number] for number in range(count)]
        return gram <= set(common_grams(texts, 5, 2).tolist())

    assert is_common(101, lambda number: number % 3 == 0) and not is_common(101, lambda number: number % 3)
    # Of 40 all decide, of 41 each second: 21 of them
    assert is_common(40, lambda number: number < 21) and not is_common(40, lambda number: number < 20)
    assert is_common(41, lambda number: number % 2 == 0) and not is_common(41, lambda number: number % 2)
    assert not is_common(80, lambda number: number < 40) and is_common(80, lambda number: number < 42)
