"""The rows of a batch end to end in one sequence: no padding, and what they begin with in common only once.

    row 1   P P P P a a a a a      joined      P P P P a a a a a b b b c c c c
    row 2   P P P P b b b          positions   0 1 2 3 4 5 6 7 8 4 5 6 4 5 6 7
    row 3   P P P P c c c c        parts       prefix │ row 1   │ 2   │ row 3

Embeddings, linear layers and norms work on each token alone, so they do not mind whose neighbour it is. Attention does:
there each row reads its prefix and itself, causally, and nothing else. Every instruction of the template begins alike,
so the prefix is a good part of a short row; its gradient is the sum over the rows that read it. Sharing a prefix is
known from decoding (Hydragen, Juravsky et al. 2024, section 3); losses and gradients are those of separate rows, but
for dropout, whose noise on the prefix is shared too.

T tokens of all rows, H heads, D head width, P parts.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from finllm.cpu.attention import Span, attention_of_parts
from finllm.cpu.products import ALIGNED, has_amx
from finllm.text.tokens import IGNORED

VIRTUAL = -1  # in place of an id: a token that is in no text, which the method that trains it puts there
NAME = "joined_rows"  # of the attention, in transformers' registry
ALIKE = 10  # rows whose first tokens are the same share a prefix; the template's two forms part at the ninth
LONG = 1024  # tokens, above which a row's attention is torch's own: ours holds a number for each two of them
# What an attention can be asked for beyond softmax(QKᵀ)V over all earlier tokens; with it a model keeps its padding.
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")


def join(rows: list[dict[str, Any]], multiple: int = 1, virtual: int = 0) -> dict[str, Tensor]:
    """Collate rows of `input_ids` and `labels`, both (length,), into one sequence.

    A packed row also has `seq_lengths`, those of its documents: each of these is a part. So many `virtual` tokens stand
    before each document. Up to a `multiple` of so many tokens a last part is filled in, which nobody sees and nothing
    is learned from. Returns `input_ids`, `labels`, `position_ids` and `rows` (whose token it is, −1 for a prefix and
    the filling), each (1, T); `parts` (P, 4): begin and end of a part's prefix and of itself, in the order of the
    sequence; `lengths` (rows,), the prefix counted in each, but for virtual tokens.
    """
    alike, ids_before, labels_before = defaultdict(list), [VIRTUAL] * virtual, [IGNORED] * virtual
    for index, row in enumerate(rows):
        for document in documents_of(row):
            ids, labels = document["input_ids"], document["labels"]
            alike[tuple(ids[:ALIKE])].append((index, ids_before + ids, labels_before + labels))
    joined: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": [], "rows": []}
    parts: list[tuple[int, int, int, int]] = []

    def add(prefix: tuple[int, int], ids: list[int], labels: list[int], row: int) -> tuple[int, int]:
        begin, first = len(joined["input_ids"]), prefix[1] - prefix[0]
        joined["input_ids"] += ids
        joined["labels"] += [IGNORED, *labels[1:]]  # a part's first token is not predicted from the part before it
        joined["position_ids"] += range(first, first + len(ids))
        joined["rows"] += [row] * len(ids)
        parts.append((*prefix, begin, begin + len(ids)))
        return begin, begin + len(ids)

    for group in alike.values():
        shared = _shared(group) if len(group) > 1 else 0
        _, ids, labels = group[0]
        prefix = add((0, 0), ids[:shared], labels[:shared], -1) if shared else (0, 0)
        for index, ids, labels in group:
            add(prefix, ids[shared:], labels[shared:], index)
    if filling := -len(joined["input_ids"]) % multiple:
        add((0, 0), [0] * filling, [IGNORED] * filling, -1)
    return {
        **{name: torch.tensor([values]) for name, values in joined.items()},
        "parts": torch.tensor(parts),
        "lengths": torch.tensor([len(row["input_ids"]) for row in rows]),
    }


def collate(rows: list[dict[str, Any]], virtual: int = 0) -> dict[str, Tensor]:
    """As `join`, filled up where that is worth it.

    A weight's gradient is a product over all tokens, by a fifth faster on AMX where these are a multiple of 32.
    """
    return join(rows, ALIGNED if has_amx() else 1, virtual)


def documents_of(row: dict[str, Any]) -> list[dict[str, list[int]]]:
    """A row's own `input_ids` and `labels`; of a packed row those of each document in it."""
    ends = list(itertools.accumulate(row.get("seq_lengths", [len(row["input_ids"])])))
    return [
        {name: row[name][begin:end] for name in ("input_ids", "labels")}
        for begin, end in itertools.pairwise([0, *ends])
    ]


def _shared(documents: list[tuple[int, list[int], list[int]]]) -> int:
    """How many first tokens all documents share, short of the token that predicts the first supervised one."""
    first, last = min(ids for _, ids, _ in documents), max(ids for _, ids, _ in documents)
    limit = -1 + min(
        next((i for i in range(1, len(labels)) if labels[i] != IGNORED), len(labels)) for _, _, labels in documents
    )
    # What the smallest and the largest begin with in common, all between them begin with too.
    return next((i for i in range(limit) if first[i] != last[i]), max(0, limit))


def attend(
    module: torch.nn.Module,
    query_1HTD: Tensor,
    key_1HTD: Tensor,
    value_1HTD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    parts: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each part to its prefix and itself, as transformers calls it; output (1, T, H, D).

    Keys that are more than the queries, of virtual tokens in the cache, come first, and each part sees them too.
    """
    assert parts is not None and attention_mask is None, "this attention reads batches of `join`, and no other"
    assert not any(others.get(name) is not None for name in UNSUPPORTED), "see `can_join`"
    scale = query_1HTD.shape[-1] ** -0.5 if scaling is None else scaling
    spans, short, long = parts.tolist(), [], []
    cached = key_1HTD.shape[2] - query_1HTD.shape[2]
    for prefix_begin, prefix_end, begin, end in spans:
        seen = ((-cached, 0), (prefix_begin, prefix_end), (begin, end))  # some of them empty
        seen = tuple((first + cached, last + cached) for first, last in seen)
        is_long = sum(last - first for first, last in seen) > LONG and not dropout
        (long if is_long else short).append(((begin, end), seen))
    query, key, value = query_1HTD[0], key_1HTD[0], value_1HTD[0]
    output_THD = attention_of_parts(query, key, value, short, scale, dropout)
    if long:
        pieces = list(output_THD.split([end - begin for _, _, begin, end in spans]))
        at = {begin: number for number, (_, _, begin, _) in enumerate(spans)}
        for own, seen in long:
            pieces[at[own[0]]] = _long(query, key, value, seen, scale)[-(own[1] - own[0]) :]
        output_THD = torch.cat(pieces)
    return output_THD[None], None


def _long(query_HTD: Tensor, key_GKD: Tensor, value_GKD: Tensor, seen: Sequence[Span], scale: float) -> Tensor:
    """torch's own attention, of what is seen to itself, (n, H, D): a square, for which its kernel needs no mask.

    So the prefix is asked again with each row, and keys without a query are given one of zeros.
    """
    (_, cached), *others = seen
    query = torch.cat([query_HTD[:, begin - cached : end - cached] for begin, end in others], 1)
    query = pad(query, (0, 0, cached, 0))[None]
    key, value = (torch.cat([each[:, begin:end] for begin, end in seen], 1)[None] for each in (key_GKD, value_GKD))
    grouped = len(query_HTD) != len(key_GKD)
    attended = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    return attended[0].transpose(0, 1)


AttentionInterface.register(NAME, attend)


def can_join(model: PreTrainedModel) -> bool:
    """Whether the model's attention is one that `attend` computes. That nothing else mixes tokens is not known here."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    plain = layers == {"full_attention"} and not getattr(config, "sliding_window", None)
    return plain and config._attn_implementation == "sdpa" and model._can_set_attn_implementation()
