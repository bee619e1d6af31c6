"""Batched generation: one implementation for users and for evaluation.

Prompts are sorted by length, so a batch holds little padding, and padded on the left, so every answer begins right
after its prompt (transformers#21080). A model that such padding moves (its positions count padding, or its state takes
it in) is given prompts of one length at a time. Results come back in the order they were asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import BatchEncoding, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from finllm.errors import UserError
from finllm.files import read_jsonl, write_jsonl
from finllm.models.base import load_for_inference, positions_of
from finllm.models.find import run_of
from finllm.models.proofs import in_float32, rounding_of
from finllm.models.virtual import virtual_tokens
from finllm.terminal import say
from finllm.text.prompts import build_prompt
from finllm.text.tokens import encode_prompt


@dataclass(frozen=True)
class Answer:
    """`text` without EOS; `tokens` written, EOS included; `stopped` when EOS ended it, not the limit."""

    text: str
    tokens: int
    stopped: bool


def decoding(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float = 0.0) -> GenerationConfig:
    """Greedy decoding at temperature 0, sampling above it. Nothing is taken from a model's own generation config."""
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **sampling,
    )


@torch.inference_mode()
def answer_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    config: GenerationConfig,
    batch_size: int = 16,
    progress: Callable[[int], Any] = lambda done: None,
) -> list[Answer]:
    """Answer every prompt. `progress` is told how many answers came with each batch.

    A prompt that leaves no room for `max_new_tokens` in the model's positions is a `UserError`.
    """
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    _check_room(model, max(map(len, ids), default=0), config.max_new_tokens)
    answers: list[Answer | None] = [None] * len(ids)
    padded_left = may_be_padded_left(model, tokenizer, ids)
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
        output = model.generate(**padded, generation_config=config)
        for index, row in zip(batch, output[:, padded.input_ids.shape[1] :].tolist(), strict=True):
            stopped = tokenizer.eos_token_id in row
            written = row[: row.index(tokenizer.eos_token_id)] if stopped else row
            text = tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            answers[index] = Answer(text, len(written) + stopped, stopped)
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
        found = model.generate(**_padded_left(model, tokenizer, rows), generation_config=one)
        return found.logits[0][-1].float().log_softmax(-1)

    with in_float32(model):
        apart = (after_shortest([longest, shortest]) - after_shortest([shortest])).abs().max()
        _MAY_BE_PADDED[model] = bool(apart <= 2 * rounding_of(model))
    return _MAY_BE_PADDED[model]


def _check_room(model: PreTrainedModel, prompt_tokens: int, max_new_tokens: int) -> None:
    positions, taken = positions_of(model.config), virtual_tokens(model)
    if positions is not None and prompt_tokens + max_new_tokens > positions - taken:
        less = f" less {taken} for virtual tokens" if taken else ""
        raise UserError(
            f"the longest prompt has {prompt_tokens:,} tokens and max_new_tokens is {max_new_tokens:,}, together more "
            f"than the model's {positions:,} positions{less}; shorten the prompt or lower max_new_tokens"
        )


class Streamer(TextStreamer):
    """transformers' own, whose text a model wrote: it is printed as text."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        say(text, flush=True, end="\n" if stream_end else "")


def stream(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, config: GenerationConfig) -> None:
    """Print one answer as it is written."""
    ids = torch.tensor([encode_prompt(tokenizer, prompt)], device=model.device)
    _check_room(model, ids.shape[1], config.max_new_tokens)
    streamer = Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=streamer)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run dir, or a base model: hub id, folder, .gguf file or built-in name")
    parser.add_argument("question", nargs="?", help="the question; without it and without --file, ask interactively")
    parser.add_argument("--input", default="", help="context that belongs to the question")
    parser.add_argument("--file", help="JSONL with `instruction` and, optionally, `input`; answers go to --output")
    parser.add_argument("--output", help="JSONL of the file's rows with an `answer` each")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=42)


def run(arguments: argparse.Namespace) -> None:
    """`finllm generate`: one question, a file of them, or a conversation of single questions until an empty line."""
    if bool(arguments.file) != bool(arguments.output):
        raise UserError("--file and --output go together: questions from one, answers to the other")
    if arguments.file and arguments.question:
        raise UserError("give a question or --file, not both")
    if arguments.max_new_tokens < 1 or arguments.batch_size < 1:
        raise UserError("--max_new_tokens and --batch_size must be at least 1")
    rows = _questions(arguments.file) if arguments.file else []
    model, tokenizer = load_for_inference(_not_a_baseline(arguments.model))
    torch.manual_seed(arguments.seed)
    config = decoding(tokenizer, arguments.max_new_tokens, arguments.temperature)
    if arguments.file:
        from rich.progress import track

        prompts = [build_prompt(row["instruction"], row.get("input", "")) for row in rows]
        bar = iter(track(range(len(prompts)), "answering"))
        answers = answer_all(
            model, tokenizer, prompts, config, arguments.batch_size, lambda done: [next(bar) for _ in range(done)]
        )
        next(bar, None)
        write_jsonl(arguments.output, ({**row, "answer": a.text} for row, a in zip(rows, answers, strict=True)))
        say(f"{len(answers):,} answers in {arguments.output}")
    elif arguments.question:
        stream(model, tokenizer, build_prompt(arguments.question, arguments.input), config)
    else:
        while question := _ask():
            stream(model, tokenizer, build_prompt(question), config)


def _ask() -> str:
    try:
        return input("question (empty to end): ").strip()
    except EOFError:
        return ""


def _not_a_baseline(name: str) -> str:
    run = run_of(name)
    if run is not None:
        run.refuse_links()
    module = run.language_model() if run and (run.path / "config.yaml").exists() else None
    if module:
        script = module.replace(".", "/").removesuffix("/lm") + "/generate.py"
        raise UserError(f'{name} was trained from scratch; ask it with: python {script} {run.path} "question"')
    return name


def _questions(path: str) -> list[dict[str, Any]]:
    rows = read_jsonl(path)
    problems = [
        f"line {number}"
        for number, row in enumerate(rows, start=1)
        if not isinstance(row, dict)
        or not isinstance(row.get("instruction"), str)
        or not isinstance(row.get("input", ""), str)
    ]
    if problems:
        raise UserError(f"{path}: no text in `instruction`, or no text in `input`, on {', '.join(problems[:10])}")
    if not rows:
        raise UserError(f"{path} holds no rows")
    return rows
