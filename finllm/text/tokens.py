"""From an example to what the model reads and what it is asked to learn.

    text        Below is … ### Response:\\n │ An ETF is a fund … │ EOS │ padding
    input_ids   21106 318 … 31077 25 198   │ 2025 38579 318 …   │ EOS │ pad (may be the same id as EOS)
    labels      -100 -100 … -100 -100 -100 │ 2025 38579 318 …   │ EOS │ -100

Prompt and response are tokenized apart and joined, so a model is asked with exactly the tokens it was trained on.
Padding is added later, by position: an EOS that pads is masked, the EOS that ends a response is learned.
A text that spells a control token, such as <|endoftext|>, is written with the tokens of ordinary text: the only control
tokens of a row are those added here, BOS in front and EOS at the end.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from finllm.errors import UserError
from finllm.text.prompts import ROLES_TAKE, TEMPLATE_HASH, TEMPLATE_ID, build_prompt, refused_by_alpaca

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
ALL_TURNS, LAST_TURN = "all_turns", "last_turn"  # whose answers are learned in a conversation
SHOWN = 3  # rows that a message names
COUNTS = ("lost", "kept", "length", "supervised", "spells", "unwritable", "refused")  # of each row, for the report


class Asking(Protocol):
    """As much of finllm.text.templates.Template as rows need to become tokens."""

    id: str
    hash: str
    otherwise: str  # what takes the rows that it refuses
    encode_rows: Callable[..., list[dict[str, Any]]]


@dataclass
class LengthReport:
    """What `max_length` did to a split: every row is counted, none is cut or dropped unseen."""

    max_length: int | None
    rows: int
    truncated_rows: int
    lost_tokens: int  # of responses, their EOS included
    supervised_tokens: int
    spells_control: int  # rows whose text spells a control token and was written as text
    lengths: list[int]
    dropped: list[tuple[str, str]]  # id, reason


@dataclass(frozen=True)
class _Written:
    """A text's ids, whether it spells a control token, and the ids of those that it could not be written without."""

    ids: list[int]
    spells: bool
    control: list[int]


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of `tokenizer` that are not text, as it is now: special tokens can be added or set after it is loaded."""
    return _control_ids(tokenizer, len(tokenizer.added_tokens_decoder), *tokenizer.all_special_ids)


@functools.lru_cache(maxsize=8)
def _control_ids(tokenizer: PreTrainedTokenizerBase, added: int, *special: int) -> frozenset[int]:
    return frozenset({*special, *(id for id, token in tokenizer.added_tokens_decoder.items() if token.special)})


@functools.lru_cache(maxsize=8)
def _added_ids(tokenizer: PreTrainedTokenizerBase, control: frozenset[int]) -> Counter[int]:
    """The control tokens that `tokenizer` puts around a text by itself."""
    return Counter(id for id in tokenizer("a").input_ids if id in control)


def _write(tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool) -> _Written:
    """`text` in tokens of text. Only a text that spells a control token is written otherwise than by default."""
    control = control_ids(tokenizer)
    ids = tokenizer(text, add_special_tokens=add_special_tokens).input_ids
    if control.isdisjoint(ids):
        return _Written(ids, spells=False, control=[])
    added = _added_ids(tokenizer, control) if add_special_tokens else Counter()
    # A character that the vocabulary does not have is unknown, however it is written: that controls nothing, unless its
    # token has another task too, as GPT-2's EOS has.
    tasks = [token for token in tokenizer.special_tokens_map.values() if token == tokenizer.unk_token]
    unknown = tokenizer.unk_token_id if len(tasks) == 1 else None

    def in_text(ids: list[int]) -> tuple[Counter[int], int]:
        """The control tokens among `ids` that the tokenizer did not add itself, and how often text is unknown."""
        found = Counter(id for id in ids if id in control) - added
        return found, found.pop(unknown, 0)

    found, unknowns = in_text(ids)
    if not found and not unknowns:
        return _Written(ids, spells=False, control=[])
    split = tokenizer(text, add_special_tokens=add_special_tokens, split_special_tokens=True).input_ids
    found_in_split, unknowns_in_split = in_text(split)
    spells = bool(found) or unknowns_in_split < unknowns
    if (found_in_split.total(), unknowns_in_split) < (found.total(), unknowns):
        ids, found = split, found_in_split
    return _Written(ids, spells, control=list(found))


def _unwritable(tokenizer: PreTrainedTokenizerBase, control: list[int]) -> str:
    tokens = dict.fromkeys(tokenizer.convert_ids_to_tokens(control))
    return f"its text holds {', '.join(map(repr, tokens))}, which this tokenizer can only write as a control token"


def _writable(tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool) -> list[int]:
    written = _write(tokenizer, text, add_special_tokens)
    if written.control:
        raise UserError(
            f"{' '.join(text.split())[-60:]!r} was not encoded: {_unwritable(tokenizer, written.control)}; change the "
            "text, or take a model whose tokenizer has bytes"
        )
    return written.ids


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt's token ids, with BOS where the tokenizer adds one and never with an EOS at the end.

    What spells a control token stays text; where the tokenizer has no other way to write it, that is a `UserError`.
    """
    return _without_end(tokenizer, _writable(tokenizer, prompt, add_special_tokens=True))


def _without_end(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def encode_response(tokenizer: PreTrainedTokenizerBase, response: str) -> list[int]:
    """The response's token ids and EOS. What spells a control token stays text, or is a `UserError`."""
    return [*_writable(tokenizer, response, add_special_tokens=False), tokenizer.eos_token_id]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    example: Mapping[str, str],
    max_length: int | None = None,
    prompt_loss: bool = False,
) -> dict[str, Any]:
    """One example under the template alpaca: `input_ids` and `labels`, both (T,), and `lost`: response tokens that
    `max_length` cut off.

    The cut takes the end of the response, and its EOS first: a response that was cut does not end there, so the model
    is not taught to stop there. Where the prompt alone fills `max_length`, `labels` hold nothing to learn. `spells`
    says whether its text spells a control token; `unwritable` is empty, or why the tokenizer cannot write it as text;
    `refused` is empty, or why it is no single question.
    """
    asked = _write(tokenizer, build_prompt(example["instruction"], example["input"]), add_special_tokens=True)
    answered = _write(tokenizer, example["output"], add_special_tokens=False)
    prompt, response = _without_end(tokenizer, asked.ids), [*answered.ids, tokenizer.eos_token_id]
    control = asked.control + answered.control
    kept = response if max_length is None else response[: max(0, max_length - len(prompt))]
    masked = prompt if prompt_loss else [IGNORED] * len(prompt)
    return {
        "input_ids": prompt + kept,
        "labels": masked + kept,
        "lost": len(response) - len(kept),
        "kept": len(kept),
        "spells": not control and (asked.spells or answered.spells),
        "unwritable": _unwritable(tokenizer, control) if control else "",
        "refused": refused_by_alpaca(example),
    }


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    max_length: int | None,
    prompt_loss: bool = False,
    minimum_response_tokens: int = 1,
    template: Asking | None = None,
    loss_on: str = ALL_TURNS,
) -> tuple[Dataset, LengthReport]:
    """A split with `input_ids` and `labels`, and the report of what was cut and dropped.

    `template` is one of finllm.text.templates, without one alpaca; `loss_on` says whose answers are learned where a row
    has several (finllm.text.chat). A row that it cannot ask is a `UserError`, with all such rows counted.

    A row that keeps fewer than `minimum_response_tokens` of its answers is dropped, with the reason, and so is one
    whose text the tokenizer cannot write without a control token. A split of which nothing is left is a `UserError`.
    Where the split is memory-mapped, so is the result, from a file beside it that the next process or run with the same
    tokenizer, template and settings finds.
    """

    def encode_batch(batch: dict[str, list[Any]]) -> dict[str, list]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        if template is None:
            encoded = [encode(tokenizer, row, max_length, prompt_loss) for row in rows]
        else:
            encoded = template.encode_rows(rows, max_length, prompt_loss, loss_on)
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
        new_fingerprint=_fingerprint(dataset, tokenizer, template, max_length, prompt_loss, loss_on),
    )
    _refuse(dataset, tokenized["refused"][:], template)
    lost, kept, length, supervised, spells = (tokenized.data[key].to_numpy() for key in COUNTS[:-2])
    reasons = tokenized["unwritable"][:]
    enough = (kept >= minimum_response_tokens) & np.array([not reason for reason in reasons])
    left_out = np.flatnonzero(~enough).tolist()

    def why(row: int) -> tuple[str, str]:
        """Why a row is left out, and what to do where all are."""
        if reasons[row]:
            return reasons[row], "take another base model"
        if lost[row]:
            prompt, left = length[row] - kept[row], f"{kept[row]:,} tokens" if kept[row] else "nothing"
            return f"its prompt has {prompt:,} tokens, max_length is {max_length:,}: {left} left to learn", (
                "raise max_length"
            )
        return f"its answers have {kept[row]:,} tokens, fewer than {minimum_response_tokens:,}", "lower that number"

    dropped = [(id, why(row)[0]) for row, id in zip(left_out, dataset.select(left_out)["id"], strict=True)]
    if not enough.any():
        reason, fix = why(left_out[0])
        raise UserError(f"all {len(tokenized):,} rows were dropped: {reason}; {fix}")
    report = LengthReport(
        max_length,
        rows=len(tokenized),
        truncated_rows=int((lost[enough] > 0).sum()),
        lost_tokens=int(lost[enough].sum()),
        supervised_tokens=int(supervised[enough].sum()),
        spells_control=int(spells[enough].sum()),
        lengths=length[enough].tolist(),
        dropped=dropped,
    )
    tokenized = tokenized.remove_columns(list(COUNTS))
    return tokenized.select(np.flatnonzero(enough)) if dropped else tokenized, report


def _features() -> Features:
    """Of a tokenized split: four bytes an id, half of what it would be by default."""
    from datasets import Features, Sequence, Value

    ids = Sequence(Value("int32"))
    counts = dict.fromkeys(COUNTS, Value("int32"))
    counts |= dict.fromkeys(("unwritable", "refused"), Value("string"))
    return Features({"input_ids": ids, "labels": ids, **counts})


def _refuse(dataset: Dataset, reasons: Sequence[str], template: Asking | None) -> None:
    """Refuse rows that the template cannot ask: what it would make of them is not what they say."""
    found = [row for row, reason in enumerate(reasons) if reason]
    if found:
        named = zip(dataset.select(found[:SHOWN])["id"], found[:SHOWN], strict=True)
        said = "; ".join(f"{id}: {reasons[row]}" for id, row in named)
        more = f"; and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
        name, fix = (TEMPLATE_ID, ROLES_TAKE) if template is None else (template.id, template.otherwise)
        raise UserError(
            f"{len(found):,} of {len(reasons):,} rows cannot be asked with template {name}: {said}{more}; {fix}"
        )


def _fingerprint(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, template: Asking | None, *settings: Any) -> str:
    """What the tokens of a split depend on, as a name for the file that holds them."""
    own = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py")))
    hash = TEMPLATE_HASH if template is None else template.hash
    content = [dataset._fingerprint, own, hash, tokenizer_hash(tokenizer), *settings]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides the ids of a text and of its end, wherever the tokenizer was loaded from."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return _hash_of(backend.to_str(), tokenizer.eos_token_id)
    with tempfile.TemporaryDirectory() as folder:  # one that is written in Python: its vocabulary, and its files
        tokenizer.save_vocabulary(folder)
        saved = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())]
    return _sha256([[type(tokenizer).__name__, tokenizer.get_vocab(), saved], tokenizer.eos_token_id])


@functools.lru_cache(maxsize=2)  # a command asks several times, and megabytes of JSON are read each time
def _hash_of(backend: str, eos_token_id: int | None) -> str:
    as_last_used = ("truncation", "padding")
    return _sha256([{k: v for k, v in json.loads(backend).items() if k not in as_last_used}, eos_token_id])


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def lengths_of(tokenized: Dataset) -> list[int]:
    """The number of tokens of each row, without loading the rows."""
    batches = tokenized.select_columns("input_ids").with_format("arrow").iter(10_000)
    return [length for batch in batches for length in batch["input_ids"].combine_chunks().value_lengths().to_pylist()]


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, without BOS and EOS."""
    if not texts:
        return []
    control = control_ids(tokenizer)
    together = tokenizer(list(texts), add_special_tokens=False).input_ids  # on all cores
    return [
        len(ids if control.isdisjoint(ids) else _write(tokenizer, text, add_special_tokens=False).ids)
        for text, ids in zip(texts, together, strict=True)
    ]
