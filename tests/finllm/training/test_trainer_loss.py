"""What a trainer makes of a batch, as literals: its loss, its counts, the sums of its rows, and what it refuses."""

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import Trainer

from finllm.errors import UserError
from finllm.files import read_jsonl
from finllm.training import trainer as module
from finllm.training.trainer import SupervisedTrainer

IGNORED = -100


class Device(SimpleNamespace):
    type = "cpu"


def trainer(device="cpu", training=True, joins=False, own_logits=False, processes=1, **settings):
    found = object.__new__(SupervisedTrainer)
    found.args = SimpleNamespace(
        device=Device(type=device), average_tokens_across_devices=False, gradient_accumulation_steps=4,
        neftune_noise_alpha=None, learning_rate=0.5, warmup_steps=3, fp16=False,
        train_sampling_strategy="random",
    )  # fmt: skip
    vars(found.args).update(settings)
    found.model = SimpleNamespace(training=training)
    found.state = SimpleNamespace(global_step=6)
    found.accelerator = SimpleNamespace(num_processes=processes)
    found.joins_rows, found.uses_own_logits = joins, own_logits
    found.counted = []
    found.count = lambda *counts: found.counted.append(counts)
    return found


NLL_B, TOKENS_B = torch.tensor([6.0, 3.0]), torch.tensor([4, 2])
INPUTS = {"labels": torch.zeros(2, 5), "input_ids": torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, -1, -1]])}


@pytest.fixture
def term(monkeypatch):
    """A method's own term: 8 for these labels."""
    monkeypatch.setattr(module, "own_term", lambda model, labels: torch.tensor(8.0 if labels.shape == (2, 5) else 0.0))


@pytest.mark.parametrize(("settings", "given", "loss"), [
    ({}, None, 9 / 6 + 2), ({}, 18, 9 / 18 + 2), ({}, torch.tensor(18), 9 / 18 + 2), ({}, 0, 9 + 2),
    ({"training": False}, None, 9 / 6), ({"gradient_accumulation_steps": 2}, None, 9 / 6 + 4),
    ({"average_tokens_across_devices": True, "processes": 3}, 18, 3 * 9 / 18 + 2),
    ({"average_tokens_across_devices": True, "processes": 3}, None, 9 / 6 + 2),
    ({"average_tokens_across_devices": False, "processes": 3}, 18, 9 / 18 + 2),
    ({"average_tokens_across_devices": True, "processes": 3, "training": False}, 18, 3 * 9 / 18),
])  # fmt: skip
def test_a_loss_is_its_nats_by_the_tokens_of_the_step_and_a_methods_own_term(term, settings, given, loss):
    found = trainer(**settings)
    found._likelihood = lambda model, inputs: (torch.tensor(9.0), NLL_B, TOKENS_B)
    assert found.compute_loss("model", INPUTS, num_items_in_batch=given).item() == pytest.approx(loss, rel=1e-6)
    assert bool(found.counted) is settings.get("training", True)


def test_a_batch_without_supervised_tokens_has_no_loss(term):
    found = trainer(training=False)
    found._likelihood = lambda model, inputs: (torch.tensor(0.0), torch.zeros(2), torch.zeros(2, dtype=torch.long))
    assert found.compute_loss("model", INPUTS).item() == 0


@pytest.mark.parametrize(("joins", "more", "tokens"), [
    (True, {"lengths": torch.tensor([7, 4]), "attention_mask": torch.ones(2, 5)}, 11),
    (False, {"attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])}, 6), (False, {}, 8),
])  # fmt: skip
def test_what_is_counted_of_a_batch(term, joins, more, tokens):
    found, asked = trainer(joins=joins), []
    found._likelihood = lambda *given: asked.append(given) or (torch.tensor(9.0), NLL_B, TOKENS_B)
    inputs = {**INPUTS, **more}
    found.compute_loss("model", inputs)
    assert found.counted == [(tokens, 6, 9.0)] and [type(each) for each in found.counted[0]] == [int, int, float]
    assert asked == [("model", inputs)]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_not_applied_nor_counted(term, wrong):
    found = trainer()
    found._likelihood = lambda model, inputs: (torch.tensor(wrong), torch.tensor([1.0, wrong]), TOKENS_B)
    with pytest.raises(
        UserError, match=rf"loss is {wrong} in step 7 and was not applied; lower learning_rate \(now 0.5"
    ):
        found.compute_loss("model", INPUTS)
    assert not found.counted
    found.model.training = False
    assert not torch.isfinite(found.compute_loss("model", INPUTS))  # a validation says so itself
    with pytest.raises(AssertionError):
        found.compute_loss("model", INPUTS, return_outputs=True)


class Model:
    """Notes what it is asked, and answers with four supervised positions: two of each row, or of rows end to end."""

    def __init__(self):
        self.embeddings = SimpleNamespace(neftune_noise_alpha=None)
        self.training = True

    def get_input_embeddings(self):
        return self.embeddings

    def __call__(self, **asked):
        self.asked = asked
        if "fused_lm_head" in asked:
            log_probs = -torch.tensor([[1.0, 2, 0], [4, 0, 8]], requires_grad=True)
            return SimpleNamespace(log_probs=log_probs, label_mask=torch.tensor([[1, 1, 0], [1, 0, 1]]).bool())
        nll_N = torch.tensor([1.0, 2, 4, 8], requires_grad=True)
        shape = asked["labels"].shape
        mask = torch.tensor([[1, 1, 0], [1, 0, 1]] if shape[0] == 2 else [[1, 1, 0, 1, 0, 1]]).bool()
        return SimpleNamespace(nll=nll_N.sum(), nll_N=nll_N, mask=mask)


PADDED = {
    "input_ids": torch.ones(2, 4, dtype=torch.long),
    "labels": torch.ones(2, 4),
    "attention_mask": torch.ones(2, 4),
}
JOINED = {
    "input_ids": torch.ones(1, 7, dtype=torch.long), "labels": torch.ones(1, 7), "position_ids": torch.arange(7)[None],
    "rows": torch.tensor([[0, 0, 0, 1, 1, 1, 1]]), "lengths": torch.tensor([3, 4]),
}  # fmt: skip


@pytest.mark.parametrize(("device", "joins", "own"), [
    ("cpu", False, False), ("cpu", False, True), ("cpu", True, False), ("cpu", True, True), ("cuda", False, False),
    ("cuda", False, True),
])  # fmt: skip
def test_the_nats_and_tokens_of_every_row(device, joins, own):
    found, model, inputs = trainer(device, joins=joins, own_logits=own), Model(), JOINED if joins else PADDED
    nll, nll_B, tokens_B = found._likelihood(model, inputs)
    assert nll.item() == 15 and nll.requires_grad and not nll_B.requires_grad
    assert nll_B.tolist() == [3.0, 12.0] and nll_B.dtype == torch.float32
    assert tokens_B.tolist() == [2, 2] and not tokens_B.is_floating_point()
    asked = {key: value for key, value in model.asked.items() if not torch.is_tensor(value)}
    fused = {"use_cache": False, "fused_lm_head": True}
    assert asked == (
        fused if device != "cpu" and not own else {"use_cache": False, "supervised_head": True, "own_logits": own}
    )
    assert {key for key, value in model.asked.items() if torch.is_tensor(value)} == (
        {"input_ids", "labels", "position_ids"} if joins else {"input_ids", "labels"}
    )
    assert model.asked["labels"] is inputs["labels"]


def test_a_row_without_supervised_tokens_has_none_of_its_neighbours():
    found, model = trainer(joins=True), Model()
    inputs = {**JOINED, "rows": torch.tensor([[0, 2, 2, 2, 2, 2, 2]]), "lengths": torch.tensor([1, 0, 6])}
    _, nll_B, tokens_B = found._likelihood(model, inputs)
    assert (nll_B.tolist(), tokens_B.tolist()) == ([0.0, 0.0, 15.0], [0, 0, 4])


@pytest.mark.parametrize(("joins", "training", "alpha", "expected"), [
    (True, True, 5.0, 5 * math.sqrt(7 / 4)), (False, True, 5.0, None), (True, False, 5.0, None),
    (True, True, None, None),
])  # fmt: skip
def test_noise_on_joined_rows_is_as_strong_as_on_padded_ones(joins, training, alpha, expected):
    found, model = trainer(joins=joins, training=training, neftune_noise_alpha=alpha), Model()
    found.model = model
    model.training = training
    found._likelihood(model, JOINED if joins else PADDED)
    assert model.embeddings.neftune_noise_alpha == (expected and pytest.approx(expected))


@pytest.mark.parametrize(("norm", "fp16", "refused"), [
    (1.5, False, False), (math.nan, False, True), (math.inf, False, True), (math.nan, True, False),
    (None, False, False),
])  # fmt: skip
def test_a_gradient_that_is_no_number_is_refused_but_of_fp16(monkeypatch, norm, fp16, refused):
    monkeypatch.setattr(Trainer, "_clip_grad_norm", lambda self, model: norm if norm is None else torch.tensor(norm))
    found = trainer(fp16=fp16)
    if refused:
        with pytest.raises(UserError, match=f"gradient's norm is {norm} in step 7 and was not applied; lower"):
            found._clip_grad_norm("model")
    else:
        result = found._clip_grad_norm("model")
        assert result is None if norm is None else str(result.item()) == str(norm)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("strategy", "order"), [("random", [0, 1, 2]), ("group_by_length", [1, 2, 0])])
def test_what_each_row_of_a_validation_cost_is_written_in_the_order_of_the_split(tmp_path, strategy, order, first):
    found = trainer(train_sampling_strategy=strategy)
    found.eval_dataset = Dataset.from_list([{"input_ids": [0] * length} for length in (2, 9, 5)])
    assert list(found._get_eval_sampler(found.eval_dataset)) == order
    found.is_world_process_zero = lambda: first
    found.run = SimpleNamespace(validation=tmp_path / "validation.jsonl")
    costs = {0: (3.0, 1), 1: (1.0, 2), 2: (8.0, 5)}
    prediction = SimpleNamespace(
        predictions=torch.tensor([costs[row][0] for row in order]).numpy(),
        label_ids=torch.tensor([costs[row][1] for row in order]).numpy(),
    )
    assert found._validated(prediction) == {"loss": 12 / 8, "supervised_tokens": 8}
    assert found.run.validation.exists() is first
    if first:
        assert read_jsonl(found.run.validation) == [
            {"step": 6, "row": row, "nll": nll, "tokens": tokens} for row, (nll, tokens) in costs.items()
        ]


def test_a_step_of_validation_gives_sums_without_a_gradient():
    found = trainer()
    found._prepare_inputs = lambda inputs: {"prepared": inputs}
    found.compute_loss_context_manager = torch.no_grad
    found._likelihood = lambda *given: (given, NLL_B, torch.tensor(torch.is_grad_enabled()))
    loss, nll_B, graded = found.prediction_step("model", "inputs", False)
    assert loss is None and nll_B is NLL_B and not graded
