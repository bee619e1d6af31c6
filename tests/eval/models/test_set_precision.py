"""What a transformers model computes in: as it is described, and in float32 where that is asked for."""

from types import SimpleNamespace

import pytest
import torch

from eval.models import transformers_lm
from eval.models.language_model import Description
from eval.models.transformers_lm import TransformersLM


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_quantised_run_is_described_by_what_it_computes_in(monkeypatch, dtype):
    model = SimpleNamespace(config=SimpleNamespace(), dtype=getattr(torch, dtype), quantization_method="bitsandbytes")
    monkeypatch.setattr(transformers_lm, "load_for_inference", lambda path: (model, "tokenizer"))
    monkeypatch.setattr(transformers_lm, "template_of_run", lambda run, tokenizer: SimpleNamespace(ids=[1]))
    monkeypatch.setattr(transformers_lm, "tokenizer_fits", lambda tokenizer, model, ids: None)
    summary = {"method": "qlora", "base_model": "gpt2", "total_parameters": 9, "trainable_parameters": 3}
    found = transformers_lm.load(SimpleNamespace(path="runs/a", summary=lambda: summary), 7)
    assert found.description == Description("qlora", "gpt2", "gpt2", 9, 3, dtype)


def test_in_float32_weights_are_what_they_stand_for_and_afterwards_what_they_were():
    layer = torch.nn.Linear(3, 2).bfloat16()
    before = layer.weight.detach().clone()
    model = TransformersLM(layer, "tokenizer", Description("base", "m", "m", 1, 0), 2, SimpleNamespace())
    with model.in_float32():
        assert layer.weight.dtype == torch.float32 and torch.equal(layer.weight, before.float())
    assert layer.weight.dtype == torch.bfloat16 and torch.equal(layer.weight, before)
