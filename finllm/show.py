"""`finllm data show`: an example as the model sees it, in colours."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.text import Text

from finllm.data.dataset_dir import DatasetDir
from finllm.errors import UserError, visible
from finllm.models.asked import template_for
from finllm.models.find import load_tokenizer, resolve_tokenizer, run_of, without_torch
from finllm.terminal import Terminal
from finllm.text.tokens import ALL_TURNS, IGNORED, LAST_TURN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_PARTS = 64  # tokens joined: a row of characters whose edges no token shares
# What each part looks like, and what the legend calls it
PROMPT, RESPONSE, END = ("dim", "bold green", "bold black on yellow")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset_dir")
    parser.add_argument("--split", default="train", choices=["train", "validation", "test"])
    parser.add_argument("--index", type=int, default=0, help="which row, from 0")
    parser.add_argument("--tokenizer", default="smollm2-135m", help="the base model, or run, whose tokenizer reads it")
    parser.add_argument("--template", help="alpaca (the default), chat or a Jinja file; a run has its own")
    parser.add_argument("--loss_on", choices=[ALL_TURNS, LAST_TURN], help="as in training; a run has its own")
    parser.add_argument("--max_length", type=int, help="cut as training with this max_length would")


def run(arguments: argparse.Namespace) -> None:
    """Print one row, with all its turns: masked tokens dim, supervised ones green, supervised ends marked, token edges
    underlined.

    Tokens that hold parts of one character are printed as one.
    """
    rows = DatasetDir(arguments.dataset_dir).rows(arguments.split)
    if not 0 <= arguments.index < len(rows):
        raise UserError(f"--index is {arguments.index}, {arguments.split} has rows 0 to {len(rows) - 1}")
    row = rows[arguments.index]
    resolved = resolve_tokenizer(arguments.tokenizer)
    without_torch()
    tokenizer = load_tokenizer(resolved)
    template, run = template_for(arguments.tokenizer, tokenizer, arguments.template), run_of(arguments.tokenizer)
    loss_on = arguments.loss_on or (run.config().get("loss_on") if run else None) or ALL_TURNS
    (example,) = template.encode_rows([row], arguments.max_length, False, loss_on)
    if example["refused"]:
        raise UserError(
            f"{row['id']} cannot be asked with template {template.id}: {example['refused']}; {template.otherwise}"
        )
    text = Text()
    for number, (tokens, supervised) in enumerate(whole_characters(tokenizer, example)):
        if supervised and len(tokens) == 1 and tokens[0] in template.stops:
            text.append(" EOS " if tokens[0] == tokenizer.eos_token_id else f" {tokenizer.decode(tokens)} ", END)
        else:
            style = (RESPONSE if supervised else PROMPT) + (" underline" if number % 2 else "")
            text.append(visible(tokenizer.decode(tokens)), style)
    console = Terminal()
    console.print(
        Text.assemble(("masked", PROMPT), "  ", ("learned", RESPONSE), "  ", (" EOS ", END), " learned too\n")
    )
    console.print(text)
    supervised = sum(label != IGNORED for label in example["labels"])
    console.print(
        f"\n{row['id']}: {len(example['input_ids'])} tokens, {supervised} supervised"
        + (f", {example['lost']} cut off by max_length" if example["lost"] else "")
        + (f"; training drops this row: {example['unwritable']}" if example["unwritable"] else "")
        + ("; its text spells a control token, and stays text" if example["spells"] else ""),
    )


def whole_characters(tokenizer: PreTrainedTokenizerBase, example: dict[str, Any]) -> Iterator[tuple[list[int], bool]]:
    """Tokens and whether they are supervised, joined until what they say ends with a whole character.

    A byte-level tokenizer may write one character in as many tokens as it has bytes, and one token may hold the end of
    one character and the beginning of the next. Where `max_length` cuts a character, its part stays as it is.
    """
    tokens: list[int] = []
    labels = [label != IGNORED for label in example["labels"]]
    for token, supervised, next_one in zip(example["input_ids"], labels, [*labels[1:], None], strict=True):
        tokens.append(token)
        partial = len(tokens) < MOST_PARTS and tokenizer.decode(tokens).endswith("\ufffd")
        if not partial or supervised != next_one:
            yield tokens, supervised
            tokens = []
