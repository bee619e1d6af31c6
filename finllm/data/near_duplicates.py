"""Near duplicates: texts that share half or more of their word 5-grams (Jaccard index; Broder 1997).

    "What is the best way to save for a house"   →   {what is the best way, is the best way to, …}

MinHash with locality-sensitive hashing (package datasketch) proposes pairs; their exact Jaccard index then decides, so
nothing is called a duplicate by chance of hashing. A pair at the threshold is proposed with probability 0.996.
A text of fewer than five words is one gram, so only its like is its duplicate. Where a script has no blanks between
words, each character counts as one (finllm/text/words.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from finllm.data.split import normalised_question
from finllm.text.words import pieces

WORDS, THRESHOLD = 5, 0.5
BANDS, ROWS = 42, 3  # a pair of index J is proposed with probability 1 − (1 − J³)⁴²


def grams_of(text: str) -> frozenset[str]:
    """The word 5-grams of a text, folded as questions are: case, punctuation and white space do not count."""
    words = pieces(normalised_question(text))
    return frozenset(" ".join(words[start : start + WORDS]) for start in range(max(1, len(words) - WORDS + 1)))


class NearDuplicates:
    """An index of texts, to be asked which of them are near duplicates of others."""

    def __init__(self, texts: Sequence[str]):
        from datasketch import MinHashLSH  # takes a second to import, which only its users pay

        self.grams = [grams_of(text) for text in texts]
        self._known = frozenset().union(*self.grams)
        self._index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
        for number, hashes in enumerate(_min_hashes(self.grams)):
            self._index.insert(number, hashes)

    def search(self, texts: Iterable[str]) -> list[dict[int, float]]:
        """For each text the indexed texts that are near duplicates of it: position in the index → Jaccard index."""
        grams = [grams_of(text) for text in texts]
        # Most texts share no gram with any indexed one and need not be hashed.
        hashed = [number for number, each in enumerate(grams) if not each.isdisjoint(self._known)]
        found: list[dict[int, float]] = [{} for _ in grams]
        for number, hashes in zip(hashed, _min_hashes([grams[number] for number in hashed]), strict=True):
            for other in sorted(self._index.query(hashes)):
                index = len(grams[number] & self.grams[other]) / len(grams[number] | self.grams[other])
                if index >= THRESHOLD:
                    found[number][other] = index
        return found


def clusters(texts: Sequence[str]) -> list[int]:
    """For each text the position of the first text of its cluster; near duplicates of near duplicates are in one."""
    first = list(range(len(texts)))

    def root(number: int) -> int:
        while first[number] != number:
            first[number] = first[first[number]]
            number = first[number]
        return number

    for number, others in enumerate(NearDuplicates(texts).search(texts)):
        for other in others:
            low, high = sorted((root(number), root(other)))
            first[high] = low
    return [root(number) for number in range(len(texts))]


def _min_hashes(grams: Sequence[frozenset[str]]) -> Iterable:
    from datasketch import MinHash

    return MinHash.generator(([gram.encode() for gram in each] for each in grams), num_perm=BANDS * ROWS, seed=1)
