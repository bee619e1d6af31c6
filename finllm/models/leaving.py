"""Answers that have ended leave their batch on a CPU, where the fewer rows there are, the faster the others go on.

transformers' `generate` writes until the last answer has ended, padding beside it for all others. Here it is stopped
when half of the answers have ended, and goes on with the others and what the cache holds of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StoppingCriteria

from finllm.models.cache import roomy_cache
from finllm.models.virtual import virtual_tokens


class _Ending(StoppingCriteria):
    """Ends answers at an end token or where one of `criteria` does, and all once half have, if their `caches` are such
    that rows can be taken out."""

    def __init__(self, config: GenerationConfig, criteria: Sequence[StoppingCriteria], caches: Sequence[DynamicCache]):
        self.ends, self.criteria, self.caches, self.ended = config.eos_token_id, criteria, caches, None

    def __call__(self, input_ids: Tensor, scores: Any, **others: Any) -> Tensor:
        ended = torch.isin(input_ids[:, -1], torch.tensor(self.ends, device=input_ids.device))
        for criterion in self.criteria:
            ended |= criterion(input_ids, scores, **others)
        self.ended = ended if self.ended is None else ended | self.ended
        leave = input_ids.device.type == "cpu" and len(self.caches) == 1 and 2 * self.ended.sum() >= len(ended)
        return torch.ones_like(ended) if leave else self.ended


def write(
    model: PreTrainedModel, config: GenerationConfig, criteria: Sequence[StoppingCriteria], **given: Any
) -> Tensor:
    """Prompts and answers, (B · sequences, T), those that ended earlier than others filled up with padding.

    `given` has `input_ids` and `attention_mask`, (B, prompt), and may have what else `generate` takes. `config` has a
    pad token and a list of end tokens.
    """
    room, written, places = given["input_ids"].shape[1] + config.max_new_tokens, None, None
    stage = copy.deepcopy(config)
    stage.return_dict_in_generate = True
    with roomy_cache(model) as caches:
        while True:
            # peft puts virtual tokens before whatever a stage begins with
            ending = _Ending(config, criteria, [] if virtual_tokens(model) else caches)
            found = model.generate(**given, generation_config=stage, stopping_criteria=[ending])
            ids = found.sequences
            if written is None:
                written = ids.new_full((len(ids), room), config.pad_token_id)
                places = torch.arange(len(ids), device=ids.device)
            written[places, : ids.shape[1]] = ids
            others = (~ending.ended).nonzero()[:, 0]
            if not len(others) or ids.shape[1] == room:
                return written[:, : ids.shape[1]]
            mask = given["attention_mask"].repeat_interleave(len(ids) // len(given["attention_mask"]), 0)
            new = mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])
            found.past_key_values.batch_select_indices(others)
            given |= {"input_ids": ids[others], "attention_mask": torch.cat([mask, new], 1)[others],
                      "past_key_values": found.past_key_values}  # fmt: skip
            places = places[others]
            stage.max_new_tokens, stage.num_return_sequences = room - ids.shape[1], 1
            if config.min_new_tokens:
                stage.min_new_tokens = max(0, config.min_new_tokens - config.max_new_tokens + stage.max_new_tokens)
