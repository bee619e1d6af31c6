"""`finllm data show`: an example as the model sees it, in colours."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.text import Text

from finllm.data.dataset_dir import DatasetDir
from finllm.errors import UserError
from finllm.models.find import load_tokenizer, resolve_tokenizer
from finllm.text.tokens import IGNORED, encode

# What each part looks like, and what the legend calls it
PROMPT, RESPONSE, END = ("dim", "bold green", "bold black on yellow")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset_dir")
    parser.add_argument("--split", default="train", choices=["train", "validation", "test"])
    parser.add_argument("--index", type=int, default=0, help="which row, from 0")
    parser.add_argument("--tokenizer", default="smollm2-135m", help="the base model whose tokenizer reads it")
    parser.add_argument("--max_length", type=int, help="cut as training with this max_length would")


def run(arguments: argparse.Namespace) -> None:
    """Print one row: masked tokens dim, supervised ones green, the supervised EOS marked, token edges underlined."""
    rows = DatasetDir(arguments.dataset_dir).split(arguments.split)
    if not 0 <= arguments.index < len(rows):
        raise UserError(f"--index is {arguments.index}, {arguments.split} has rows 0 to {len(rows) - 1}")
    row = rows[arguments.index]
    tokenizer = load_tokenizer(resolve_tokenizer(arguments.tokenizer))
    example = encode(tokenizer, row, arguments.max_length)
    text = Text()
    for position, (token, label) in enumerate(zip(example["input_ids"], example["labels"], strict=True)):
        supervised = label != IGNORED
        if supervised and token == tokenizer.eos_token_id:
            text.append(" EOS ", END)
        else:
            style = (RESPONSE if supervised else PROMPT) + (" underline" if position % 2 else "")
            text.append(tokenizer.decode([token]), style)
    console = Console()
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
        highlight=False,
    )
