"""Grams, proposals and near duplicates against a second computation in plain sets, which compares every pair."""

import functools
import itertools
import random
from collections import Counter

import numpy as np
import pytest

from finllm.data import grams, near_duplicates
from finllm.data.grams import Grams, common_grams, folded
from finllm.data.near_duplicates import NearDuplicates, clusters
from finllm.text.words import stands_alone

SHORT, LONG = (5, 2), (20, 5)  # characters of a gram, and where a character is a word
NOTHING, NONE = "nothing of it varies", frozenset()


@functools.cache
def grams_of(text, widths, masked=True):
    padded = f" {folded(text, masked)[0]} ".ljust(widths[0])
    alone = [stands_alone(sign) for sign in padded] + [False]
    ends = [place + widths[alone[place] or alone[place + 1]] for place in range(len(padded))]
    return frozenset(padded[place:end] for place, end in enumerate(ends) if end <= len(padded))


def words_of(text, masked=True):
    padded = f" {folded(text, masked)[0]} "
    begin = sum(a == " " != b and b not in "#0123456789" for a, b in itertools.pairwise(padded))
    return begin + sum(stands_alone(b) and a != " " for a, b in itertools.pairwise(padded))


def common_of(texts, widths, masked=True):
    distinct = dict.fromkeys(texts)
    counts = Counter(gram for text in distinct for gram in grams_of(text, widths, masked))
    return {gram for gram, count in counts.items() if count > 20 and count > len(distinct) / 100}


class Text:
    """A text as sets of grams, without those that are common."""

    def __init__(self, text, widths=SHORT, masked=True, common=NONE):
        whole = grams_of(text, widths, masked)
        self.grams = whole - common or {NOTHING}
        self.varies, self.words = min(len(self.grams) / len(whole), 1), words_of(text, masked)
        self.numbers = folded(text)[1]
        self.with_number = {gram for gram in self.grams if set(gram) & set("#0123456789")}


def is_alike(a, b, same_numbers=True):
    varies = min(a.varies, b.varies)
    least = 0.3 if 0.2 < varies < 1 else 0.5
    enough = len(a.grams & b.grams) >= least * len(a.grams | b.grams)
    return enough and (a.numbers == b.numbers) is same_numbers


def is_inside(a, b):
    held = len(a.grams & b.grams) >= 0.9 * len(a.grams) and a.words * a.varies >= 2
    return held and a.words >= 7 and len(a.grams) <= len(b.grams) and Counter(a.numbers) <= Counter(b.numbers)


def is_copied(long, places):
    a, b = long
    if len(a.grams) > len(b.grams) or a.words * a.varies < 16 or len(a.grams & b.grams) < 0.35 * len(a.grams):
        return False
    shares = []
    for one, other in (long, places):
        held = one if len(one.grams) <= len(other.grams) else other
        shares.append(len(one.with_number & other.with_number) / max(1, len(held.with_number)))
    return shares[0] >= 0.8 * shares[1]


def near(texts, others, answers, among):
    """Every pair that is near, and by which rules."""
    common, found = common_of(among, SHORT), {}
    common_long = common_of(among, LONG, masked=False)
    both = (texts, others)
    varying, whole = ([[Text(text, common=without) for text in each] for each in both] for without in (common, NONE))
    if answers:
        ways = ((False, common_long), (True, NONE))
        long, places = ([[Text(text, LONG, *way) for text in each] for each in both] for way in ways)
    for i, j in itertools.product(range(len(texts)), range(len(others))):
        rules = set()
        if all(is_alike(each[0][i], each[1][j]) for each in (varying, whole)):
            rules.add("alike")
        for turned in (1, -1):
            if all(is_inside(*(each[0][i], each[1][j])[::turned]) for each in (varying, whole)):
                rules.add("inside")
            if answers and is_copied(*((each[0][i], each[1][j])[::turned] for each in (long, places))):
                rules.add("copied")
        if rules:
            found[i, j] = rules
    return found


SYLLABLES = [f"{a}{b}{c}" for a in "bdfglmnprstvz" for b in "aeiou" for c in "bdfglmnprstvz"]
HAN = "基金股票债券利率通胀银行贷款税收保险"


def corpus(seed, count=40, long=False):
    """Texts of made-up words, numbers and signs, and of each some that differ from it by little or by much."""
    draw = random.Random(seed)
    texts = []
    while len(texts) < count:
        count_of_words = draw.randint(30, 50) if long else draw.randint(1, 16)
        words = [draw.choice([*draw.choices(SYLLABLES, k=6), str(draw.randint(0, 12)), draw.choice(HAN) * 2, "é!"])
                 for _ in range(count_of_words)]  # fmt: skip
        texts.append(" ".join(words))
        for _ in range(3):
            changed = list(words)
            for _ in range(draw.choice([0, 1, 1, 2, 4, 8])):
                changed[draw.randrange(len(changed))] = draw.choice([*SYLLABLES[:40], "7", "8"])
            if draw.random() < 0.3:
                changed = [str(draw.randint(0, 99)) if word.isdigit() else word for word in words]
            cut = draw.randint(0, len(changed) // 2) * draw.randint(0, 1)
            more = draw.choices(SYLLABLES, k=draw.choice([0, 0, 2, 20]))
            texts.append(" ".join(draw.choice([more + changed[cut:], changed[cut:] + more])))
    return texts


@pytest.mark.parametrize(("widths", "masked"), [(SHORT, True), (LONG, False), (LONG, True)])
@pytest.mark.parametrize("with_common", [False, True])
def test_texts_as_sets_of_grams(widths, masked, with_common, monkeypatch):
    monkeypatch.setattr(grams, "CHUNK", 7)
    texts = [
        *corpus(1, long=widths == LONG),
        "基金",
        "什么是 index 基金 2?",
        "?!",
        "",
        " ",
        "a",
        "1",
        "#",
        "1,000.50 and 7",
    ]
    common = common_grams(texts[:9] * 4, *widths, masked=masked)
    assert not len(common)
    many = [f"{text} and what is the same in all of them" for text in texts]
    texts = many if with_common else texts
    common, left_out = common_grams(texts, *widths, masked=masked), common_of(texts, widths, masked)
    assert len(common) == len(left_out) and bool(left_out) is with_common
    found = Grams(texts, *widths, masked=masked, without=common)
    expected = [Text(text, widths, masked, left_out) for text in texts]
    assert len(found) == len(texts) and found.sizes_N.tolist() == [len(each.grams) for each in expected]
    assert found.words_N.tolist() == [each.words for each in expected]
    assert found.varies_N.tolist() == pytest.approx([each.varies for each in expected])
    assert found.with_number_N.tolist() == [len(each.with_number) for each in expected]
    assert found.numbers == [each.numbers for each in expected]
    same = found.of_numbers_N[:, None] == found.of_numbers_N
    assert same.tolist() == [[a.numbers == b.numbers for b in expected] for a in expected]
    pairs = list(itertools.product(range(len(texts)), repeat=2))
    one, other = (np.array(side) for side in zip(*pairs, strict=True))
    assert found.shared(one, found, other).tolist() == [
        len(expected[a].grams & expected[b].grams) for a, b in pairs
    ]  # fmt: skip
    assert found.shared(one, found, other, numbers_only=True).tolist() == [
        len(expected[a].with_number & expected[b].with_number) for a, b in pairs
    ]
    everything = Grams(texts, *widths, masked=masked)
    assert everything.sizes_N.tolist() == everything.whole_N.tolist() == [
        len(grams_of(text, widths, masked)) for text in texts
    ]  # fmt: skip


def test_common_is_more_than_twenty_texts_and_one_in_a_hundred(monkeypatch):
    def texts(held, of):
        return [f"{SYLLABLES[n % 800]}{SYLLABLES[n // 800]}x{'  qqqq' if n < held else ''}" for n in range(of)]

    for held, of, said in ((20, 50, 0), (21, 50, 1), (30, 3000, 0), (31, 3000, 1)):
        found = set(common_grams(texts(held, of), *SHORT)) & set(Grams(["qqqq"], *SHORT).values_G)
        assert bool(found) is bool(said), (held, of)
    repeated = texts(1, 50) + texts(1, 1) * 30
    assert not len(set(common_grams(repeated, *SHORT)) & set(Grams(["qqqq"], *SHORT).values_G))
    monkeypatch.setattr(grams, "MOST_SAMPLED", 40)
    every_third = [f"{text} qqqq" if number % 3 == 0 else text for number, text in enumerate(texts(0, 101))]
    assert set(common_grams(every_third, *SHORT)) >= set(Grams(["qqqq"], *SHORT).values_G[1:])


@pytest.mark.parametrize("most", [None, 2])
@pytest.mark.parametrize("within", [False, True])
def test_pairs_are_proposed_by_the_rarest_grams(most, within, monkeypatch):
    monkeypatch.setattr(near_duplicates, "PART", 7)
    monkeypatch.setattr(near_duplicates, "MOST_HOLDERS", 30)
    texts = corpus(2, 100)
    others = texts if within else corpus(2, 100)[::-1][:80] + corpus(3)
    inner = Grams(texts, *SHORT)
    outer = inner if within else Grams(others, *SHORT)
    values = [inner.values_G[inner.starts[n] : inner.starts[n + 1]].tolist() for n in range(len(texts))]
    held = [set(outer.values_G[outer.starts[n] : outer.starts[n + 1]].tolist()) for n in range(len(others))]
    holders = Counter(value for each in held for value in each)
    expected = set()
    for n, mine in enumerate(values):
        rarest = sorted(mine, key=lambda value: holders[value])  # stable: those as rare in the order of their values
        looked_up = min(len(mine) - int(np.ceil(0.9 * len(mine))) + 1, most or len(mine))
        for value in rarest[: looked_up if words_of(texts[n]) >= 7 else 0]:
            if holders[value] <= 30:
                expected |= {(n, other) for other, each in enumerate(held) if value in each and len(mine) <= len(each)}
    expected -= {(n, n) for n in range(len(texts))} if within else set()
    found = near_duplicates._holding(inner, outer, 0.9, 7, most)
    assert list(zip(*map(list, found), strict=True)) == sorted(expected) and len(expected) > 20


def test_a_band_proposes_whoever_has_its_key_and_the_same_numbers(monkeypatch):
    texts, others = corpus(4), corpus(4)[::-1] + corpus(5)[:10]
    ours, theirs = Grams(texts, *SHORT), Grams(others, *SHORT)
    keys, other_keys = near_duplicates._bands(ours), near_duplicates._bands(theirs)
    assert len(keys) == len(other_keys) == 42
    for numbers in (True, False):
        for within in (False, True):
            against = (ours, keys, texts) if within else (theirs, other_keys, others)
            bands = list(near_duplicates._in_one_bucket(ours, against[0], numbers))
            assert len(bands) == 42
            for band, pairs in enumerate(bands):
                expected = {(a, b) for a in range(len(texts)) for b in range(len(against[2]))
                            if keys[band, a] == against[1][band, b]
                            and not (numbers and folded(texts[a])[1] != folded(against[2][b])[1])}  # fmt: skip
                found = list(zip(*(side.tolist() for side in pairs), strict=True))
                assert len(set(found)) == len(found)
                assert {tuple(sorted(pair)) for pair in found if within} | {pair for pair in found if not within} == {
                    pair for pair in expected if not within or pair[0] < pair[1]
                }
    many, as_many = (Grams(["one and the same text"] * 50, *SHORT) for _ in range(2))
    assert {len(pairs[0]) for pairs in near_duplicates._in_one_bucket(many, as_many)} == {50 * 32}


def test_a_band_is_equal_as_often_as_the_cube_of_the_jaccard_index():
    """Broder 1997: a MinHash is the same in two sets with their Jaccard index for probability, three of them cubed."""
    draw = random.Random(0)
    equal, expected = [], []
    for _ in range(150):
        words = draw.choices(SYLLABLES, k=20)
        changed = [*words[: draw.randint(10, 19)], *draw.choices(SYLLABLES, k=3)]
        a, b = grams_of(" ".join(words), SHORT), grams_of(" ".join(changed), SHORT)
        bands = near_duplicates._bands(Grams([" ".join(words), " ".join(changed)], *SHORT))
        equal.append(np.mean(bands[:, 0] == bands[:, 1]))
        expected.append((len(a & b) / len(a | b)) ** 3)
    assert np.mean(equal) == pytest.approx(np.mean(expected), abs=0.02) and 0.2 < np.mean(expected) < 0.6
    assert np.corrcoef(equal, expected)[0, 1] > 0.9


@pytest.mark.parametrize(("answers", "seed"), [(False, 6), (False, 7), (True, 8), (True, 9)])
@pytest.mark.parametrize("with_common", [False, True])
def test_near_duplicates_are_those_of_every_pair_compared(answers, seed, with_common):
    count = 40 if answers else 100
    texts, others = corpus(seed, count, answers), corpus(seed, count, answers)[::-1] + corpus(seed + 100, 20)
    fixed = "What would you say to this, in a word or two, dear reader?"
    if with_common:
        texts, others = ([f"{fixed} {text}" for text in each] for each in (texts, others))
    among = [*texts, *others]
    expected = near(texts, others, answers, among)
    index = NearDuplicates(texts, answers, among)
    found = list(zip(*map(list, index.search(others)), strict=True))
    assert found == sorted(set(found)) and set(found) <= set(expected)
    missed = {pair: rules for pair, rules in expected.items() if pair not in set(found)}
    assert not [pair for pair, rules in missed.items() if "copied" in rules]
    most_missed = 0.12 if with_common else 0.04  # where 0.3 of what varies is enough, two in three are proposed
    assert len(missed) <= most_missed * len(expected), missed
    counted = Counter(rule for rules in expected.values() for rule in rules)
    assert all(counted[rule] > 15 for rule in ("alike", "inside", *["copied"] * answers)), counted
    if not answers:
        common = common_of(among, SHORT)
        varying = [[Text(text, common=common) for text in each] for each in (texts, others)]
        whole = [[Text(text) for text in each] for each in (texts, others)]
        numbers = {(i, j) for i in range(len(texts)) for j in range(len(others))
                   if all(is_alike(each[0][i], each[1][j], False) for each in (varying, whole))}  # fmt: skip
        found = set(zip(*map(list, index.other_numbers(others)), strict=True))
        assert found <= numbers and len(found) >= 0.85 * len(numbers) > 5
        linked = near(texts, texts, False, texts)
        place = clusters(texts)
        assert all(place[i] == place[j] for (i, j), rules in linked.items()
                   if "alike" in rules and Text(texts[i]).grams == Text(texts[j]).grams)  # fmt: skip
        expected = _clusters(set(linked), len(texts))
        assert all(expected[n] == expected[first] for n, first in enumerate(place))
        assert with_common or place == expected


def _clusters(pairs, count):
    place = list(range(count))
    for _ in range(count):
        for i, j in pairs:
            place[i] = place[j] = min(place[i], place[j])
    return place


def found_by(index, texts):
    return set(zip(*(side.tolist() for side in index.search(texts)), strict=True))


def test_what_more_than_two_hundred_texts_hold_is_looked_for_in_none():
    inner = Grams(["one two three four five six seven eight"], *SHORT)
    for count, found in ((200, 200), (201, 0)):
        outer = Grams([f"one two three four five six seven eight {word}" for word in SYLLABLES[:count]], *SHORT)
        assert len(near_duplicates._holding(inner, outer, 0.9, 7, 2)[0]) == found


def test_what_any_one_band_proposes_is_found(monkeypatch):
    """The first, the last and one between: 42 bands propose, and none is left out."""
    texts = [f"{word} {word[::-1]} {word}" for word in ("gold", "debt", "fund")]
    other_numbers = [f"What is {number} worth, in short words?" for number in (2, 7)]
    proposed = [(np.array([n]), np.array([n])) for n in range(3)]
    monkeypatch.setattr(near_duplicates, "_in_one_bucket", lambda *given, **named: iter(proposed))
    assert found_by(NearDuplicates(texts), texts) == {(0, 0), (1, 1), (2, 2)}
    proposed[:] = [(np.array([n]), np.array([n + 3])) for n in range(3)]
    assert clusters([*texts, *texts]) == [0, 1, 2, 0, 1, 2]
    proposed[:] = [(np.array([0]), np.array([n])) for n in (0, 1)]
    pairs = NearDuplicates(other_numbers[:1]).other_numbers([other_numbers[1], other_numbers[1]])
    assert list(zip(*map(list, pairs), strict=True)) == [(0, 0), (0, 1)]


def test_pairs_of_many_texts_are_no_numbers_of_32_bits():
    pairs = (np.array([69_999, 3, 69_999], np.int32), np.array([70_000, 0, 70_000], np.int32))
    one, other = near_duplicates._distinct([pairs, pairs], 70_001)
    assert (one.tolist(), other.tolist()) == ([3, 69_999], [0, 70_000])


@pytest.mark.parametrize(("rule", "least"), [("inside", 7), ("copied", 16)])
def test_how_many_words_a_text_needs_to_be_found_in_another(rule, least):
    draw = random.Random(3)
    words, others = draw.sample(SYLLABLES, 20), draw.sample(SYLLABLES, 60)
    for count, found in ((least - 1, set()), (least, {(0, 0)}), (least + 1, {(0, 0)})):
        text = " ".join(words[:count])
        held = text if rule == "inside" else " ".join(words[: count - 5])
        for number in ("", " 5"):  # which is no word
            index = NearDuplicates([text + number], answers=rule == "copied")
            assert found_by(index, [f"{' '.join(others[:30])} {held}{number} {' '.join(others[30:])}"]) == found
