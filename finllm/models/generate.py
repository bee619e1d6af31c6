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

from finllm.data.clean import mend_question
from finllm.errors import UserError
from finllm.files import read_jsonl, write_jsonl
from finllm.models.asked import template_for
from finllm.models.base import load_for_inference, positions_of
from finllm.models.find import run_of
from finllm.models.proofs import in_float32, rounding_of, tokenizer_fits
from finllm.models.virtual import virtual_tokens
from finllm.terminal import say
from finllm.text.prompts import question_of
from finllm.text.templates import Alpaca, Template


@dataclass(frozen=True)
class Answer:
    """`text` without its end token; `tokens` written, that one included; `stopped` when it ended there, not at the
    limit."""

    text: str
    tokens: int
    stopped: bool


def decoding(
    tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float = 0.0, stops: Sequence[int] = ()
) -> GenerationConfig:
    """Greedy decoding at temperature 0, sampling above it. Nothing is taken from a model's own generation config.

    An answer ends at EOS, and at a template's `stops`.
    """
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=list(dict.fromkeys([tokenizer.eos_token_id, *stops])),
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
    template: Template | None = None,
) -> list[Answer]:
    """Answer every prompt. `progress` is told how many answers came with each batch.

    The prompts are those of `template`, without one plain texts as alpaca's, and `config` has its stops (`decoding`).
    A prompt that leaves no room for `max_new_tokens` in the model's positions is a `UserError`.
    """
    template = template or Alpaca(tokenizer)
    ids = [template.encode_prompt(prompt) for prompt in prompts]
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
            end = next((place for place, token in enumerate(row) if token in config.eos_token_id), None)
            written, stopped = row[:end], end is not None
            text = tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            answers[index] = Answer(template.answer(text), len(written) + stopped, stopped)
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
    """transformers' own, whose text a model wrote: it is printed as text, without the white space of its template."""

    lead = ""  # what the template writes before an answer

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            text, self.lead = text.removeprefix(self.lead), ""
        say(text, flush=True, end="\n" if stream_end else "")


def stream(model: PreTrainedModel, template: Template, row: dict[str, Any], config: GenerationConfig) -> str:
    """Print the answer to a row's last question as it is written, and return it."""
    tokenizer = template.tokenizer
    ids = torch.tensor([template.encode_prompt(template.prompts([row])[0])], device=model.device)
    _check_room(model, ids.shape[1], config.max_new_tokens)
    streamer = Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    streamer.lead = template.lead
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=streamer
    )
    text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return template.answer(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run dir, or a base model: hub id, folder, .gguf file or built-in name")
    parser.add_argument("question", nargs="?", help="the question; without it and without --file, ask interactively")
    parser.add_argument("--input", default="", help="context that belongs to the question")
    parser.add_argument("--system", default="", help="a system text, where the template takes one")
    parser.add_argument(
        "--template", help="alpaca, chat or a Jinja file, for a base model; a run is asked as it was trained"
    )
    parser.add_argument(
        "--file",
        help="JSONL with `instruction` and, if they like, `input`, `system`, `history`; answers go to --output",
    )
    parser.add_argument("--output", help="JSONL of the file's rows with an `answer` each")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=42)


def run(arguments: argparse.Namespace) -> None:
    """`finllm generate`: one question, a file of them, or a conversation until an empty line.

    What is asked is mended as what is trained on (finllm/data/clean.py); `--output` has it as it was asked. Under a
    template of single questions each line is asked by itself; else together with what was said before.
    """
    if bool(arguments.file) != bool(arguments.output):
        raise UserError("--file and --output go together: questions from one, answers to the other")
    if arguments.file and arguments.question:
        raise UserError("give a question or --file, not both")
    if arguments.file and arguments.system:
        raise UserError("--system goes with a question; a row of --file has its own, in `system`")
    if arguments.max_new_tokens < 1 or arguments.batch_size < 1:
        raise UserError("--max_new_tokens and --batch_size must be at least 1")
    rows = _questions(arguments.file) if arguments.file else []
    model, tokenizer = load_for_inference(_not_a_baseline(arguments.model))
    template = template_for(arguments.model, tokenizer, arguments.template)
    tokenizer_fits(tokenizer, model, template.ids)
    torch.manual_seed(arguments.seed)
    config = decoding(tokenizer, arguments.max_new_tokens, arguments.temperature, template.stops)
    if arguments.file:
        from rich.progress import track

        prompts = template.prompts(list(map(mend_question, rows)))
        bar = iter(track(range(len(prompts)), "answering"))
        answers = answer_all(
            model, tokenizer, prompts, config, arguments.batch_size, lambda done: [next(bar) for _ in range(done)],
            template,
        )  # fmt: skip
        next(bar, None)
        write_jsonl(arguments.output, ({**row, "answer": a.text} for row, a in zip(rows, answers, strict=True)))
        say(f"{len(answers):,} answers in {arguments.output}")
        return
    row = {"instruction": arguments.question, "input": arguments.input, "system": arguments.system, "history": []}
    if arguments.question:
        stream(model, template, mend_question(row), config)
        return
    while question := _ask():
        row["instruction"] = question
        row = mend_question(row)
        answer = stream(model, template, row, config)
        if template.takes_history:
            row["history"] += [{"role": "user", "content": question_of(row)}, {"role": "assistant", "content": answer}]
        row["input"] = ""


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
    problems = [f"line {number}" for number, row in enumerate(rows, start=1) if not _asks(row)]
    if problems:
        raise UserError(
            f"{path}: no text in `instruction`, or no text in `input` or `system`, or `history` is no list of turns "
            f"(role, user or assistant, and content), on {', '.join(problems[:10])}"
        )
    if not rows:
        raise UserError(f"{path} holds no rows")
    return rows


def _asks(row: Any) -> bool:
    """Whether a line of a file is a row that can be asked."""
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str):
        return False
    turns = row.get("history") or []
    return (
        all(isinstance(row.get(name) or "", str) for name in ("input", "system"))
        and isinstance(turns, list)
        and all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in turns)
        and [turn.get("role") for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
    )
