"""A trainer whichever tensor, key or row is the last, and whatever format a model computes in: as literals."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from finllm.training import trainer as module
from finllm.training.resumable import ResumableTrainer
from finllm.training.trainer import SupervisedTrainer, _exact_loss


def trainer(device="cpu", joins=False, **settings):
    found = object.__new__(SupervisedTrainer)
    found.args = SimpleNamespace(device=SimpleNamespace(type=device), neftune_noise_alpha=None, **settings)
    found.model = SimpleNamespace(training=True)
    found.joins_rows, found.uses_own_logits = joins, False
    return found


class Base(nn.Module):
    def __init__(self, *trains):
        super().__init__()
        weights = [torch.zeros(1, dtype=torch.bfloat16) for _ in trains]
        pairs = zip(weights, trains, strict=True)
        self.weights = nn.ParameterList([nn.Parameter(weight, requires_grad=each) for weight, each in pairs])
        self.config = SimpleNamespace(_attn_implementation="sdpa")


@pytest.mark.parametrize("trains", [(True,), (True, True), (False, True), (True, False)])
def test_every_tensor_that_trains_is_float32(monkeypatch, trains):
    def init(self, model, args, **given):
        self.model, self.args, self.data_collator = model, args, None

    monkeypatch.setattr(ResumableTrainer, "__init__", init)
    for name, what in (("base_of", lambda model: model), ("add_supervised_head", lambda model: None),
                       ("prove", lambda trainer: [])):  # fmt: skip
        monkeypatch.setattr(module, name, what)
    monkeypatch.setattr(module.joined, "can_join", lambda model: True)
    args = SimpleNamespace(device=torch.device("cpu"), torch_compile=False, join_rows=None, packing=True, lora_fa=False)
    model = Base(*trains)
    SupervisedTrainer(model, args=args)
    assert [weight.dtype for weight in model.weights] == [torch.float32 if each else torch.bfloat16 for each in trains]


class Model:
    """Answers with the nats of four supervised positions, of two rows, in a format."""

    def __init__(self, dtype=torch.float32):
        self.dtype, self.training = dtype, True
        self.embeddings = SimpleNamespace(neftune_noise_alpha=None)
        self.get_input_embeddings = lambda: self.embeddings

    def __call__(self, **asked):
        self.asked = asked
        mask = torch.tensor([[1, 1, 0], [1, 0, 1]]).bool()
        nll_N = torch.tensor([1.0, 2, 4, 8], dtype=self.dtype) + 256
        if "fused_lm_head" in asked:
            log_probs = torch.zeros(2, 3, dtype=self.dtype).masked_scatter(mask, -nll_N)
            return SimpleNamespace(log_probs=log_probs, label_mask=mask)
        mask = mask if len(asked["labels"]) == 2 else mask.reshape(1, 6)
        return SimpleNamespace(nll=nll_N.sum(), nll_N=nll_N, mask=mask)


ROWS = {"labels": torch.ones(2, 4), "attention_mask": torch.ones(2, 4), "input_ids": torch.ones(2, 4, dtype=torch.long)}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("dtype", "first"), [
    (torch.float32, 515.0), (torch.float64, 515.0), (torch.float16, 515.0), (torch.bfloat16, 514.0),
])  # fmt: skip
def test_the_nats_of_rows_are_summed_in_float32_whatever_the_format(device, dtype, first):
    """257 + 258. In bfloat16 257 is 256, and from 512 on there are multiples of 4 alone: its own sum is 512 or 516."""
    _, nll_B, tokens_B = trainer(device)._likelihood(Model(dtype), ROWS)
    assert (nll_B.dtype, nll_B.tolist(), tokens_B.tolist()) == (torch.float32, [first, 524.0], [2, 2])


@pytest.mark.parametrize("last", ["input_ids", "labels", "attention_mask", "position_ids"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_model_is_given_all_of_a_batch_whichever_comes_last(device, last):
    batch = {**ROWS, "position_ids": torch.arange(4).expand(2, 4)}
    batch[last] = batch.pop(last)
    model = Model()
    trainer(device)._likelihood(model, batch)
    tensors = {name: value for name, value in model.asked.items() if torch.is_tensor(value)}
    assert {*tensors} == {"input_ids", "labels", "position_ids"}
    assert all(value is batch[name] for name, value in tensors.items())


def test_the_strength_of_noise_is_exact():
    found, model = trainer(joins=True), Model()
    found.args.neftune_noise_alpha, found.model = 5.0, model
    inputs = {"input_ids": torch.ones(1, 7, dtype=torch.long), "labels": torch.ones(1, 7),
              "rows": torch.tensor([[0, 0, 0, 1, 1, 1, 1]]), "lengths": torch.tensor([3, 3])}  # fmt: skip
    found._likelihood(model, inputs)
    assert model.embeddings.neftune_noise_alpha == math.sqrt(7 / 3) * 5.0


def test_a_step_of_validation_is_of_the_model_and_the_batch_that_are_given():
    found, asked = trainer(), []
    found._prepare_inputs, found.compute_loss_context_manager = lambda inputs: inputs, torch.no_grad
    found._likelihood = lambda *given: asked.append(given) or (None, "nll", "tokens")
    assert found.prediction_step("model", "inputs", False) == (None, "nll", "tokens")
    assert asked == [("model", "inputs")]


def test_a_splits_loss_can_be_written_as_json():
    """numpy's own whole numbers cannot."""
    found = _exact_loss(SimpleNamespace(predictions=np.float32([3.0, 1.0]), label_ids=np.int32([1, 3])))
    assert json.dumps(found) == '{"loss": 1.0, "supervised_tokens": 4}'
    assert {type(value) for value in found.values()} == {float, int}
