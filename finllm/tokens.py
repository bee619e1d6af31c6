"""From an example to what the model reads and what it is asked to learn.

    text        Below is … ### Response:\\n │ An ETF is a fund … │ EOS │ padding
    input_ids   21106 318 … 31077 25 198   │ 2025 38579 318 …   │ EOS │ pad (may be the same id as EOS)
    labels      -100 -100 … -100 -100 -100 │ 2025 38579 318 …   │ EOS │ -100

Prompt and response are tokenized apart and joined, so a model is asked with exactly the tokens it was trained on.
Padding is added later, by position: an EOS that pads is masked, the EOS that ends a response is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finllm.prompts import build_prompt
from finllm.run import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

IGNORED = -100


@dataclass
class LengthReport:
    """What `max_length` did to a split: every row is counted, none is cut or dropped unseen."""

    max_length: int | None
    rows: int = 0
    truncated_rows: int = 0
    lost_tokens: int = 0  # of responses, their EOS included
    supervised_tokens: int = 0
    lengths: list[int] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)  # id, reason


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt's token ids, with BOS where the tokenizer adds one and never with an EOS at the end."""
    ids = tokenizer(prompt).input_ids
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def encode_response(tokenizer: PreTrainedTokenizerBase, response: str) -> list[int]:
    """The response's token ids and EOS."""
    return [*tokenizer(response, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    example: dict[str, str],
    max_length: int | None = None,
    prompt_loss: bool = False,
) -> dict[str, Any]:
    """`input_ids` and `labels` of one example, both (T,), and `lost`: response tokens that `max_length` cut off.

    The cut takes the end of the response, and its EOS first: a response that was cut does not end there, so the model
    is not taught to stop there. Where the prompt alone fills `max_length`, `labels` hold nothing to learn.
    """
    prompt = encode_prompt(tokenizer, build_prompt(example["instruction"], example["input"]))
    response = encode_response(tokenizer, example["output"])
    kept = response if max_length is None else response[: max(0, max_length - len(prompt))]
    masked = prompt if prompt_loss else [IGNORED] * len(prompt)
    return {"input_ids": prompt + kept, "labels": masked + kept, "lost": len(response) - len(kept), "kept": len(kept)}


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    max_length: int | None,
    prompt_loss: bool = False,
    minimum_response_tokens: int = 1,
) -> tuple[Dataset, LengthReport]:
    """A split with `input_ids` and `labels`, and the report of what was cut and dropped.

    A row that keeps fewer than `minimum_response_tokens` of its response is dropped, with the reason. A split of which
    nothing is left is a `UserError`.
    """
    report = LengthReport(max_length)

    def encode_batch(batch: dict[str, list[str]]) -> dict[str, list]:
        columns: dict[str, list] = {"input_ids": [], "labels": []}
        for id, *texts in zip(batch["id"], batch["instruction"], batch["input"], batch["output"], strict=True):
            example = dict(zip(("instruction", "input", "output"), texts, strict=True))
            encoded = encode(tokenizer, example, max_length, prompt_loss)
            report.rows += 1
            if encoded["kept"] < minimum_response_tokens:
                prompt_tokens = len(encoded["input_ids"]) - encoded["kept"]
                reason = f"its prompt has {prompt_tokens:,} tokens, max_length is {max_length:,}: nothing left to learn"
                report.dropped.append((id, reason))
                continue
            report.truncated_rows += encoded["lost"] > 0
            report.lost_tokens += encoded["lost"]
            report.supervised_tokens += sum(label != IGNORED for label in encoded["labels"][1:])
            report.lengths.append(len(encoded["input_ids"]))
            columns["input_ids"].append(encoded["input_ids"])
            columns["labels"].append(encoded["labels"])
        return columns

    # Not cached: the report is made on the way, and a cached result would come without it.
    tokenized = dataset.map(
        encode_batch, batched=True, remove_columns=dataset.column_names, desc="tokenizing", load_from_cache_file=False
    )
    if len(tokenized) == 0:
        raise UserError(f"all {report.rows:,} rows were dropped: {report.dropped[0][1]}; raise max_length")
    return tokenized, report


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, without special tokens."""
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False).input_ids] if texts else []
