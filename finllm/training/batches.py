"""Which rows go together: batches of like length under a budget of tokens, in an order that only the seed knows."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import BatchRebalanceSampler, get_length_grouped_indices

from finllm.errors import raise_problems

BUCKET = 32  # batches whose rows are sorted by length together: enough for little padding, few enough to mix


def by_falling_length(lengths: Sequence[int]) -> list[int]:
    """Every row once, the longest first, rows of one length in their own order."""
    return sorted(range(len(lengths)), key=lambda row: -lengths[row])


def batches_of_epoch(lengths: Sequence[int], budget: int, seed: int, epoch: int) -> list[list[int]]:
    """Every row once, in batches whose rows, padded to the longest, have at most `budget` tokens.

    Shuffled, sorted by length within buckets, cut into batches, and the batches shuffled again: a function of seed and
    epoch. No row may be longer than the budget.
    """
    shuffle = random.Random(f"{seed} {epoch}").shuffle
    order = list(range(len(lengths)))
    shuffle(order)
    bucket = math.ceil(BUCKET * budget * len(lengths) / sum(lengths))  # rows
    batches: list[list[int]] = []
    for start in range(0, len(order), bucket):
        batch: list[int] = []
        for index in sorted(order[start : start + bucket], key=lengths.__getitem__):
            if batch and (len(batch) + 1) * lengths[index] > budget:  # this one is the longest so far
                batches.append(batch)
                batch = []
            batch.append(index)
        batches.append(batch)
    shuffle(batches)
    return batches


def check_budget(lengths: Sequence[int], budget: int, processes: int) -> None:
    """Raise a `UserError` where no batches can be made of rows with these `lengths`."""
    longest, problems = max(lengths), []
    if longest > budget:
        problems.append(
            f"max_tokens_per_batch is {budget:,} and the longest row has {longest:,} tokens; raise it to at least "
            f"{longest:,} or lower max_length"
        )
    if len(lengths) < processes:
        problems.append(
            f"{len(lengths)} training rows cannot be shared by {processes} processes; start fewer, or add rows"
        )
    raise_problems(problems, "the batches")


class TokenBudgetSampler(BatchRebalanceSampler):
    """Batches of `batches_of_epoch`, dealt to the processes in turn.

    An optimizer step of n processes takes n batches in a row, so it learns from the same rows as one process that
    accumulates n of them. Every epoch has the same number of batches, which transformers' schedule needs: epochs with
    fewer have their last ones halved, and batches that rows are too few to share out are left for another epoch. It is
    transformers' own class of batch samplers that divide work by themselves; nothing else is taken from it.
    """

    def __init__(self, lengths: Sequence[int], budget: int, seed: int, epochs: int, rank: int, processes: int):
        check_budget(lengths, budget, processes)
        self.lengths, self.budget, self.seed, self.rank, self.processes = lengths, budget, seed, rank, processes
        self.epoch = 0
        most = max(len(batches_of_epoch(lengths, budget, seed, epoch)) for epoch in range(max(1, epochs)))
        self.batches = min(len(lengths) // processes, math.ceil(most / processes)) * processes

    def __len__(self) -> int:
        return self.batches // self.processes

    def __iter__(self) -> Iterator[list[int]]:
        batches = batches_of_epoch(self.lengths, self.budget, self.seed, self.epoch)
        while len(batches) < self.batches:
            last = max(index for index, batch in enumerate(batches) if len(batch) > 1)
            rows = batches[last]
            batches[last : last + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        return itertools.islice(batches, self.rank, self.batches, self.processes)


class LengthGroupedSampler(Sampler[int]):
    """Every row once, those of like length together, as transformers' sampler of this name orders them.

    Its order is drawn by the global generator, and so another one when a run is resumed. Ours is a function of seed and
    epoch.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int):
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))
