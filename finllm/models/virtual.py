"""Methods that put virtual tokens before every text: a model that answers for the text's own tokens, and for no others.

    ids                      a a a a        positions      P … P+T−1
    prompt tuning      v v v a a a a        positions  0 … P−1, then as above; labels of v are −100
    prefix tuning     [v v v]a a a a        keys and values of v stand in the cache; they have no positions of their own
    rows end to end   v v v a a a a b b b   positions  0 … P−1, then those of each row, which begin at P; in the cache
                                            v stand once for all rows

peft returns the logits of v before those of a, forgets the positions that it is given, and trains CPT by a loss of its
own. Here forward, training, scoring and every proof get logits of the T tokens alone, with a mask and positions that
hold with padding on either side. P virtual tokens, T tokens, B batch, C model width.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finllm.cpu.joined import VIRTUAL
from finllm.models import checked
from finllm.text.tokens import IGNORED

IN_THE_CACHE = ("PREFIX_TUNING", "CARTRIDGE")


def virtual_tokens(model: torch.nn.Module) -> int:
    """How many of its positions a model gives to tokens that are in no text."""
    config = _prompt_config(model)
    return config.num_virtual_tokens if config is not None else 0


def virtual_tokens_of(folder: Path) -> int:
    """The same of an adapter that is saved in `folder`, from its config."""
    held, _ = checked.check_adapter(folder)
    count = held.get("num_virtual_tokens")
    return count if type(count) is int and count > 0 else 0


def tokens_among_ids(model: torch.nn.Module) -> int:
    """How many virtual tokens stand before each row where rows stand end to end: those in the cache do not."""
    config = _prompt_config(model)
    return 0 if config is None or str(config.peft_type.value) in IN_THE_CACHE else config.num_virtual_tokens


def answers_whole(model: torch.nn.Module) -> bool:
    """Whether the adapted model's own forward must be asked, since what lies under it knows nothing of the method."""
    return getattr(model, "takes_one_task", False) or _prompt_config(model) is not None


def _prompt_config(model: torch.nn.Module) -> Any:
    config = getattr(model, "active_peft_config", None)
    return config if config is not None and config.is_prompt_learning else None


def of_one_task(model: PreTrainedModel) -> None:
    """Give a method that asks for a task's number with every batch the number 0, in forward and in `generate`."""
    forward, generate = model.forward, model.generate

    def with_task(self, input_ids=None, *, task_ids=None, **others):
        task_ids = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        return forward(input_ids, task_ids=task_ids, **others)

    def generate_with_task(self, input_ids=None, **others):
        task_ids = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        return generate(input_ids=input_ids, task_ids=task_ids, **others)

    model.forward = types.MethodType(with_task, model)
    model.generate = types.MethodType(generate_with_task, model)
    model.takes_one_task = True


def hide_virtual_tokens(model: PreTrainedModel) -> None:
    """Let `model(input_ids=…)` answer for the tokens of `input_ids` (B, T) alone: logits (B, T, V).

    `position_ids` and `attention_mask` are those of the T tokens. In a batch of finllm.cpu.joined (`parts`), where the
    virtual tokens stand among the ids already, they are of all tokens, and so is what comes out. Under
    `supervised_head` (finllm.cpu.loss) and `fused_lm_head` (TRL), labels are extended by −100 for the virtual tokens,
    and the output is the base model's.
    """
    config = _prompt_config(model)
    if config is None:
        return

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, labels=None, task_ids=None, **others):
        if "parts" in others and tokens_among_ids(self):
            places_1T, prompt_PC = input_ids == VIRTUAL, self.get_prompt(batch_size=1, task_ids=task_ids)[0]
            embeds_1TC = self.word_embeddings(input_ids.masked_fill(places_1T, 0))
            virtual_NC = prompt_PC[position_ids[places_1T]].to(embeds_1TC.dtype)
            embeds_1TC = embeds_1TC.masked_scatter(places_1T[..., None], virtual_NC)
            return self.base_model(inputs_embeds=embeds_1TC, position_ids=position_ids, labels=labels, **others)
        count, batch = config.num_virtual_tokens, len(input_ids)
        device = input_ids.device
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask.new_ones(batch, count), attention_mask], 1)
        if position_ids is not None:
            position_ids = position_ids + count
        if str(config.peft_type.value) in IN_THE_CACHE:
            prompt = {
                "input_ids": input_ids,
                "past_key_values": self.get_prompt(batch, max_cache_len=count + input_ids.shape[1]),
                "position_ids": position_ids,
                "labels": labels,
            }
            count = 0
        else:
            embeds_BTC = self.word_embeddings(input_ids)
            prompt_BPC = self.get_prompt(batch_size=batch, task_ids=task_ids).to(embeds_BTC.dtype)
            prompt = {"inputs_embeds": torch.cat([prompt_BPC, embeds_BTC], 1), "labels": labels}
            if position_ids is not None:
                first = torch.arange(count, device=device).expand(batch, count)
                prompt["position_ids"] = torch.cat([first, position_ids], 1)
            if labels is not None:
                prompt["labels"] = torch.cat([labels.new_full((batch, count), IGNORED), labels], 1)
        given = {"attention_mask": attention_mask, **prompt}
        output = self.base_model(**{key: value for key, value in given.items() if value is not None}, **others)
        logits: Tensor | None = getattr(output, "logits", None)
        if count and logits is not None:
            output.logits = logits[:, count:]
        return output

    model.forward = types.MethodType(forward, model)
