"""Batches under a token budget."""

import random

import numpy as np
import pytest

from finllm.errors import UserError
from finllm.training.batches import TokenBudgetSampler, batches_of_epoch

DRAW = random.Random(0)
LENGTHS = [DRAW.choice(range(10, 500)) for _ in range(3000)]


def sampler(rank=0, processes=1, budget=2000, epochs=3, lengths=LENGTHS):
    return TokenBudgetSampler(lengths, budget, seed=1, epochs=epochs, rank=rank, processes=processes)


def test_every_row_once_an_epoch_under_the_budget_and_differently_each_epoch():
    made = sampler()
    epochs = []
    for epoch in range(3):
        made.set_epoch(epoch)
        batches = list(made)
        assert sorted(index for batch in batches for index in batch) == list(range(3000))
        assert max(len(batch) * max(LENGTHS[index] for index in batch) for batch in batches) <= 2000
        assert len(batches) == len(made)  # of every epoch, or the schedule would end early or late
        epochs.append(batches)
    assert epochs[0] != epochs[1] != epochs[2]
    made.set_epoch(0)
    assert list(made) == epochs[0]


def test_little_is_padding_and_lengths_do_not_follow_the_epoch():
    batches = batches_of_epoch(LENGTHS, 2000, seed=0, epoch=0)
    padded = sum(len(batch) * max(LENGTHS[index] for index in batch) for batch in batches)
    assert sum(LENGTHS) / padded > 0.95
    means = np.array([np.mean([LENGTHS[index] for index in batch]) for batch in batches])
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
