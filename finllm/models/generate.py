"""Batched generation: one implementation for users and for evaluation.

Prompts are sorted by length, so a batch holds little padding, and padded on the left, so every answer begins right
after its prompt (transformers#21080). A model that such padding moves (its positions count padding, or its state takes
it in) is given prompts of one length at a time, and so is one whose repetitions are punished: padding would count as
text that was repeated. Results come back in the order they were asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import (
    BatchEncoding,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TextStreamer,
)

from finllm.errors import UserError
from finllm.models.adapters import base_of
from finllm.models.base import positions_of
from finllm.models.cache import head_of_last_positions
from finllm.models.leaving import write
from finllm.models.proofs import in_float32, rounding_of
from finllm.models.virtual import virtual_tokens
from finllm.terminal import say
from finllm.text.templates import Alpaca, Template


@dataclass(frozen=True)
class Answer:
    """`text` without its end token or text; `tokens` written, that one included; `stopped` when it ended there, not at
    the limit."""

    text: str
    tokens: int
    stopped: bool


def decoding(
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    temperature: float = 0.0,
    stops: Sequence[int] = (),
    texts: Sequence[str] = (),
    **asked: Any,
) -> GenerationConfig:
    """Greedy decoding at temperature 0, sampling above it, from the whole distribution unless it is cut.

    An answer ends at EOS, at a template's `stops`, and before one of the `texts`. `asked` are top_k, top_p, min_p,
    repetition_penalty (of prompt and answer, as transformers has it), no_repeat_ngram_size and num_return_sequences.
    """
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    cuts = (
        {"top_k": 0, "top_p": 1.0} if temperature else {}
    )  # transformers takes the 50 likeliest where nothing is said
    given = {name: value for name, value in asked.items() if value is not None}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=list(dict.fromkeys([tokenizer.eos_token_id, *stops])),
        stop_strings=list(texts) or None,
        **{**cuts, **sampling, **given},
    )


@contextmanager
def nothing_of_its_own(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `generate` takes what it is given and nothing else.

    transformers fills what a generation config leaves open from the model's own: a repetition penalty, tokens that are
    suppressed, which some bring along.
    """
    owners = [model, base_of(model)]
    held = [owner.generation_config for owner in owners]
    try:
        for owner in owners:
            owner.generation_config = GenerationConfig()
        yield
    finally:
        for owner, config in zip(owners, held, strict=True):
            owner.generation_config = config


class _StopsAt(StoppingCriteria):
    """Ends the answers in which one of the texts stands. transformers' own looks into the prompt too."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_tokens: int, texts: Sequence[str]):
        self.tokenizer, self.prompt_tokens, self.texts = tokenizer, prompt_tokens, texts

    def __call__(self, input_ids: torch.Tensor, scores: Any, **others: Any) -> torch.Tensor:
        written = (_decoded(self.tokenizer, row) for row in input_ids[:, self.prompt_tokens :].tolist())
        ended = [any(text in answer for text in self.texts) for answer in written]
        return torch.tensor(ended, device=input_ids.device)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _written(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: GenerationConfig, **given: Any):
    """What `generate` makes of it: prompts and answers, (B · sequences, T)."""
    texts, prompt_tokens = config.stop_strings or [], given["input_ids"].shape[1]
    plain = copy.deepcopy(config)
    plain.stop_strings = None
    criteria = [_StopsAt(tokenizer, prompt_tokens, texts)] if texts else []
    with nothing_of_its_own(model), head_of_last_positions(model):
        return write(model, plain, criteria, **given)


def _answer(tokenizer: PreTrainedTokenizerBase, template: Template, ids: list[int], config: GenerationConfig) -> Answer:
    """The answer that was written as `ids`, which go on with padding where others of its batch went on."""
    end = next((place for place, token in enumerate(ids) if token in config.eos_token_id), None)
    texts = config.stop_strings or []
    text = _decoded(tokenizer, ids[:end])
    places = [place for place in map(text.find, texts) if place >= 0]
    if not places:
        return Answer(template.answer(text), len(ids[:end]) + (end is not None), end is not None)
    tokens = next(n for n in range(1, len(ids) + 1) if any(each in _decoded(tokenizer, ids[:n]) for each in texts))
    return Answer(template.answer(text[: min(places)]), tokens, True)


@torch.inference_mode()
def answer_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    config: GenerationConfig,
    batch_size: int = 16,
    progress: Callable[[int], Any] = lambda done: None,
    template: Template | None = None,
) -> list[Answer]:
    """Answer every prompt, with `num_return_sequences` answers each, one after the other. `progress` is told how many
    prompts were answered with each batch.

    The prompts are those of `template`, without one plain texts as alpaca's, and `config` is one of `decoding`, with
    the template's stops. A prompt that leaves no room for `max_new_tokens` in the model's positions is a `UserError`.
    """
    template = template or Alpaca(tokenizer)
    ids = [template.encode_prompt(prompt) for prompt in prompts]
    check_room(model, max(map(len, ids), default=0), config.max_new_tokens)
    each = config.num_return_sequences or 1
    answers: list[Answer | None] = [None] * (len(ids) * each)
    punished = (config.repetition_penalty or 1.0) != 1.0 or config.no_repeat_ngram_size
    padded_left = not punished and may_be_padded_left(model, tokenizer, ids)
    batches: list[list[int]] = []
    for index in sorted(
        range(len(ids)), key=lambda index: -len(ids[index])
    ):  # longest first: memory peaks at the start
        full = not batches or len(batches[-1]) == batch_size
        if full or not (padded_left or len(ids[batches[-1][0]]) == len(ids[index])):
            batches.append([])
        batches[-1].append(index)
    for batch in batches:
        padded = _padded_left(model, tokenizer, [ids[index] for index in batch])
        output = _written(model, tokenizer, config, **padded)[:, padded.input_ids.shape[1] :].tolist()
        for number, row in enumerate(output):
            place = batch[number // each] * each + number % each
            answers[place] = _answer(tokenizer, template, row, config)
        progress(len(batch))
    return answers


def _padded_left(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[list[int]]) -> BatchEncoding:
    return tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(model.device)


_MAY_BE_PADDED: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@torch.inference_mode()
def may_be_padded_left(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Sequence[list[int]]) -> bool:
    """Whether padding on the left leaves the first written token as likely as it is after the prompt alone.

    Tried once a model, on the shortest prompt beside the longest, through `generate` itself and in float32.
    """
    if model in _MAY_BE_PADDED:
        return _MAY_BE_PADDED[model]
    shortest, longest = min(ids, key=len, default=[]), max(ids, key=len, default=[])
    if len(shortest) == len(longest):
        return True  # nothing is padded
    one = GenerationConfig(
        max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip

    def after_shortest(rows: list[list[int]]) -> torch.Tensor:
        with nothing_of_its_own(model):
            found = model.generate(**_padded_left(model, tokenizer, rows), generation_config=one)
        return found.logits[0][-1].float().log_softmax(-1)

    with in_float32(model):
        apart = (after_shortest([longest, shortest]) - after_shortest([shortest])).abs().max()
        _MAY_BE_PADDED[model] = bool(apart <= 2 * rounding_of(model))
    return _MAY_BE_PADDED[model]


def check_room(model: PreTrainedModel, prompt_tokens: int, max_new_tokens: int) -> None:
    positions, taken = positions_of(model.config), virtual_tokens(model)
    if positions is not None and prompt_tokens + max_new_tokens > positions - taken:
        less = f" less {taken} for virtual tokens" if taken else ""
        raise UserError(
            f"the longest prompt has {prompt_tokens:,} tokens and max_new_tokens is {max_new_tokens:,}, together more "
            f"than the model's {positions:,} positions{less}; shorten the prompt or lower max_new_tokens"
        )


class Streamer(TextStreamer):
    """transformers' own, whose text a model wrote: it is printed as text, without the white space of its template, and
    up to one of the `texts` that end it."""

    def __init__(self, template: Template, texts: Sequence[str]):
        super().__init__(
            template.tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        self.lead, self.texts, self.held, self.ended = template.lead, texts, "", False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            text, self.lead = text.removeprefix(self.lead), ""
        self.held += text
        places = [place for place in map(self.held.find, self.texts) if place >= 0]
        if places:
            self.held, shown = "", "" if self.ended else self.held[: min(places)]
            self.ended = True
        else:
            begun = 0 if stream_end else max((_begun(self.held, each) for each in self.texts), default=0)
            shown, self.held = self.held[: len(self.held) - begun], self.held[len(self.held) - begun :]
        say("" if self.ended and not places else shown, flush=True, end="\n" if stream_end else "")


def _begun(text: str, whole: str) -> int:
    """How much of the end of `text` may be the beginning of `whole`."""
    return next((n for n in range(min(len(text), len(whole) - 1), 0, -1) if text.endswith(whole[:n])), 0)


def stream(model: PreTrainedModel, template: Template, row: dict[str, Any], config: GenerationConfig) -> str:
    """Print the answer to a row's last question as it is written, and return it."""
    ids = torch.tensor([template.encode_prompt(template.prompts([row])[0])], device=model.device)
    check_room(model, ids.shape[1], config.max_new_tokens)
    output = _written(
        model, template.tokenizer, config, input_ids=ids, attention_mask=torch.ones_like(ids),
        streamer=Streamer(template, config.stop_strings or []),
    )  # fmt: skip
    return _answer(template.tokenizer, template, output[0, ids.shape[1] :].tolist(), config).text
