"""Of many texts that are alike the first ones are held against each, on every machine the same."""

import pytest

from finllm.data import near_duplicates
from finllm.data.grams import Grams
from finllm.data.near_duplicates import NearDuplicates, clusters

WIDTHS = (5, 2)


@pytest.mark.parametrize("numbers", [True, False])
def test_the_first_thirty_two_of_a_bucket_in_their_order(numbers):
    """Sorting must leave equal keys in their order: otherwise it depends on the processor which ones are first."""
    alike, other = "What is a bond, and who buys it?", "Why do prices rise while the rates of banks fall?"
    texts = [alike if number % 3 else other for number in range(400)]
    ours, theirs = Grams([alike, other], *WIDTHS), Grams(texts, *WIDTHS)
    places = {0: [n for n in range(400) if n % 3][:32], 1: [n for n in range(400) if n % 3 == 0][:32]}
    for one, found in near_duplicates._in_one_bucket(ours, theirs, numbers):
        for text in (0, 1):
            assert [held for asked, held in zip(one.tolist(), found.tolist(), strict=True) if asked == text] == places[
                text
            ]
    one, found = NearDuplicates([alike, other]).search(texts)
    every = [[n for n in range(400) if n % 3], [n for n in range(400) if n % 3 == 0]]
    assert [found[one == text].tolist() for text in (0, 1)] == every  # the others stand inside
    # Within, each is held against those after it, and all come together.
    for one, found in near_duplicates._in_one_bucket(theirs, theirs, numbers):
        pairs = list(zip(one.tolist(), found.tolist(), strict=True))
        same = {kind: [n for n in range(400) if bool(n % 3) is kind] for kind in (True, False)}
        assert sorted(pairs) == sorted(
            (place, later)
            for kind in same.values()
            for at, place in enumerate(kind)
            for later in kind[at + 1 : at + 33]
        )
    assert clusters(texts) == [1 if number % 3 else 0 for number in range(400)]
