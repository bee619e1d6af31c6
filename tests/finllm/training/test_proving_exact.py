"""What a proof holds and in which format, of which rows and tensors, whichever of them is the first or the last."""

import json
import warnings
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from finllm.errors import UserError
from finllm.models.proofs import Proof
from finllm.training import proving

IGNORED = -100


class Model:
    training, quantization_method = True, None

    def __init__(self, name="trained"):
        self.name, self.config = name, SimpleNamespace(name_or_path=name)

    def eval(self):
        return self

    train = to = lambda self, *given: self


class Trainer:
    """Notes each way that is set, and gives a batch of any rows these nats."""

    def __init__(self, nll_B=(), tokens_B=()):
        self.model, self.taken, self.on_cpu = Model(), [], True
        self.accelerator = SimpleNamespace(autocast=nullcontext, unwrap_model=lambda model, **bare: model)
        self.args = SimpleNamespace(device="cpu", packing=False)
        self.data_collator, self.packed, self._prepare_inputs = lambda rows: rows, list, lambda rows: rows
        self.nll_B, self.tokens_B = torch.tensor(nll_B), torch.tensor(tokens_B)
        self.joins_rows, self.uses_own_logits = False, False

    def set_way(self, rows, loss):
        self.taken.append((rows, loss))
        self.joins_rows, self.uses_own_logits = rows == "joined", loss == "logits"

    def _likelihood(self, model, rows):
        return self.nll_B.sum(), self.nll_B, self.tokens_B


def row(length, first=0):
    return {"input_ids": list(range(length)), "labels": [IGNORED] * first + list(range(first, length))}


@pytest.fixture(autouse=True)
def given(monkeypatch):
    monkeypatch.setattr(proving, "is_exact", lambda model: True)
    monkeypatch.setattr(proving, "in_float32", lambda model, **how: nullcontext())
    monkeypatch.setattr(proving, "base_of", lambda model: model)
    monkeypatch.setattr(proving.joined, "documents_of", lambda each: each if isinstance(each, list) else [each])


# Rows ----------------------------------------------------------------------------------------------------------------


def test_every_document_of_every_row_is_one_to_look_at():
    rows = [[row(1), row(2)], [row(3)], [row(4), row(5), row(6)]]
    assert [len(each["input_ids"]) for each in proving._documents(rows)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("lengths", "long", "probe"), [
    ([30, 50, 40, 20, 10], 50, [20, 10]), ([30, 60, 70], 70, [24, 16]), ([30], 30, [24]), ([5, 6], 6, [5, 6]),
])  # fmt: skip
def test_the_longest_row_and_the_last_two_are_looked_at(monkeypatch, lengths, long, probe):
    asked, trainer = [], Trainer()
    trainer.train_dataset = [row(length) for length in lengths]
    monkeypatch.setattr(proving, "_sees_no_future", lambda model, row: ("unseen", len(row["input_ids"])))
    monkeypatch.setattr(proving, "_way", lambda trainer, *given: asked.append(given) or ["way"])
    assert proving.prove(trainer) == ["unseen", "way"]
    ((rows, longest, long_N),) = asked
    assert [len(each["input_ids"]) for each in rows] == probe and len(longest["input_ids"]) == long_N == long


@pytest.mark.parametrize(("length", "end"), [(100, 100), (30, 30)])
def test_a_row_of_which_only_the_last_token_is_an_answer(length, end):
    found = proving.short_of(row(length, length - 1))
    assert len(found["input_ids"]) == len(found["labels"]) == end


def test_a_prediction_may_move_as_far_as_the_limit(monkeypatch):
    monkeypatch.setattr(proving, "future_difference", lambda *asked: (2e-4, 0.0, torch.tensor([1.0, 2.0])))
    proof, nll_N = proving._sees_no_future(Model(), {"input_ids": [1, 2, 3], "labels": [1, IGNORED, 3]})
    assert (proof.figure, proof.limit, proof.passed, nll_N.tolist()) == (2e-4, 2e-4, True, [2.0])


# Figures -------------------------------------------------------------------------------------------------------------


def test_figures_are_numbers_for_json_and_no_graph_is_turned_into_one():
    """torch warns where a number is made of what still has a gradient."""
    trainer = Trainer([2.0, 3.0], [1, 1])
    own_N = torch.tensor([2.0, 2.0])
    trainer.nll_B.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [
            *proving._own_loss(Trainer([2.0, 3.0]), [], own_N, {}, "way", "joined"),
            proving._apart(trainer, [], own_N, "joined"),
        ]
        apart = proving._nats_apart(trainer, ["a", "b"])
    assert [json.dumps(proof.as_json()["figure"]) for proof in found] == ["0.5", "0.5"]
    assert json.dumps(apart) == "2.5"  # 5 − 2 · 5, of two tokens


def test_a_figure_at_its_limit_is_good():
    trainer, own_N = Trainer(), torch.zeros(1, dtype=torch.float64)
    trainer.nll_B = torch.tensor([1e-4], dtype=torch.float64)
    for found in (
        proving._own_loss(trainer, [], own_N, {}, "way", "joined")[0],
        proving._apart(trainer, [], own_N, "way"),
    ):
        assert (found.figure, found.limit, found.passed) == (1e-4, 1e-4, True)


def test_rows_are_apart_by_sums_that_float32_does_not_hold():
    """16,777,217 is no number of float32; of one token no nat is shared out."""
    trainer = Trainer()
    nats = {1: [2.0**24], 2: [1.0], 3: [2.0**24, 1.0]}
    trainer._likelihood = lambda model, rows: (None, torch.tensor(nats[sum(rows)]), torch.tensor([1] + [0] * len(rows)))
    assert proving._nats_apart(trainer, [1, 2]) == 0
    nats[3] = [2.0**24, 4.0]
    assert proving._nats_apart(trainer, [1, 2]) == 3.0
    assert type(proving._nats_apart(trainer, [1, 2])) is float


def test_a_model_at_the_limit_is_not_refused(monkeypatch):
    monkeypatch.setattr(proving, "_nats_apart", lambda trainer, pair: 1e-4)
    proving._refuse_mixing(Trainer(), ["a", "b"])
    monkeypatch.setattr(proving, "_nats_apart", lambda trainer, pair: 1.001e-4)
    with pytest.raises(UserError, match="does not keep the rows of a batch apart"):
        proving._refuse_mixing(Trainer(), ["a", "b"])


# Coarse numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [("joined", "logits"), ("joined", "head"), ("padded", "head")])
@pytest.mark.parametrize(("apart", "good"), [(0.4, True), (0.5, True), (0.6, False)])
def test_gradients_are_as_coarse_as_the_models_own_against_those_in_float32(monkeypatch, way, apart, good):
    trainer, seen, inside = Trainer(), [], []

    @contextmanager
    def in_float32(model):
        inside.append("float32")
        yield
        inside.remove("float32")

    def own(model, rows):
        seen.append((rows, trainer.taken[-1], *inside))
        return None, f"own {' '.join(inside)}"

    def likelihood(model, rows):
        seen.append((rows, trainer.taken[-1], *inside))
        return "ours", None, None

    def farther(exact, own, ours, least, limit):
        assert (exact, own, ours) == ("own float32", "own ", "of ours")
        assert (least, limit) == (0.1, 0.2)
        return apart, 0.5, "w"

    monkeypatch.setattr(proving, "in_float32", in_float32)
    monkeypatch.setattr(proving, "nats_and_gradients", own)
    monkeypatch.setattr(proving, "gradients_of", lambda model, nll: f"of {nll}")
    monkeypatch.setattr(proving, "farther_than_its_own", farther)
    trainer._likelihood = likelihood
    proof = proving._as_coarse_as_its_own(trainer, ["rows"], "gradients", way)
    said = f"gradients are within {apart:.1g} of each tensor's in float32, the model's own within 0.2, of w"
    assert proof == Proof("gradients", apart, 0.5, good, said)
    padded = ("padded", way[1])
    assert seen == [(["rows"], padded, "float32"), (["rows"], padded), (["rows"], way)]
    assert trainer.taken == [padded, way]


@pytest.mark.parametrize(("passed", "again", "said"), [
    ([True], False, None), ([False], False, "0 is off"), ([True, True], False, None),
    ([False, True], False, "0 is off"), ([True, False], True, None), ([False, False], True, "0 is off"),
])  # fmt: skip
def test_only_gradients_that_are_far_apart_are_looked_at_again(monkeypatch, passed, again, said):
    trainer, asked = Trainer(), []
    proofs = [Proof(f"proof {number}", 1.0, 0.5, good, f"{number} is off") for number, good in enumerate(passed)]
    better = Proof("better", 0.1, 0.5, True, "fine")
    monkeypatch.setattr(proving, "nats_and_gradients", lambda model, rows: ([torch.zeros(1)], {}))
    monkeypatch.setattr(proving, "_own_loss", lambda *given: [*proofs])
    monkeypatch.setattr(proving, "_as_coarse_as_its_own", lambda *given: asked.append(given[1:]) or better)
    if said:
        with pytest.raises(UserError, match=rf"not good enough: {said} \(limit 0.5\); set bf16"):
            proving._coarsely(trainer, ["rows"])
    else:
        assert proving._coarsely(trainer, ["rows"]) == ([proofs[0], better] if again else proofs)
    assert asked == ([(["rows"], "proof 1", ("padded", "head"))] if again else [])


# What is told --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ways", "told"), [
    ([("joined", "head")], []), ([("joined", "logits")], ["every loss is made of the model's own logits"]),
    ([("padded", "head")], []), ([("joined", "head"), ("padded", "head")], ["rows are padded: joined head is off"]),
    ([("joined", "head"), ("padded", "logits")], ["rows are padded: joined head is off", "every loss is made of"]),
])  # fmt: skip
def test_why_a_slower_way_is_taken_is_told(monkeypatch, capsys, ways, told):
    """The last of these ways is the first that is good."""
    trainer = Trainer()
    trainer.ways = lambda plain: ways
    monkeypatch.setattr(proving, "head_difference", lambda model, ids: 0.0)
    monkeypatch.setattr(proving, "rounding_of", lambda model: 1e-4)
    monkeypatch.setattr(proving.kernels, "use_in", lambda model: None)
    monkeypatch.setattr(proving, "nats_and_gradients", lambda model, rows: ([torch.zeros(1)], {}))

    def own_loss(trainer, probe, own_N, gradients, way, rows):
        good = trainer.taken[-1] == ways[-1]
        return [Proof(f"loss, {way}", 0.3, 1e-4, good, f"{' '.join(trainer.taken[-1])} is off")]

    monkeypatch.setattr(proving, "_own_loss", own_loss)
    monkeypatch.setattr(proving, "_apart", lambda *given: Proof("apart", 0.0, 1.0, True, ""))
    found = proving._way(trainer, [row(3)], {}, torch.zeros(1))
    assert [proof.passed for proof in found] == [True, *([False, True] * (len(ways) - 1)), True, True]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(told) and all(line.startswith(each) for line, each in zip(lines, told, strict=True))


# Dropout, and what was saved -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trains", [(False, True, True), (True, True, False), (False, True, False)])
def test_what_trains_is_the_same_after_dropout_was_proved(monkeypatch, trains):
    """And its loss is a sum that float32 does not hold, by its tokens."""
    weights = [torch.nn.Parameter(torch.zeros(1), requires_grad=each) for each in trains]
    trainer = Trainer([2.0**24, 1.0], [1, 1])
    trainer.model.parameters = lambda: weights
    trainer.train_dataset = [row(30), row(5)]

    def prove_dropout(model, share, loss, limit):
        for weight in weights:
            weight.requires_grad_(True)
        return loss()

    monkeypatch.setattr(proving, "prove_dropout", prove_dropout)
    proof = proving.prove_dropout_of(trainer, 0.0)
    assert json.dumps(proof.as_json()["figure"]) == str((2**24 + 1) / 2)
    assert tuple(weight.requires_grad for weight in weights) == trains


def test_what_was_saved_is_held_against_what_was_trained_by_the_mean_of_all_tokens(monkeypatch, tmp_path):
    """One token that moved is not hidden by others that stayed; what is merged is held against nats in float64."""
    nats = {"trained": [1.0, 1.0, 1.0], "loaded": [1.0, 1.0, 1.0 + 3 * 2**-14]}
    monkeypatch.setattr(proving, "nll_of", lambda model, rows: torch.tensor(nats[model.name]))
    trainer, merged = Trainer(), []
    trainer.eval_dataset = [row(30)]
    loaded = Model("loaded")
    monkeypatch.setattr(proving, "PeftModel", Model)
    monkeypatch.setattr(proving, "merged_proof", lambda model, rows, own_N: merged.append(own_N) or "merged")
    found = proving.prove_saved(trainer, tmp_path, lambda folder: loaded)
    assert found[0].figure == 2**-14 and found[1] == "merged" and merged[0].dtype == torch.float64
    nats["loaded"][2] = 1.0 + 3 * 2**-13
    with pytest.raises(UserError, match=r"a validation row has 1\.000122 nats .* and 1\.000000 before saving"):
        proving.prove_saved(trainer, tmp_path, lambda folder: loaded)


def test_a_model_that_is_at_its_limit_from_what_was_trained_is_the_one(monkeypatch, tmp_path):
    nats = {"trained": 0.0, "loaded": 1e-4}
    monkeypatch.setattr(proving, "nll_of", lambda model, rows: torch.tensor([nats[model.name]], dtype=torch.float64))
    trainer = Trainer()
    trainer.eval_dataset = [row(30)]
    (proof,) = proving.prove_saved(trainer, tmp_path, lambda folder: Model("loaded"))
    assert (proof.figure, proof.limit, proof.passed) == (1e-4, 1e-4, True)
