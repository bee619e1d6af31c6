"""What many texts begin with is computed once: a template's words stand before every question.

The texts go on from the keys and values of what they share, by the model's own cache, attention and positions. That
this says what the model says of whole texts is tried on the shortest and the longest of them, in the model at hand.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ALIKE = 16  # tokens that texts begin with alike, to be asked for what more they share
FEWEST = 4  # texts that share it, or it is not worth a batch of their own
KEPT = 8  # beginnings, of texts that are scored a few at a time
APART = 1e-4  # nats that a token may be apart, which is the rounding of float32 in a deep model, and more


@dataclass(frozen=True)
class Beginning:
    """The first `tokens` of a group of texts, and the keys and values that a model made of them, of one row."""

    tokens: int
    cache: DynamicCache

    def before(self, rows: int) -> dict[str, Any]:
        """What a forward pass over the rest of so many texts is given."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return {"past_key_values": cache, "use_cache": True}


def groups(prompts: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """Texts that begin alike: how many tokens they share, at least one less than each has, and their positions.

    Those that share too little, or with too few, come last and together, with 0.
    """
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        alike[tuple(prompt[:ALIKE])].append(index)
    found, alone = [], []
    for beginning, indices in alike.items():
        shared, longest = 0, min(len(prompts[index]) for index in indices) - 1
        while shared < longest and len({prompts[index][shared] for index in indices}) == 1:
            shared += 1
        if len(indices) >= FEWEST and len(beginning) == ALIKE <= shared:
            found.append((shared, indices))
        else:
            alone += indices
    return [*found, (0, sorted(alone))] if alone else found


def computed(body: torch.nn.Module, ids: Sequence[int], device: torch.device) -> Beginning | None:
    """The `ids` as `body` (a model without its head) takes them in; None where its state is more than keys and values.

    A window that slides over them, or a state that is one for all tokens, cannot be shared so.
    """
    output = body(input_ids=torch.tensor([list(ids)], device=device), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    return Beginning(len(ids), cache)
