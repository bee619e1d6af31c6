"""What a trainer decides before its first step: the order of rows, the ways to the loss, and how rows are packed."""

import math
from types import SimpleNamespace

import pytest
from datasets import Dataset

from finllm.training.batches import LengthGroupedSampler, TokenBudgetSampler, batches_of_epoch
from finllm.training.trainer import SupervisedTrainer, _exact_loss

LENGTHS = [3, 9, 4, 7, 5, 8, 6, 2]
ROWS = Dataset.from_list([{"input_ids": list(range(length))} for length in LENGTHS])


def sampler(dataset=None, **settings):
    defaults = {
        "max_tokens_per_batch": None, "train_sampling_strategy": "group_by_length", "seed": 5, "data_seed": None,
        "train_batch_size": 2, "gradient_accumulation_steps": 3, "num_train_epochs": 1.5, "max_steps": -1,
        "process_index": 0, "world_size": 1,
    }  # fmt: skip
    trainer = SimpleNamespace(args=SimpleNamespace(**defaults | settings), train_dataset=ROWS)
    return SupervisedTrainer._get_train_sampler(trainer, dataset)


@pytest.mark.parametrize(("data_seed", "seed"), [(None, 5), (0, 0), (7, 7)])
def test_the_seed_and_batch_of_each_sampler(data_seed, seed):
    grouped = sampler(data_seed=data_seed)
    assert type(grouped) is LengthGroupedSampler
    assert (grouped.lengths, grouped.batch, grouped.seed) == (LENGTHS, 6, seed)
    budget = sampler(data_seed=data_seed, max_tokens_per_batch=20, train_sampling_strategy="random")
    assert type(budget) is TokenBudgetSampler
    assert (budget.lengths, budget.budget, budget.seed, budget.rank, budget.processes) == (LENGTHS, 20, seed, 0, 1)
    assert sampler(ROWS.select([1, 2])).lengths == [9, 4]
    second = sampler(max_tokens_per_batch=20, process_index=1, world_size=2)
    assert (second.rank, second.processes) == (1, 2)


@pytest.mark.parametrize(
    ("steps", "accumulated", "processes", "epochs"),
    [(-1, 3, 1, 2), (0, 3, 1, 2), (4, 3, 1, 1 + math.ceil(4 * 3 * 20 / 44)), (1, 1, 1, 2),
     (1, 3, 1, 1 + math.ceil(1 * 3 * 20 / 44)), (4, 3, 2, 1 + math.ceil(4 * 6 * 20 / 44))],
)  # fmt: skip
def test_so_many_epochs_of_batches_are_cut(monkeypatch, steps, accumulated, processes, epochs):
    asked = []

    def noted(lengths, budget, seed, epoch):
        asked.append(epoch)
        return batches_of_epoch(lengths, budget, seed, epoch)

    monkeypatch.setattr("finllm.training.batches.batches_of_epoch", noted)
    sampler(max_tokens_per_batch=20, max_steps=steps, gradient_accumulation_steps=accumulated, world_size=processes)
    assert asked == list(range(epochs))


@pytest.mark.parametrize(("may", "join", "plain", "cpu", "ways"), [
    (True, None, True, True, ["joined head", "joined logits", "padded head", "padded logits"]),
    (True, True, False, True, ["joined logits", "padded logits"]),
    (True, False, True, True, ["padded head", "padded logits"]),
    (False, None, True, True, ["padded head", "padded logits"]),
    (False, None, False, False, ["padded head", "padded logits"]),
])  # fmt: skip
def test_the_ways_to_the_loss_the_fastest_first(may, join, plain, cpu, ways):
    rows = ["joined", "padded"] if may and join is not False else ["padded"]
    trainer = SimpleNamespace(_may_join=may, args=SimpleNamespace(join_rows=join), on_cpu=cpu)
    found = [" ".join(way) for way in SupervisedTrainer.ways(trainer, plain)]
    assert sorted(found) == sorted(ways) and found[0].split()[0] == rows[0]
    assert found[0] == ways[0]


def test_rows_are_packed_only_under_packing_without_joining():
    rows = [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3], "labels": [3]}]
    for packing, joins in ((False, False), (False, True), (True, True)):
        trainer = SimpleNamespace(args=SimpleNamespace(packing=packing), joins_rows=joins)
        found = SupervisedTrainer.packed(trainer, rows)
        assert found == rows and found[0] is not rows[0]
    trainer = SimpleNamespace(args=SimpleNamespace(packing=True), joins_rows=False)
    assert SupervisedTrainer.packed(trainer, rows) == [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "seq_lengths": [2, 1]}
    ]


def test_the_loss_of_a_split_is_its_nats_by_its_tokens():
    found = _exact_loss(SimpleNamespace(predictions=[3.0, 1.0, 0.0], label_ids=[1, 3, 0]))
    assert found == {"loss": 1.0, "supervised_tokens": 4}  # a mean of means is 1.67
