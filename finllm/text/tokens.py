"""From an example to what the model reads and what it is asked to learn.

    text        Below is … ### Response:\\n │ An ETF is a fund … │ EOS │ padding
    input_ids   21106 318 … 31077 25 198   │ 2025 38579 318 …   │ EOS │ pad (may be the same id as EOS)
    labels      -100 -100 … -100 -100 -100 │ 2025 38579 318 …   │ EOS │ -100

Prompt and response are tokenized apart and joined, so a model is asked with exactly the tokens it was trained on.
Padding is added later, by position: an EOS that pads is masked, the EOS that ends a response is learned.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finllm.errors import UserError
from finllm.text.prompts import TEMPLATE_HASH, build_prompt

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
COUNTS = ("lost", "kept", "length", "supervised")  # of each row, beside its tokens, for the report


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
    nothing is left is a `UserError`. Where the split is memory-mapped, so is the result, from a file beside it that
    the next process or run with the same tokenizer, template and settings finds.
    """

    def encode_batch(batch: dict[str, list[str]]) -> dict[str, list]:
        texts = zip(batch["instruction"], batch["input"], batch["output"], strict=True)
        examples = (dict(zip(("instruction", "input", "output"), each, strict=True)) for each in texts)
        encoded = [encode(tokenizer, example, max_length, prompt_loss) for example in examples]
        for row in encoded:
            row["length"] = len(row["input_ids"])
            row["supervised"] = sum(label != IGNORED for label in row["labels"][1:])
        return {key: [row[key] for row in encoded] for key in ("input_ids", "labels", *COUNTS)}

    tokenized = dataset.map(
        encode_batch,
        batched=True,
        remove_columns=dataset.column_names,
        features=_features(),
        desc="tokenizing",
        new_fingerprint=_fingerprint(dataset, tokenizer, max_length, prompt_loss),
    )
    lost, kept, length, supervised = (tokenized.data[key].to_numpy() for key in COUNTS)
    enough = kept >= minimum_response_tokens
    left_out = np.flatnonzero(~enough).tolist()
    dropped = [
        (id, f"its prompt has {tokens:,} tokens, max_length is {max_length:,}: nothing left to learn")
        for id, tokens in zip(dataset.select(left_out)["id"], (length - kept)[left_out].tolist(), strict=True)
    ]
    if not enough.any():
        raise UserError(f"all {len(tokenized):,} rows were dropped: {dropped[0][1]}; raise max_length")
    report = LengthReport(
        max_length,
        rows=len(tokenized),
        truncated_rows=int((lost[enough] > 0).sum()),
        lost_tokens=int(lost[enough].sum()),
        supervised_tokens=int(supervised[enough].sum()),
        lengths=length[enough].tolist(),
        dropped=dropped,
    )
    tokenized = tokenized.remove_columns(list(COUNTS))
    return tokenized.select(np.flatnonzero(enough)) if dropped else tokenized, report


def _features() -> Features:
    """Of a tokenized split: four bytes an id, half of what it would be by default."""
    from datasets import Features, Sequence, Value

    ids = Sequence(Value("int32"))
    return Features({"input_ids": ids, "labels": ids, **dict.fromkeys(COUNTS, Value("int32"))})


def _fingerprint(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *settings: Any) -> str:
    """What the tokens of a split depend on, as a name for the file that holds them."""
    own = Path(__file__).read_text(encoding="utf-8")
    content = [dataset._fingerprint, own, TEMPLATE_HASH, tokenizer_hash(tokenizer), *settings]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides the ids of a text and of its end, wherever the tokenizer was loaded from."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        for state in ("truncation", "padding"):  # as they were last used
            content.pop(state, None)
    else:  # one that is written in Python: its vocabulary, and the files that it saves it as
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_vocabulary(folder)
            saved = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())]
        content = [type(tokenizer).__name__, tokenizer.get_vocab(), saved]
    described = json.dumps([content, tokenizer.eos_token_id], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()


def lengths_of(tokenized: Dataset) -> list[int]:
    """The number of tokens of each row, without loading the rows."""
    batches = tokenized.select_columns("input_ids").with_format("arrow").iter(10_000)
    return [length for batch in batches for length in batch["input_ids"].combine_chunks().value_lengths().to_pylist()]


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, without special tokens."""
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False).input_ids] if texts else []
