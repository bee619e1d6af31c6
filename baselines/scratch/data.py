"""Examples as token ids and labels, cut to length, in batches of like length.

ids       bos  prompt …  response …  eos
labels   -100  -100   …  response …  eos      loss_on_prompt: prompt … instead of -100 …
                         └── what is learned and scored ──┘
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from baselines.scratch.losses import IGNORED
from baselines.scratch.tokenizer import BOS, EOS, PAD, Tokenizer
from finllm.prompts import build_prompt

BUCKET = 32  # batches whose examples are sorted by length together: enough for little padding, few enough to mix


@dataclass(frozen=True)
class Example:
    ids: list[int]
    labels: list[int]  # as long as ids; IGNORED where nothing is learned

    @property
    def supervised(self) -> int:
        return sum(label != IGNORED for label in self.labels)


def encode_example(tokenizer: Tokenizer, prompt: str, response: str, loss_on_prompt: bool = False) -> Example:
    """bos + prompt + response + eos, whole. Prompt and response are encoded apart: no piece crosses from one to one."""
    prompt_ids = tokenizer.encode(prompt)
    response_ids = [*tokenizer.encode(response), EOS]
    prompt_labels = prompt_ids if loss_on_prompt else [IGNORED] * len(prompt_ids)
    return Example([BOS, *prompt_ids, *response_ids], [IGNORED, *prompt_labels, *response_ids])


def encode_rows(tokenizer: Tokenizer, rows: Sequence[dict[str, str]], loss_on_prompt: bool = False) -> list[Example]:
    """The rows of a split as whole examples."""
    return [
        encode_example(tokenizer, build_prompt(row["instruction"], row["input"]), row["output"], loss_on_prompt)
        for row in rows
    ]


def truncate(examples: Sequence[Example], max_length: int) -> tuple[list[Example], int, int]:
    """Cut examples to `max_length` tokens from the end; those without a label left are dropped.

    Returns the examples, how many of them were cut, and how many were dropped.
    """
    kept, cut = [], 0
    for example in examples:
        shorter = Example(example.ids[:max_length], example.labels[:max_length])
        if shorter.supervised:
            kept.append(shorter)
            cut += len(example.ids) > max_length
    return kept, cut, len(examples) - len(kept)


def batches_of_epoch(lengths: Sequence[int], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Every example once, in batches of at most `batch_tokens` tokens with padding; a function of seed and epoch.

    Shuffled, sorted by length within buckets, cut into batches, and the batches shuffled again.
    """
    shuffle = random.Random(f"{seed} {epoch}").shuffle
    order = list(range(len(lengths)))
    shuffle(order)
    bucket = math.ceil(BUCKET * batch_tokens * len(lengths) / sum(lengths))  # examples
    batches: list[list[int]] = []
    for start in range(0, len(order), bucket):
        batch: list[int] = []
        for index in sorted(order[start : start + bucket], key=lengths.__getitem__):
            if batch and (len(batch) + 1) * lengths[index] > batch_tokens:  # this one is the longest so far
                batches.append(batch)
                batch = []
            batch.append(index)
        batches.append(batch)
    shuffle(batches)
    return batches


def training_batches(
    lengths: Sequence[int], batch_tokens: int, seed: int, steps_done: int
) -> Iterator[tuple[float, list[int]]]:
    """Batches without end, from the one after `steps_done` steps on, each with the epochs that are done after it."""
    step = 0
    for epoch in itertools.count():
        batches = batches_of_epoch(lengths, batch_tokens, seed, epoch)
        for position, batch in enumerate(batches, start=1):
            step += 1
            if step > steps_done:
                yield epoch + position / len(batches), batch


def collate(examples: Sequence[Example], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """ids_BT and labels_BT, padded on the right, on `device`."""
    length = max(len(example.ids) for example in examples)
    ids_BT = [example.ids + [PAD] * (length - len(example.ids)) for example in examples]
    labels_BT = [example.labels + [IGNORED] * (length - len(example.labels)) for example in examples]
    return torch.tensor(ids_BT, device=device), torch.tensor(labels_BT, device=device)
