"""Grams and proposals of no texts, of a few, and of more than are computed at a time: the same, text by text."""

import random

import numpy as np

from finllm.data import near_duplicates
from finllm.data.grams import Grams, common_grams, mixed
from finllm.data.near_duplicates import NearDuplicates, clusters

WIDTHS = (5, 2)


def made(count, words=4, seed=0, numbers=True):
    """Texts of made-up words, most of them with a number."""
    draw = random.Random(seed)

    def word():
        return "".join(draw.choice(letters) for letters in ("bdfglmnprs", "aeiou", "dglmnr", "aeiou", "lnrst"))

    ends = [f" {draw.randint(0, 40)}" if numbers else "" for _ in range(count)]
    return [" ".join(word() for _ in range(words)) + end for end in ends]


def pairs_of(found):
    return sorted(zip(*(side.tolist() for side in found), strict=True))


def test_no_texts():
    nothing = Grams([], *WIDTHS)
    assert len(nothing) == 0 and nothing.numbers == [] and nothing.starts.tolist() == [0]
    for name, kind in (("values_G", np.int32), ("sizes_N", np.int64), ("whole_N", np.int64), ("words_N", np.int64)):
        assert getattr(nothing, name).tolist() == [] and getattr(nothing, name).dtype == kind
    assert common_grams([], *WIDTHS).tolist() == [] and clusters([]) == []
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    for answers in (False, True):
        empty, one = NearDuplicates([], answers), NearDuplicates([text], answers)
        assert pairs_of(empty.search([text])) == pairs_of(one.search([])) == pairs_of(empty.search([])) == []
        assert pairs_of(empty.other_numbers([text])) == pairs_of(one.other_numbers([])) == []
        assert pairs_of(one.search([text])) == [(0, 0)]


def test_a_text_has_the_same_grams_and_keys_whatever_stands_beside_it():
    texts = made(2500)
    texts[1023], texts[1024], texts[2048] = "first 12", "second 7 of them", "基金 third"
    whole = Grams(texts, *WIDTHS)
    bands = near_duplicates._bands(whole)
    assert bands.shape == (42, 2500) and bands.dtype == np.uint64 and len(whole) == 2500
    for number in (0, 1, 511, 512, 1022, 1023, 1024, 1025, 2047, 2048, 2049, 2499):
        alone = Grams([texts[number]], *WIDTHS)
        mine = slice(whole.starts[number], whole.starts[number + 1])
        assert whole.values_G[mine].tolist() == alone.values_G.tolist() == sorted(set(alone.values_G.tolist()))
        assert whole.owners_G[mine].tolist() == [number] * len(alone.values_G)
        assert bands[:, number].tolist() == near_duplicates._bands(alone)[:, 0].tolist()
        assert whole.words_N[number] == alone.words_N[0] and whole.of_numbers_N[number] == alone.of_numbers_N[0]
    assert len({tuple(band) for band in bands.tolist()}) == 42


def test_postings_are_in_the_order_of_their_texts():
    values, owners = Grams(made(40) * 30, *WIDTHS).postings
    assert values.tolist() == sorted(values.tolist())
    places = list(zip(values.tolist(), owners.tolist(), strict=True))
    assert places == sorted(places) and len(set(places)) == len(places)


def test_half_a_character_and_a_text_of_one_gram():
    whole = Grams(["one \ud800 two", "one two", "a", "ab", "\ud800"], *WIDTHS)
    assert whole.words_N.tolist()[1:4] == [2, 1, 1] and whole.sizes_N.tolist()[2:] == [1, 1, 1]
    assert whole.varies_N.tolist() == [1, 1, 1, 1, 1]


def test_each_sign_that_is_a_word_counts():
    signs = "".join(map(chr, range(0x4E00, 0x4E00 + 60)))
    assert Grams([signs], *WIDTHS).words_N.tolist() == [60]


def test_ten_thousand_texts_decide_what_is_common():
    gram = set(Grams(["qqqq"], *WIDTHS).values_G.tolist()[1:])
    for count, seen in ((9_999, True), (10_000, True), (10_001, False)):  # of more than ten thousand each second
        texts = [f"{chr(97 + number // 676)}{chr(97 + number // 26 % 26)}{chr(97 + number % 26)}"
                 f"{' qqqq' * (number % 2)}" for number in range(count)]  # fmt: skip
        assert (gram <= set(common_grams(texts, *WIDTHS).tolist())) is seen


def test_a_number_in_what_is_common_is_masked():
    texts = [f"{text} in 5 words" for text in made(30, numbers=False)]
    assert set(Grams(["in 5 words"], *WIDTHS).values_G.tolist()[1:]) & set(common_grams(texts, *WIDTHS).tolist())
    held = {value for value in common_grams(texts, *WIDTHS).tolist() if value & 1}  # odd: with a number
    other = [text.replace("5", "7") for text in texts]
    assert held and held == {value for value in common_grams(other, *WIDTHS).tolist() if value & 1}


def test_the_same_number_is_found_among_many_others():
    """No text is held against more than 32 of those that are alike; what has its numbers is among them."""
    texts = [f"What does a bond cost in week {number} of this year?" for number in range(60)]
    assert clusters([*texts, texts[0].upper()]) == [*range(60), 0]


def test_pairs_with_one_other_text():
    texts = ["one two three four five six seven", "gold debt fund bond rate loan bank", "other words of no use at all"]
    assert pairs_of(NearDuplicates(texts).search([texts[1]])) == [(1, 0)]


def test_answers_that_are_short_are_near_as_questions_are():
    texts = ["Gold pays no interest at all.", "A bond does."]
    assert pairs_of(NearDuplicates(texts, answers=True).search([texts[1], texts[0] + " Never."])) == [(0, 1), (1, 0)]


def test_what_is_common_to_many_answers_and_full_of_numbers_is_copied_from_none():
    said = "in 2019 it was 12 and in 2020 it was 14 and in 2021 it was 17 and in 2022 it was 19"
    answers = [f"{text} {said}" for text in made(30, words=18, numbers=False)]
    copied = f"{made(1, words=18, seed=9, numbers=False)[0]} {said}"
    assert pairs_of(NearDuplicates(answers, answers=True).search([copied])) == []
    assert pairs_of(NearDuplicates(answers[:10], answers=True).search([copied])) == [(row, 0) for row in range(10)]


def test_how_much_of_an_answer_without_blanks_is_copied():
    """Runs of five signs: of 22 signs 11 in one piece are 7 of 20 runs, which is just enough."""
    for length, held, found in ((22, 12, True), (22, 11, True), (22, 10, False), (23, 12, True), (23, 11, False)):
        text, other = ("".join(map(chr, range(start, start + length))) for start in (0x4E00, 0x5E00))
        copied, found = other[:6] + text[5 : 5 + held] + other[6:], [(0, 0)] * found
        assert pairs_of(NearDuplicates([text], answers=True).search([copied])) == found


def test_how_much_of_an_answer_in_words_is_copied():
    """Runs of twenty letters and blanks: of 100 in a row 49 in one piece are 30 of 83 runs, just enough, 48 are not."""
    (text,), (before,), (after,) = (made(1, words=17, seed=seed, numbers=False) for seed in (3, 4, 5))
    text = text[:100]
    for held, found in ((49, [(0, 0)]), (48, [])):
        copied = f"{before}{text[20 : 20 + held]}{after}"
        assert pairs_of(NearDuplicates([text], answers=True).search([copied])) == found
        assert pairs_of(NearDuplicates([text]).search([copied])) == []  # of questions nothing is copied in part


def test_a_text_that_ends_in_another_ones_middle_of_a_word_is_looked_for_by_its_second_rarest_gram():
    inner = "one two three four five six seven eight fund"
    outer = f"{made(1, words=20, seed=8, numbers=False)[0]} {inner}s {made(1, words=20, seed=9, numbers=False)[0]}"
    assert pairs_of(NearDuplicates([inner]).search([outer])) == [(0, 0)]
    assert pairs_of(NearDuplicates([outer]).search([inner])) == [(0, 0)]


def test_what_many_pairs_share():
    texts = made(30, words=8)
    grams = Grams(texts, *WIDTHS)
    sets = [set(grams.values_G[grams.starts[n] : grams.starts[n + 1]].tolist()) for n in range(30)]
    one, other = (np.random.default_rng(side).integers(30, size=30_001) for side in (0, 1))
    shared = grams.shared(one, grams, other)
    assert shared.dtype == np.int64 and len(shared) == 30_001
    expected = [[len(a & b) for b in sets] for a in sets]
    assert shared.tolist() == [expected[a][b] for a, b in zip(one, other, strict=True)]
    with_number = [[len({value for value in a & b if value % 2}) for b in sets] for a in sets]
    assert grams.shared(one, grams, other, numbers_only=True).tolist() == [
        with_number[a][b] for a, b in zip(one, other, strict=True)
    ]  # fmt: skip
    assert sum(map(sum, with_number)) > 0


def test_what_decides_what_is_common():
    """The texts of the index where there are no others; where there are, those alone."""
    fixed = "What would you say of this, dear reader, in a word or two?"
    texts = [f"{fixed} {text}" for text in made(60, words=3, numbers=False)]
    assert pairs_of(NearDuplicates(texts).search(texts)) == [(n, n) for n in range(60)]
    assert len(pairs_of(NearDuplicates(texts[:5]).search(texts))) > 60
    assert pairs_of(NearDuplicates(texts[:5], among=texts).search(texts)) == [(n, n) for n in range(5)]
    assert clusters(texts) == list(range(60)) and set(clusters(texts[:5])) == {0}


def test_each_text_of_a_cluster_has_the_place_of_its_first_one():
    base = [f"{text} and {text[::-1]}" for text in made(6, words=5, seed=3, numbers=False)]
    texts = [base[2], base[0], base[2] + " so", base[1], base[0] + " it", base[0], base[2]]
    found = clusters(texts)
    assert found == [0, 1, 0, 3, 1, 1, 0] and all(type(place) is int for place in found)


def test_the_finaliser_of_murmurhash3():
    """As its author's test values have it: 0 stays 0, and 1 becomes B456BCFC34C2CB2C."""
    values = mixed(np.array([0, 1, 2], np.uint64))
    assert [f"{value:X}" for value in values.tolist()] == ["0", "B456BCFC34C2CB2C", "3ABF2A20650683E7"]
