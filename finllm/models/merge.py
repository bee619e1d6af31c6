"""An adapter merged into its base model, as a plain model of its kind. finllm/models/plain.py is the command.

Into weights of 4 or 8 bits nothing is merged, since the sum would be rounded to them anew (0.1 to 0.45 in logits).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finllm.models import conv1d
from finllm.models.adapters import base_of
from finllm.models.proofs import Proof, in_float32, nll_of
from finllm.models.skeletons import skeleton
from finllm.models.virtual import virtual_tokens

LIMIT = 1e-4  # nats a token, in float32
NO_WEIGHTS = "its virtual tokens are no weights of the base model"


class CannotMerge(ValueError):
    """An adapter that is no change of weights."""


def merged(adapted: PreTrainedModel) -> PreTrainedModel:
    """The base model with the adapter in its weights; `CannotMerge` with the reason. `adapted` is used up."""
    if virtual_tokens(adapted):
        raise CannotMerge(NO_WEIGHTS)
    turned = getattr(base_of(adapted), "turned_conv1d", False)
    try:
        model = adapted.merge_and_unload()
    except Exception as error:  # each method refuses in its own way
        raise CannotMerge(" ".join(str(error).split())[:200] or type(error).__name__) from error
    if turned:
        conv1d.to_conv1d(model, skeleton(model.config))
    return model


@torch.no_grad()
def merged_proof(adapted: PreTrainedModel, rows: Sequence[dict[str, list[int]]], own_N: Tensor) -> Proof:
    """Merged, the model gives `rows` the nats `own_N` that it gave them before, or why it is not merged.

    `adapted` is used up. A merged model that differs stays an adapter: `finllm merge` refuses it by the same figure.
    """
    name = "merged model"
    if virtual_tokens(adapted):
        said = f"it stays an adapter, since it cannot be merged: {NO_WEIGHTS}"
        return Proof(name, None, LIMIT, True, said)
    if getattr(adapted, "quantization_method", None) or getattr(base_of(adapted), "quantization_method", None):
        said = "into so few bits nothing is merged; `finllm merge` merges it into what these bits stand for, in float32"
        return Proof(name, None, LIMIT, True, said)
    with in_float32(adapted):
        try:
            model = merged(adapted)
        except CannotMerge as error:
            return Proof(name, None, LIMIT, True, f"it stays an adapter, since it cannot be merged: {error}")
        with in_float32(model):
            apart = float((nll_of(model, rows).double() - own_N).abs().mean()) if rows else 0.0
    said = f"merged into the base model, a token's loss is within {apart:.1g} nats"
    return Proof(name, apart, LIMIT, apart <= LIMIT, said)
