"""The head of a model that must be asked whole, since what lies under it knows nothing of its virtual tokens; zeros."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch import nn

from finllm.models.proofs import Stopwatch, future_difference, head_difference, in_float32, template_proofs


class Body(nn.Module):
    def forward(self, hidden):
        return SimpleNamespace(last_hidden_state=torch.tanh(hidden))


class Base(nn.Module):
    """What lies under the method, which cannot be asked by itself."""

    def __init__(self):
        super().__init__()
        self.embedding, self.base_model, self.head = nn.Embedding(9, 4), Body(), nn.Linear(4, 9)

    def get_output_embeddings(self):
        return self.head


class Whole(nn.Module):
    """Two virtual tokens stand before every text, and logits are of the text's own."""

    takes_one_task = True

    def __init__(self, times, factor):
        super().__init__()
        torch.manual_seed(0)
        self.base, self.virtual, self.times, self.factor = Base(), nn.Parameter(torch.randn(1, 2, 4)), times, factor

    def get_base_model(self):
        return self.base

    def forward(self, input_ids, use_cache):
        assert use_cache is False
        hidden = torch.cat([self.virtual.expand(len(input_ids), -1, -1), self.base.embedding(input_ids)], 1)
        for _ in range(self.times):
            hidden = self.base.base_model(hidden).last_hidden_state
        return SimpleNamespace(logits=self.factor * self.base.head(hidden)[:, 2:])


@pytest.mark.parametrize(("times", "factor", "least", "most"), [
    (1, 1.0, 0, 1e-6), (1, 1.25, 0.199, 0.201), (0, 1.0, math.inf, math.inf), (2, 1.0, math.inf, math.inf),
    (3, 1.0, math.inf, math.inf),
])  # fmt: skip
def test_a_model_is_asked_whole_and_its_body_looked_at_inside(times, factor, least, most):
    model = Whole(times, factor)
    assert least <= head_difference(model, torch.arange(6).view(2, 3)) <= most
    assert not model.base.base_model._forward_hooks and not model.base.head._forward_pre_hooks


def test_nothing_is_told_as_a_zero_without_a_sign():
    """As json writes it into a run's folder, and as seconds are printed."""
    template = SimpleNamespace(jinja="{{ x }}", id="chatml", prove=lambda rows: "told")
    (proof,) = template_proofs(template, Dataset.from_dict({"number": [1]}))
    assert json.dumps(proof.as_json()) == (
        '{"name": "template", "figure": 0.0, "limit": 0.0, "passed": true, "said": "told"}'
    )
    assert str(Stopwatch().seconds) == "0.0"
    table = nn.Embedding(3, 3)
    model = type("Model", (nn.Module,), {"forward": lambda self, input_ids, use_cache: SimpleNamespace(
        logits=self.table(input_ids))})()  # fmt: skip
    model.table = table
    assert [str(each) for each in future_difference(model, [0, 1, 2], 1, 1e-4)[:2]] == ["0.0", "0.0"]


def test_numbers_that_are_no_coarse_ones_stay_what_they_are():
    model = nn.Linear(2, 2).double()
    model.register_buffer("places", torch.arange(3))
    model.register_buffer("eight_bits", torch.ones(2, dtype=torch.int8))
    model.register_buffer("coarse", torch.ones(2, dtype=torch.float16))
    with in_float32(model):
        assert model.weight.dtype == torch.float64 and model.places.dtype == torch.int64
        assert model.eight_bits.dtype == torch.int8 and model.coarse.dtype == torch.float32
    assert model.coarse.dtype == torch.float16
