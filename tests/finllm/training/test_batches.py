"""Batches under a token budget."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

from finllm.errors import UserError
from finllm.training import batches
from finllm.training.batches import (
    LengthGroupedSampler,
    TokenBudgetSampler,
    batches_of_epoch,
    by_falling_length,
    check_budget,
)

DRAW = random.Random(0)
LENGTHS = [DRAW.choice(range(10, 500)) for _ in range(3000)]


def sampler(rank=0, processes=1, budget=2000, epochs=3, lengths=LENGTHS):
    return TokenBudgetSampler(lengths, budget, seed=1, epochs=epochs, rank=rank, processes=processes)


def test_every_row_once_an_epoch_under_the_budget_and_differently_each_epoch():
    made = sampler()
    epochs = []
    for epoch in range(3):
        made.set_epoch(epoch)
        found = list(made)
        assert sorted(index for batch in found for index in batch) == list(range(3000))
        assert max(len(batch) * max(LENGTHS[index] for index in batch) for batch in found) <= 2000
        assert len(found) == len(made)  # of every epoch, or the schedule would end early or late
        epochs.append(found)
    assert epochs[0] != epochs[1] != epochs[2]
    made.set_epoch(0)
    assert list(made) == epochs[0]


def test_little_is_padding_and_lengths_do_not_follow_the_epoch():
    made = batches_of_epoch(LENGTHS, 2000, seed=0, epoch=0)
    padded = sum(len(batch) * max(LENGTHS[index] for index in batch) for batch in made)
    assert sum(LENGTHS) / padded > 0.95
    means = np.array([np.mean([LENGTHS[index] for index in batch]) for batch in made])
    noise = 3 / np.sqrt(len(means))
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < noise
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < noise


def test_processes_share_a_step_that_one_process_accumulates():
    whole = list(sampler(processes=1))
    shared = [list(sampler(rank, processes=2)) for rank in range(2)]
    assert len(shared[0]) == len(shared[1])
    dealt = [batch for pair in zip(*shared, strict=True) for batch in pair]
    assert dealt[: len(whole) - 3] == whole[:-3]
    assert sorted(index for batch in dealt for index in batch) == list(range(3000))


def test_mistakes_name_the_limit():
    with pytest.raises(UserError, match="max_tokens_per_batch is 100 and the longest row has 120 tokens; raise it"):
        sampler(budget=100, lengths=[50, 120])
    with pytest.raises(UserError, match="1 training rows cannot be shared by 2 processes"):
        sampler(processes=2, lengths=[50])


def test_batches_by_hand(monkeypatch):
    """Without chance: sorted by length in buckets, and cut where the longest times their number passes the budget."""
    monkeypatch.setattr(batches, "random", SimpleNamespace(Random=lambda seed: SimpleNamespace(shuffle=seeds.append)))
    seeds = []
    lengths = [5, 3, 4, 9, 1, 10]
    assert batches_of_epoch(lengths, 10, 7, 2) == [[4, 1], [2, 0], [3], [5]]  # 6, 10, 9 and 10 of 10
    assert batches_of_epoch(lengths, 11, 7, 2) == [[4, 1], [2, 0], [3], [5]]
    assert batches_of_epoch(lengths, 12, 7, 2) == [[4, 1, 2], [0], [3], [5]]
    assert seeds[0] == [0, 1, 2, 3, 4, 5] and len(seeds) == 6  # rows, then batches
    monkeypatch.setattr(batches, "BUCKET", 1)  # of two rows: 10 · 6 / 32, rounded up
    assert batches_of_epoch(lengths, 10, 7, 2) == [[1, 0], [2], [3], [4], [5]]


def test_the_longest_row_comes_first_and_rows_of_one_length_stay_in_their_order():
    assert by_falling_length([3, 7, 5, 7, 3, 9]) == [5, 1, 3, 2, 0, 4]


def test_order_is_of_seed_and_epoch_alone():
    first = batches_of_epoch(LENGTHS, 2000, 1, 0)
    assert batches_of_epoch(LENGTHS, 2000, 1, 0) == first
    assert batches_of_epoch(LENGTHS, 2000, 2, 0) != first != batches_of_epoch(LENGTHS, 2000, 1, 1)
    assert sorted(map(sorted, first)) != sorted(map(sorted, batches_of_epoch(LENGTHS, 2000, 1, 1)))  # other company
    assert sampler().epoch == 0 and list(sampler()) == first


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_every_process_and_epoch_has_as_many_batches(processes):
    lengths = [DRAW.choice(range(5, 60)) for _ in range(40)]
    made = [sampler(rank, processes, 100, 5, lengths) for rank in range(processes)]
    most = max(len(batches_of_epoch(lengths, 100, 1, epoch)) for epoch in range(5))
    assert {len(each) for each in made} == {math.ceil(most / processes)}
    for epoch in range(5):
        dealt = []
        for each in made:
            each.set_epoch(epoch)
            own = list(each)
            assert len(own) == len(each) and all(own)
            dealt.append(own)
        assert sorted(row for own in dealt for batch in own for row in batch) == list(range(40))
    few = [sampler(rank, 3, 100, 2, [50, 50, 50, 50]) for rank in range(3)]
    assert [len(list(each)) for each in few] == [1, 1, 1]  # not more than the rows allow
    assert len(sampler(0, 1, 100, 0, lengths)) == len(batches_of_epoch(lengths, 100, 1, 0))


def test_the_longest_row_may_fill_the_budget_and_as_many_rows_as_processes_do():
    check_budget([100, 20], 100, 2)
    for lengths, budget, processes in (([101, 20], 100, 1), ([50], 100, 2)):
        with pytest.raises(UserError):
            check_budget(lengths, budget, processes)


def test_rows_grouped_by_length_by_seed_and_epoch():
    made = LengthGroupedSampler(LENGTHS[:60], 4, seed=3)
    first = list(made)
    assert len(made) == 60 and sorted(first) == list(range(60)) and list(made) == first
    assert LENGTHS[first[0]] == max(LENGTHS[:60])
    made.set_epoch(1)
    assert list(made) != first and list(made) == list(LengthGroupedSampler(LENGTHS[:60], 4, seed=4))
    spread, unsorted = ([np.ptp([LENGTHS[row] for row in order[start : start + 4]]) for start in range(0, 60, 4)]
                        for order in (first, range(60)))  # fmt: skip
    assert np.mean(spread) < np.mean(unsorted) / 2
    assert list(LengthGroupedSampler(LENGTHS[:60], 30, seed=3)) != first
