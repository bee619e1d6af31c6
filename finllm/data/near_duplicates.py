"""Near duplicates: texts that say the same in nearly the same words, in disguise or inside a longer one.

Texts are compared as sets of character 5-grams, folded as finllm/data/grams.py says. Two are near duplicates where

    alike    |A ∩ B| ≥ ½ |A ∪ B| (Jaccard index; Broder 1997) and both hold the same numbers, or
    inside   |A ∩ B| ≥ 0.9 |A|, A has seven words or more besides numbers, and B holds all numbers of A.

The same question with other numbers is another question. Texts are compared twice: as they are, and without the grams
that stand in more than 1 % of all texts. So a fixed instruction before each question makes no two of them alike, and
what is left of two short questions without their common words is not enough. Of answers a third way counts: 20-grams
tell which parts are the same word for word, and where a third of the shorter one is, it was copied in part:

    copied   |A ∩ B| ≥ 0.35 |A| in 20-grams, A has 16 words or more besides numbers, and 0.8 of the numbers in the
             same places are the same.

Pairs are proposed by MinHash with locality-sensitive hashing (alike) and by each text's rarest grams (inside, copied);
the exact figures above then decide.
docs/trust.md has the recall of each kind, and how often honest pairs are taken for near duplicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from finllm.data.grams import Grams, common_grams, mixed

WIDTHS = (5, 2)  # characters of a gram: in general, and where a character is a word
ALIKE, INSIDE, LEAST_INSIDE = 0.5, 0.9, 7
ALIKE_VARYING, FIXED, LEAST_VARYING = 0.3, 0.2, 2  # without common grams; share of a text, and words, that vary
WIDTHS_COPIED, COPIED, LEAST_COPIED, SAME_NUMBERS = (20, 5), 0.35, 16, 0.8

BANDS, ROWS = 42, 3  # a pair of Jaccard index J is proposed with probability 1 − (1 − J³)⁴², at ½ with 0.996
MOST_ALIKE = 32  # texts of one band's bucket that a text is held against; where there are more, all are alike
MOST_HOLDERS = 200  # texts that may hold a gram before it says nothing about any of them
RAREST = 2  # grams by which a text is looked for inside others
PART = 8192  # texts whose grams are looked up at a time

Pairs = tuple[np.ndarray, np.ndarray]  # positions of the one text and of the other, one pair a place


class NearDuplicates:
    """An index of texts, to be asked which of them are near duplicates of others."""

    def __init__(self, texts: Sequence[str], answers: bool = False, among: Sequence[str] | None = None):
        """`among` are the texts that decide what is common: those of the index, where there are no others."""
        self.texts, self.answers = texts, answers
        among = texts if among is None else among
        self._common = common_grams(among, *WIDTHS)
        self._grams = Grams(texts, *WIDTHS, without=self._common)
        if answers:
            self._common_long = common_grams(among, *WIDTHS_COPIED, masked=False)
            self._long = Grams(texts, *WIDTHS_COPIED, masked=False, without=self._common_long)

    def search(self, texts: Sequence[str]) -> Pairs:
        """All pairs of a text of the index and one of `texts` that are near duplicates."""
        ours, theirs = self._grams, Grams(texts, *WIDTHS, without=self._common)
        alike = [_where(_alike, ours, pairs, theirs) for pairs in _in_one_bucket(ours, theirs)]
        found = [self._whole(_alike, _distinct(alike, len(texts)), texts)]
        pairs = _where(_inside, ours, _holding(ours, theirs, INSIDE, LEAST_INSIDE, RAREST), theirs)
        found.append(self._whole(_inside, pairs, texts))
        pairs = _where(_inside, theirs, _holding(theirs, ours, INSIDE, LEAST_INSIDE, RAREST), ours)
        found.append(_turned(_whole(_inside, pairs, texts, self.texts, self._common)))
        if self.answers:
            found += self._copied(Grams(texts, *WIDTHS_COPIED, masked=False, without=self._common_long), texts)
        return _distinct(found, len(texts))

    def other_numbers(self, texts: Sequence[str]) -> Pairs:
        """Pairs that are alike but for their numbers; of many such pairs of one text not all."""
        ours, theirs = self._grams, Grams(texts, *WIDTHS, without=self._common)
        pairs = (_where(_other_numbers, ours, pairs, theirs) for pairs in _in_one_bucket(ours, theirs, numbers=False))
        return self._whole(_other_numbers, _distinct(list(pairs), len(texts)), texts)

    def _whole(self, test, pairs: Pairs, texts: Sequence[str]) -> Pairs:
        return _whole(test, pairs, self.texts, texts, self._common)

    def _copied(self, theirs: Grams, texts: Sequence[str]) -> list[Pairs]:
        ours = self._long
        found = [
            _where(_copied, ours, _holding(ours, theirs, COPIED, LEAST_COPIED), theirs),
            _turned(_where(_copied, theirs, _holding(theirs, ours, COPIED, LEAST_COPIED), ours)),
        ]
        return [_same_numbers(pairs, self.texts, ours, texts, theirs) for pairs in found]


def clusters(texts: Sequence[str]) -> list[int]:
    """For each text the position of the first text of its cluster; near duplicates of near duplicates are in one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    common = common_grams(texts, *WIDTHS)
    grams = Grams(texts, *WIDTHS, without=common)
    label = np.arange(len(texts))
    for test, proposed in _proposed_within(grams):
        apart = label[proposed[0]] != label[proposed[1]]
        pairs = _where(test, grams, (proposed[0][apart], proposed[1][apart]), grams)
        one, other = _whole(test, pairs, texts, texts, common)
        joined = coo_matrix((np.ones(len(one)), (label[one], label[other])), shape=(len(texts), len(texts)))
        label = connected_components(joined, directed=False)[1][label]
    _, first, cluster = np.unique(label, return_index=True, return_inverse=True)
    return first[cluster].tolist()


def _proposed_within(grams: Grams) -> Iterator[tuple]:
    for pairs in _in_one_bucket(grams, grams):
        yield _alike, pairs
    yield _inside, _holding(grams, grams, INSIDE, LEAST_INSIDE, RAREST)


# Which pairs may be near duplicates ----------------------------------------------------------------------------------


def _in_one_bucket(ours: Grams, theirs: Grams, numbers: bool = True) -> Iterator[Pairs]:
    """Band by band the pairs whose ROWS MinHashes are the same and, with `numbers`, whose numbers are."""
    bands = [_bands(ours)]
    bands.append(bands[0] if ours is theirs else _bands(theirs))
    for left, right in zip(*bands, strict=True):
        if numbers:
            left, right = left ^ mixed(ours.of_numbers_N), right ^ mixed(theirs.of_numbers_N)
        order = np.argsort(right, kind="stable")
        in_order = right[order]
        end = np.searchsorted(in_order, left, "right")
        if ours is theirs:
            start = np.empty(len(order), np.int64)
            start[order] = np.arange(1, len(order) + 1)  # each pair once
        else:
            start = np.searchsorted(in_order, left, "left")
        yield _each_with(np.arange(len(left)), start, np.minimum(end - start, MOST_ALIKE), order)


def _bands(grams: Grams) -> np.ndarray:
    """A key of 64 bits for each band and text, BANDS × N."""
    draw = np.random.default_rng(1)
    factors, terms = (draw.integers(2**63, size=(BANDS, ROWS), dtype=np.uint64) for _ in range(2))
    factors = factors * np.uint64(2) + np.uint64(1)  # odd: multiply-shift (Dietzfelbinger et al. 1997)
    keys = np.zeros((BANDS, len(grams)), np.uint64)
    for first in range(0, len(grams), 1024):
        last = min(first + 1024, len(grams))
        values = grams.values_G[grams.starts[first] : grams.starts[last]].astype(np.uint64)
        starts = grams.starts[first:last] - grams.starts[first]
        for band in range(BANDS):
            key = keys[band, first:last]
            for factor, term in zip(factors[band], terms[band], strict=True):
                key[:] = mixed(key) + np.minimum.reduceat((values * factor + term) >> np.uint64(32), starts)
    return keys


def _holding(inner: Grams, outer: Grams, share: float, least_words: int, most: int | None = None) -> Pairs:
    """Pairs of a text and a larger one that holds one of its rarest grams, rarest in `outer`.

    Who holds `share` of a text's S grams holds one of any S − share · S + 1 of them (prefix filter; Chaudhuri et al.
    2006). Of those the `most` rarest are looked up: what stands inside another text whole has all of them there.
    """
    values, owners = outer.postings
    found = []
    for first in range(0, len(inner), PART):  # so that the work takes little memory
        part = slice(inner.starts[first], inner.starts[min(first + PART, len(inner))])
        sizes, words = inner.sizes_N[first : first + PART], inner.words_N[first : first + PART]
        start = np.searchsorted(values, inner.values_G[part], "left")
        holders = np.searchsorted(values, inner.values_G[part], "right") - start
        rarest_first = np.lexsort((holders, inner.owners_G[part]))
        place = np.arange(len(rarest_first)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        looked_up = sizes - np.ceil(share * sizes).astype(np.int64) + 1
        looked_up = np.where(words < least_words, 0, np.minimum(looked_up, most or looked_up))
        chosen = rarest_first[place < np.repeat(looked_up, sizes)]
        chosen = chosen[(holders[chosen] > (inner is outer)) & (holders[chosen] <= MOST_HOLDERS)]
        one, other = _each_with(inner.owners_G[part][chosen], start[chosen], holders[chosen], owners)
        larger = inner.sizes_N[one] <= outer.sizes_N[other]
        if inner is outer:
            larger &= one != other
        found.append((one[larger], other[larger]))
    return _distinct(found, len(outer))


def _each_with(rows: np.ndarray, starts: np.ndarray, counts: np.ndarray, targets: np.ndarray) -> Pairs:
    """Each row with `counts` of the targets from its start on."""
    before = np.cumsum(counts) - counts
    return np.repeat(rows, counts), targets[np.repeat(starts - before, counts) + np.arange(counts.sum())]


def _distinct(found: list[Pairs], others: int) -> Pairs:
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    one, other = (np.concatenate([pairs[side] for pairs in found]).astype(np.int64) for side in (0, 1))
    return np.divmod(np.unique(one * others + other), max(others, 1))


def _turned(pairs: Pairs) -> Pairs:
    return pairs[1], pairs[0]


# Which pairs are near duplicates -------------------------------------------------------------------------------------


def _where(test, ours: Grams, pairs: Pairs, theirs: Grams) -> Pairs:
    holds = test(ours, theirs, *pairs)
    return pairs[0][holds], pairs[1][holds]


def _whole(test, pairs: Pairs, texts: Sequence[str], others: Sequence[str], common: np.ndarray) -> Pairs:
    """The pairs for which the test holds of the whole texts too, with what is common."""
    if not len(common) or not len(pairs[0]):
        return pairs
    some, one = np.unique(pairs[0], return_inverse=True)
    some_others, other = np.unique(pairs[1], return_inverse=True)
    holds = test(Grams([texts[n] for n in some], *WIDTHS), Grams([others[n] for n in some_others], *WIDTHS), one, other)
    return pairs[0][holds], pairs[1][holds]


def _jaccard(ours: Grams, theirs: Grams, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    shared = ours.shared(one, theirs, other)
    return shared / (ours.sizes_N[one] + theirs.sizes_N[other] - shared)


def _alike(ours: Grams, theirs: Grams, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    same = ours.of_numbers_N[one] == theirs.of_numbers_N[other]
    return same & (_jaccard(ours, theirs, one, other) >= _least(ours, theirs, one, other))


def _other_numbers(ours: Grams, theirs: Grams, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    different = ours.of_numbers_N[one] != theirs.of_numbers_N[other]
    return different & (_jaccard(ours, theirs, one, other) >= _least(ours, theirs, one, other))


def _least(ours: Grams, theirs: Grams, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The Jaccard index from which two texts are alike.

    Where common words are left out and more than a fifth of both texts is not common, the whole texts decide, and what
    varies has but to agree.
    """
    varies = np.minimum(ours.varies_N[one], theirs.varies_N[other])
    return np.where((varies < 1) & (varies > FIXED), ALIKE_VARYING, ALIKE)


def _inside(inner: Grams, outer: Grams, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    holds = inner.shared(one, outer, other) >= INSIDE * inner.sizes_N[one]
    holds &= inner.words_N[one] * inner.varies_N[one] >= LEAST_VARYING
    for pair in np.flatnonzero(holds):
        holds[pair] = Counter(inner.numbers[one[pair]]) <= Counter(outer.numbers[other[pair]])
    return holds


def _copied(inner: Grams, outer: Grams, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    varies = inner.words_N[one] * inner.varies_N[one] >= LEAST_COPIED
    return varies & (inner.shared(one, outer, other) >= COPIED * inner.sizes_N[one])


def _same_numbers(pairs: Pairs, texts: Sequence[str], ours: Grams, others: Sequence[str], theirs: Grams) -> Pairs:
    """The pairs without those that have other numbers in the same places.

    Of the shorter text's grams with a number, a share stands in the other one with # for the number: the same places.
    SAME_NUMBERS of that share or more must stand there as it is written, too.
    """
    one, other = pairs
    some, one_masked = np.unique(one, return_inverse=True)
    some_others, other_masked = np.unique(other, return_inverse=True)
    ours_masked = Grams([texts[number] for number in some], *WIDTHS_COPIED)
    theirs_masked = Grams([others[number] for number in some_others], *WIDTHS_COPIED)
    places = _share_with_numbers(ours_masked, one_masked, theirs_masked, other_masked)
    same = _share_with_numbers(ours, one, theirs, other) >= SAME_NUMBERS * places
    return one[same], other[same]


def _share_with_numbers(ours: Grams, one: np.ndarray, theirs: Grams, other: np.ndarray) -> np.ndarray:
    """Which share of its grams with a number the text that has fewer grams has in common with the other."""
    held = np.where(ours.sizes_N[one] <= theirs.sizes_N[other], ours.with_number_N[one], theirs.with_number_N[other])
    return ours.shared(one, theirs, other, numbers_only=True) / np.maximum(held, 1)
