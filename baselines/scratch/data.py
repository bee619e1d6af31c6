"""Examples as token ids and labels, cut to length, in batches of like length.

as_published, causal
    ids       bos  prompt …  response …  eos
    labels   -100  -100   …  response …  eos      loss_on_prompt: prompt … instead of -100 …
                             └── what is learned and scored ──┘
seq2seq
    source    bos  prompt …                       what the encoder reads
    ids       bos            response …  eos
    labels   -100            response …  eos
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from baselines.scratch.config import ALPACA_ALONE
from baselines.scratch.losses import IGNORED
from baselines.scratch.tokenizer import BOS, EOS, PAD, Tokenizer
from finllm.errors import UserError
from finllm.text.prompts import build_prompt, refused_by_alpaca

BUCKET = 32  # batches whose examples are sorted by length together: enough for little padding, few enough to mix
ALIKE = 16  # tokens: sources that differ by less are of like length


@dataclass(frozen=True)
class Example:
    ids: list[int]
    labels: list[int]  # as long as ids; IGNORED where nothing is learned
    source: list[int] = field(default_factory=list)  # of seq2seq alone

    @property
    def supervised(self) -> int:
        return sum(label != IGNORED for label in self.labels)

    @property
    def length(self) -> int:
        """Tokens of the whole, the same for each variant: a decoder's own bos is not counted again."""
        return len(self.source) + len(self.ids) - bool(self.source)

    @property
    def size(self) -> tuple[int, int]:
        return len(self.source), len(self.ids)


def encode_pair(tokenizer: Tokenizer, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """bos + prompt, and response + eos, whole. They are encoded apart: no piece crosses from one to the other."""
    return [BOS, *tokenizer.encode(prompt)], [*tokenizer.encode(response), EOS]


def lay_out(prompt: list[int], response: list[int], variant: str, loss_on_prompt: bool = False) -> Example:
    """What a model of this variant reads of a pair of `encode_pair`: see above."""
    if variant == "seq2seq":
        return Example([BOS, *response], [IGNORED, *response], prompt)
    prompt_labels = [IGNORED, *prompt[1:]] if loss_on_prompt else [IGNORED] * len(prompt)
    return Example(prompt + response, prompt_labels + response)


def refuse_conversations(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Refuse rows with a system text or earlier turns, which these models would not be shown."""
    found = [f"{row['id']}: {reason}" for row in rows if (reason := refused_by_alpaca(row))]
    if found:
        count = f"{len(found):,} of {len(rows):,} rows are no questions by themselves"
        raise UserError(f"{name}: {count} ({found[0]}); {ALPACA_ALONE}")


def encode_rows(
    tokenizer: Tokenizer, rows: Sequence[dict[str, str]], variant: str, loss_on_prompt: bool = False
) -> list[Example]:
    """The rows of a split as whole examples."""
    pairs = (encode_pair(tokenizer, build_prompt(row["instruction"], row["input"]), row["output"]) for row in rows)
    return [lay_out(prompt, response, variant, loss_on_prompt) for prompt, response in pairs]


def truncate(examples: Sequence[Example], max_length: int) -> tuple[list[Example], int, int]:
    """Cut examples to `max_length` tokens from the end; those without a label left are dropped.

    Returns the examples, how many of them were cut, and how many were dropped.
    """
    kept, cut = [], 0
    for example in examples:
        end = max(0, len(example.ids) - max(0, example.length - max_length))
        shorter = Example(example.ids[:end], example.labels[:end], example.source)
        if shorter.supervised:
            kept.append(shorter)
            cut += example.length > max_length
    return kept, cut, len(examples) - len(kept)


def batches_of_epoch(sizes: Sequence[tuple[int, int]], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Every example once, in batches of at most `batch_tokens` tokens with padding; a function of seed and epoch.

    `sizes` are those of the examples: tokens of source and ids. Shuffled, sorted by length within buckets (by ids among
    sources of like length), cut into batches, and the batches shuffled again.
    """
    shuffle = random.Random(f"{seed} {epoch}").shuffle
    order = list(range(len(sizes)))
    shuffle(order)
    bucket = math.ceil(BUCKET * batch_tokens * len(sizes) / sum(map(sum, sizes)))  # examples
    batches: list[list[int]] = []
    for start in range(0, len(order), bucket):
        batch: list[int] = []
        longest = (0, 0)
        for index in sorted(
            order[start : start + bucket], key=lambda index: (sizes[index][0] // ALIKE, sizes[index][1])
        ):
            longer = (max(longest[0], sizes[index][0]), max(longest[1], sizes[index][1]))
            if batch and (len(batch) + 1) * sum(longer) > batch_tokens:
                batches.append(batch)
                batch, longer = [], sizes[index]
            batch.append(index)
            longest = longer
        batches.append(batch)
    shuffle(batches)
    return batches


def training_batches(
    sizes: Sequence[tuple[int, int]], batch_tokens: int, seed: int, steps_done: int
) -> Iterator[tuple[float, list[int]]]:
    """Batches without end, from the one after `steps_done` steps on, each with the epochs that are done after it."""
    step = 0
    for epoch in itertools.count():
        batches = batches_of_epoch(sizes, batch_tokens, seed, epoch)
        for position, batch in enumerate(batches, start=1):
            step += 1
            if step > steps_done:
                yield epoch + position / len(batches), batch


def collate(
    examples: Sequence[Example], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """ids_BT, labels_BT and, of seq2seq, source_BS, padded on the right, on `device`."""
    ids_BT = padded([example.ids for example in examples], PAD, device)
    labels_BT = padded([example.labels for example in examples], IGNORED, device)
    source_BS = padded([example.source for example in examples], PAD, device) if examples[0].source else None
    return ids_BT, labels_BT, source_BS


def padded(rows: Sequence[list[int]], padding: int, device: torch.device) -> torch.Tensor:
    """Rows of different lengths as one tensor BT."""
    length = max(map(len, rows))
    return torch.tensor([row + [padding] * (length - len(row)) for row in rows], device=device)
