"""How batches are counted, halved and dealt to processes: by hand, and for many seeds."""

import random

import pytest

from finllm.training import batches
from finllm.training.batches import TokenBudgetSampler, batches_of_epoch


def dealt(epochs, monkeypatch, processes=1, rows=8):
    """What each process has of each of these epochs, whose batches are given."""
    monkeypatch.setattr(batches, "batches_of_epoch", lambda lengths, budget, seed, epoch: list(epochs[epoch]))
    made = [TokenBudgetSampler([1] * rows, 9, 0, len(epochs), rank, processes) for rank in range(processes)]
    found = []
    for epoch in range(len(epochs)):
        for each in made:
            each.set_epoch(epoch)
        found.append([list(each) for each in made])
    assert all(len(own) == len(each) for epoch in found for own, each in zip(epoch, made, strict=True))
    return found


@pytest.mark.parametrize(("few", "halved"), [
    ([[0, 1, 2], [3], [4, 5, 6], [7]], [[0, 1, 2], [3], [4], [5], [6], [7]]),  # the last that has several, and again
    ([[0], [1, 2, 3], [4], [5, 6, 7]], [[0], [1, 2, 3], [4], [5], [6], [7]]),
    ([[0, 1, 2, 3], [4], [5], [6], [7]], [[0, 1], [2, 3], [4], [5], [6], [7]]),
    ([[0, 1, 2, 3, 4, 5, 6], [7]], [[0, 1, 2], [3], [4], [5], [6], [7]]),
])  # fmt: skip
def test_the_last_batches_of_an_epoch_with_fewer_are_halved(monkeypatch, few, halved):
    many = [[0, 1], [2, 3], [4], [5], [6], [7]]
    assert dealt([many, few], monkeypatch) == [[many], [halved]]
    assert dealt([many, few], monkeypatch, processes=2) == [[many[0::2], many[1::2]], [halved[0::2], halved[1::2]]]


@pytest.mark.parametrize(
    ("rows", "processes", "each"), [(4, 3, 1), (7, 3, 2), (8, 3, 2), (9, 3, 3), (5, 2, 2), (5, 1, 5)]
)
def test_no_process_has_a_batch_more_where_rows_cannot_be_shared_out(rows, processes, each):
    """Every row fills a batch: what is left over waits for another epoch, and which rows those are is drawn."""
    made = [TokenBudgetSampler([100] * rows, 100, 0, 2, rank, processes) for rank in range(processes)]
    left = set()
    for epoch in range(12):
        for sampler in made:
            sampler.set_epoch(epoch)
        found = [list(sampler) for sampler in made]
        assert {len(own) for own in found} == {each} == {len(sampler) for sampler in made}
        seen = [row for own in found for batch in own for row in batch]
        assert len({*seen}) == len(seen) == each * processes
        left |= {*range(rows)} - {*seen}
    assert (len(left) > 1) is (rows > each * processes)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_so_many_batches_as_the_fullest_of_its_own_epochs(monkeypatch, epochs):
    monkeypatch.setattr(batches, "BUCKET", 3)  # several buckets of few rows
    draw, counts = random.Random(0), set()
    for seed in range(2, 42):
        lengths = [draw.choice(range(5, 60)) for _ in range(40)]
        most = [len(batches_of_epoch(lengths, 100, seed, epoch)) for epoch in range(epochs)]
        assert len(TokenBudgetSampler(lengths, 100, seed, epochs, 0, 1)) == max(most)
        counts.add(max(most) - len(batches_of_epoch(lengths, 100, seed, epochs)))
    assert min(counts) < 0 < max(counts)  # the epoch after them has more batches of some rows, and fewer of others
