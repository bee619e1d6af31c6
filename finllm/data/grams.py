"""Texts as sets of short runs of characters, hashed: what is left of them when case, signs and disguises are taken off.

    "Wһat  will €1,000.00 be?"   →   " what will # be "   →   {" what", "what ", "hat w", …},  numbers {1000}

Folding: Unicode NFKD, no accents and no characters that nobody sees, letters of other scripts that look like Latin ones
as those, no case, one blank for all that is neither letter nor digit. Each number becomes `#` and is kept aside, so
that a text and its numbers can be compared apart.
Where a script has no blanks between words (finllm/text/words.py) a run is shorter: two characters there say what five
letters say elsewhere.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import regex

from finllm.text.words import stands_alone

CHUNK = 512  # texts that are hashed at a time: their characters stay in the processor's cache
MASK = "#"
COMMON, LEAST_COMMON = 0.01, 20  # share and number of texts beyond which a gram that they hold says nothing
NOTHING_VARIES = 0
MOST_SAMPLED = 10_000  # texts by which that is decided

# Unicode Technical Standard 39, the letters of its confusables whose look-alike is a Latin letter in most fonts.
_CAPITALS = str.maketrans("ΝΥ", "NY")  # the small ones look like other letters than these
_LOOK_ALIKES = str.maketrans("авекмнорстухіјѕԁһԛԝӏαβεζηικμνορτυχɑɡı", "abekmhopctyxijsdhqwlabezhikmvoptuxagi")
# What nobody sees, and marks that stand above or below a letter; vowel signs, which have no class, are letters.
_UNSEEN = regex.compile(r"\p{Default_Ignorable_Code_Point}|(?<=[\p{L}\p{N}])[\p{Mn}--\p{ccc=0}]+", regex.V1)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_BETWEEN_ASCII, _BETWEEN = re.compile("[^a-z0-9#]+"), regex.compile(r"[^\p{L}\p{M}\p{Nd}#]+")


def folded(text: str, masked: bool = True) -> tuple[str, tuple[str, ...]]:
    """The text as it is compared, and its numbers, sorted as texts; `masked` puts # in their places."""
    letters = text
    if not letters.isascii():
        letters = unicodedata.normalize("NFKD", letters).translate(_CAPITALS).casefold()
        letters = _UNSEEN.sub("", unicodedata.normalize("NFKD", letters))
        letters = unicodedata.normalize("NFC", letters).translate(_LOOK_ALIKES)
    numbers: list[str] = []

    def kept(match: re.Match[str]) -> str:
        numbers.append(_plain(match[0]))
        return MASK if masked else numbers[-1]

    letters = _NUMBER.sub(kept, letters.lower().replace(MASK, " "))
    letters = (_BETWEEN_ASCII if letters.isascii() else _BETWEEN).sub(" ", letters).strip()
    return letters or text, tuple(sorted(numbers))  # a text of signs alone is taken as it is written


def _plain(number: str) -> str:
    """1,000.50 → 1000.5, 007 → 7: one way to write a number."""
    whole, _, rest = re.sub(r",(?=\d{3}(?!\d))", "", number).partition(".")
    whole, rest = whole.lstrip("0") or "0", rest.rstrip("0")
    return f"{whole}.{rest}" if rest else whole


class Grams:
    """Texts as sets of grams. N texts, G grams in all.

    `values_G` are 31-bit hashes, sorted within a text, odd where the gram holds a number; text n has those from
    `starts[n]` to `starts[n + 1]`, `sizes_N` of them. `numbers` are those of a text,
    and `words_N` counts its words that are none. Grams of `without`, which is in order, are left out; with them a text
    has `whole_N`.
    """

    def __init__(
        self, texts: Sequence[str], width: int, width_alone: int, masked: bool = True, without: np.ndarray | None = None
    ):
        parts, self.numbers = [], []
        for start in range(0, len(texts), CHUNK):
            letters, numbers = zip(*(folded(text, masked) for text in texts[start : start + CHUNK]), strict=True)
            self.numbers += numbers
            hashed = _hashed(letters, width, width_alone)
            left = _what_varies(*hashed[:2], without) if without is not None and len(without) else hashed[:2]
            parts.append((*left, hashed[1], hashed[2]))
        none = (np.zeros(0, np.int32), *[np.zeros(0, np.int64)] * 3)
        together = map(np.concatenate, zip(*parts or [none], strict=True))
        self.values_G, self.sizes_N, self.whole_N, self.words_N = together
        self.starts = np.concatenate([[0], np.cumsum(self.sizes_N)])

    def __len__(self) -> int:
        return len(self.sizes_N)

    @cached_property
    def varies_N(self) -> np.ndarray:
        """The share of each text's grams that are not common."""
        return self.sizes_N / self.whole_N

    @cached_property
    def owners_G(self) -> np.ndarray:
        """The text that each gram is of."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.sizes_N)

    @cached_property
    def with_number_N(self) -> np.ndarray:
        """How many grams of each text hold a number."""
        return np.bincount(self.owners_G[self.values_G & 1 == 1], minlength=len(self))

    @cached_property
    def of_numbers_N(self) -> np.ndarray:
        """The same number, 32 bits, for texts with the same numbers."""
        return np.array([zlib.crc32(" ".join(numbers).encode()) for numbers in self.numbers], np.uint64)

    @cached_property
    def postings(self) -> tuple[np.ndarray, np.ndarray]:
        """All grams in order, and the text that each of these is of."""
        order = np.argsort(self.values_G, kind="stable")
        return self.values_G[order], self.owners_G[order]

    def shared(self, ours: np.ndarray, other: Grams, theirs: np.ndarray, numbers_only: bool = False) -> np.ndarray:
        """How many grams text `ours[p]` and text `theirs[p]` of `other` have in common, for each p."""
        counts = np.zeros(len(ours), np.int64)
        left, right = self._matrix(numbers_only), other._matrix(numbers_only)
        for start in range(0, len(ours), 10_000):
            part = slice(start, start + 10_000)
            counts[part] = left[ours[part]].multiply(right[theirs[part]]).sum(axis=1).A1
        return counts

    def _matrix(self, numbers_only: bool):
        from scipy.sparse import csr_matrix

        ones = (self.values_G & 1 if numbers_only else np.ones_like(self.values_G)).astype(np.int32)
        return csr_matrix((ones, self.values_G, self.starts), shape=(len(self), 2**31 - 1))


def common_grams(texts: Sequence[str], width: int, width_alone: int, masked: bool = True) -> np.ndarray:
    """The grams that stand in so many different texts that they say nothing of any of them, in order.

    They are those of a fixed instruction, and of the words that all questions are made of. Of many texts a sample
    decides, each n-th.
    """
    texts = list(dict.fromkeys(texts))
    texts = texts[:: -(-len(texts) // MOST_SAMPLED) or 1]
    values, counts = np.unique(Grams(texts, width, width_alone, masked).values_G, return_counts=True)
    return values[counts > max(COMMON * len(texts), LEAST_COMMON)]


def _what_varies(values: np.ndarray, sizes: np.ndarray, common: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grams and their counts without what is common; of a text of nothing else one gram says that nothing varies."""
    place = np.minimum(np.searchsorted(common, values), len(common) - 1)
    kept = common[place] != values
    left = np.bincount(np.repeat(np.arange(len(sizes)), sizes)[kept], minlength=len(sizes))
    none = np.flatnonzero(left == 0)
    values = np.insert(values[kept], np.cumsum(left)[none], NOTHING_VARIES)
    left[none] = 1
    return values, left


def _hashed(texts: Sequence[str], width: int, width_alone: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`values_G`, `sizes_N` and `words_N` of folded texts; each is taken with a blank before and after it."""
    padded = [f" {text} ".ljust(width) for text in texts]
    whole = "".join(padded)
    codes = np.frombuffer(whole.encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.array([len(text) for text in padded])
    ends = np.cumsum(lengths)
    firsts = ends - lengths
    left = np.repeat(ends, lengths) - np.arange(len(codes))  # characters from here to the text's end
    widths = np.full(len(codes), width)
    number = (codes == ord(MASK)) | ((codes >= ord("0")) & (codes <= ord("9")))
    words = np.add.reduceat((codes[:-1] == 32) & (codes[1:] != 32) & ~number[1:], firsts)
    values = _rolled(codes, width)
    if not whole.isascii() and (signs := [ord(sign) for sign in set(whole) if stands_alone(sign)]):
        table = np.zeros(0x110000, bool)
        table[signs] = True
        alone = table[codes]
        words += np.add.reduceat(alone, firsts) - np.add.reduceat(alone[1:] & (codes[:-1] == 32), firsts)
        narrow = alone | np.concatenate([alone[1:], [False]])
        values = np.where(narrow, _rolled(codes, width_alone), values)
        widths[narrow] = width_alone
    digits = np.concatenate([[0], np.cumsum(number)])
    whole_gram = left >= widths
    ends_of_grams = (np.arange(len(codes)) + widths)[whole_gram]
    holds_number = digits[ends_of_grams] > digits[:-1][whole_gram]
    values = (mixed(values[whole_gram]) >> np.uint64(34) << np.uint64(1)) | holds_number
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), lengths)[whole_gram]
    keyed = np.unique(owners << np.uint64(32) | values)
    sizes = np.bincount((keyed >> np.uint64(32)).astype(np.int64), minlength=len(texts))
    return (keyed & np.uint64(0x7FFFFFFF)).astype(np.int32), sizes, words


def _rolled(codes: np.ndarray, width: int) -> np.ndarray:
    """A number for each run of `width` characters: Σ code · factor^place, modulo 2⁶⁴ (Karp & Rabin 1987)."""
    longer = np.concatenate([codes, np.zeros(width, codes.dtype)]).astype(np.uint64)
    values = longer[: len(codes)].copy()
    for place in range(1, width):
        values *= np.uint64(0x9E3779B97F4A7C15)
        values += longer[place : place + len(codes)]
    return values


def mixed(values: np.ndarray) -> np.ndarray:
    """64 bits of which each depends on all bits that went in: the finaliser of MurmurHash3."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))
