"""What is told of an adapter that is no change of weights, whatever its base model is held in."""

from types import SimpleNamespace

import pytest
import torch

from finllm.models import merge
from finllm.models.merge import merged_proof
from finllm.models.proofs import Proof


@pytest.mark.parametrize("bits", ["bitsandbytes", None])
def test_virtual_tokens_are_no_weights_in_few_bits_or_many(monkeypatch, bits):
    """`finllm merge` could not merge them into what few bits stand for either."""
    monkeypatch.setattr(merge, "virtual_tokens", lambda model: 3)
    monkeypatch.setattr(merge, "base_of", lambda model: model)
    said = "it stays an adapter, since it cannot be merged: its virtual tokens are no weights of the base model"
    proof = merged_proof(SimpleNamespace(quantization_method=bits), [], torch.zeros(0))
    assert proof == Proof("merged model", None, 1e-4, True, said)
