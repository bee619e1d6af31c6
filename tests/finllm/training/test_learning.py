"""Whether all that trains has learned, and what a method does beside the optimizer: on weights that are set."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import SGD

from finllm.errors import UserError
from finllm.training import learning
from finllm.training.learning import Learning, allocate, allocation_proof, fingerprint, own_term, set_schedule


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
def test_a_fingerprint_sees_the_smallest_step(dtype):
    tensor = torch.arange(1, 13).to(dtype).view(3, 4)
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    other = tensor.clone()
    other.view(bits)[1, 2] += 1  # the next number
    assert fingerprint(tensor) == fingerprint(tensor.clone()) != fingerprint(other)
    assert fingerprint(tensor.T) == fingerprint(tensor)


class Model(nn.Module):
    def __init__(self, count=4):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(2)) for _ in range(count)])
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.empty = nn.Parameter(torch.ones(0))


def trained(model, rates, gradients, steps=3, left_out=()):
    """Steps of SGD in which tensor `i` has the gradient `gradients[i]`, or none; the callback's own view of them."""
    callback, state = Learning(), SimpleNamespace(max_steps=steps, global_step=0)
    callback.on_train_begin(None, state, None, model=model)
    optimizer = SGD([weight for number, weight in enumerate(model.weights) if number not in left_out], lr=0.0)
    for step in range(steps):
        for weight, gradient in zip(model.weights, gradients, strict=True):
            weight.grad = None if gradient is None else torch.full((2,), gradient)
        optimizer.param_groups[0]["lr"] = rates[step]
        callback.on_pre_optimizer_step(None, state, None, model=model, optimizer=optimizer)
        optimizer.step()
        callback.on_optimizer_step(None, state, None, model=model)
    return callback


def adapted(model, silent=None):
    """As an adapter of a method that knows of tensors that stand still."""
    model.peft_config = {}
    model.active_peft_config = SimpleNamespace(peft_type=SimpleNamespace(value="KIND"))
    return SimpleNamespace(silent=silent, silent_because="they are silent")


def test_what_has_moved_and_what_has_not():
    (proof,) = trained(Model(), [0.5] * 3, [1.0, 1.0, 0.0, None]).proof(Model())
    assert (proof.name, proof.figure, proof.limit, proof.passed) == ("has learned", 2.0, 0.0, False)
    assert proof.said == ("2 of 4 trainable tensors have moved; without a gradient, or with steps smaller than their "
                          "rounding: weights.2, weights.3")  # fmt: skip
    (proof,) = trained(Model(), [0.5] * 3, [1.0] * 4).proof(Model())
    assert proof.passed and proof.figure == 0 and proof.said == "4 of 4 trainable tensors have moved"


@pytest.mark.parametrize(("rates", "said"), [([0.5] * 3, True), ([0.0, 0.5, 0.5], False), ([0.5] * 2, False)])
def test_where_nothing_moves_in_three_steps_a_run_is_refused(rates, said):
    callback = trained(Model(), rates, [0.0] * 4, steps=len(rates))
    if said:
        with pytest.raises(UserError, match=r"4 of 4 trainable tensors are what they were .* 3 steps: weights.0"):
            callback.proof(Model())
    else:
        assert callback.proof(Model())[0].passed is False
    assert trained(Model(), [0.0] * 3, [1.0] * 4).proof(Model()) == []  # no step was taken
    assert Learning().proof(Model()) == []


@pytest.mark.parametrize(("rates", "counted"), [
    ((0.5, 0.0), 1), ((0.0, 0.5), 1), ((0.5, 0.5), 1), ((0.0, 0.0), 0), ((0.0, 1e-9), 1),
])  # fmt: skip
def test_a_step_counts_where_any_group_of_the_optimizer_has_a_rate(rates, counted):
    model, callback = Model(2), Learning()
    optimizer = SGD([{"params": [weight], "lr": rate} for weight, rate in zip(model.weights, rates, strict=True)])
    callback.on_train_begin(None, SimpleNamespace(max_steps=3), None, model=model)
    callback.on_pre_optimizer_step(None, None, None, model=model, optimizer=optimizer)
    assert callback.steps == counted


@pytest.mark.parametrize(("silent", "gradients", "left_out", "refused"), [
    (None, [1.0, 1.0, 1.0, 0.0], (), True), (None, [1.0] * 4, (3,), True),
    (r"weights\.3", [1.0, 1.0, 1.0, 0.0], (), False), (r"weights\.2", [1.0, 1.0, 1.0, 0.0], (), True),
    (None, [1.0, 1.0, 1.0, 1e-30], (), False),
])  # fmt: skip
def test_a_methods_tensor_without_a_gradient_is_refused_but_where_it_is_known_to_stand_still(
    monkeypatch, silent, gradients, left_out, refused
):
    model = Model()
    monkeypatch.setattr(learning, "known_method", lambda name: adapted(model, silent) if name == "KIND" else None)
    adapted(model)
    callback = trained(model, [0.5] * 3, gradients, left_out=left_out)
    if refused:
        with pytest.raises(UserError, match=r"1 of 4 trainable tensors .*: weights\.3; raise learning_rate"):
            callback.proof(model)
        return
    (proof,) = callback.proof(model)
    known = silent is not None
    assert (proof.figure, proof.limit, proof.passed) == (1.0, float(known), known)
    assert ("they are silent" in proof.said) is known and ("weights.3" in proof.said) is not known


def test_every_tensor_of_every_group_of_the_optimizer_is_touched_by_a_gradient():
    model, callback = Model(7), Learning()
    callback.on_train_begin(None, SimpleNamespace(max_steps=3), None, model=model)
    groups = [[*model.weights[:2]], [*model.weights[2:4]], [*model.weights[4:6]]]
    optimizer = SGD([{"params": group} for group in groups], lr=0.5)
    for weight in model.weights:
        weight.grad = torch.ones(2)
    callback.on_pre_optimizer_step(None, None, None, model=model, optimizer=optimizer)
    assert callback.untouched == {"weights.6"}  # it is in no group


def test_what_has_moved_without_a_gradient_is_not_refused(monkeypatch):
    model = Model()
    monkeypatch.setattr(learning, "known_method", lambda name: adapted(model))
    adapted(model)
    callback = trained(model, [0.5] * 3, [1.0, 1.0, 1.0, 0.0])
    with torch.no_grad():
        model.weights[3].mul_(0.5)  # as weight decay does
    callback.on_optimizer_step(None, SimpleNamespace(global_step=3), None, model=model)
    (proof,) = callback.proof(model)
    assert (callback.untouched, proof.figure, proof.passed) == ({"weights.3"}, 0.0, True)


# AdaLoRA -------------------------------------------------------------------------------------------------------------


def adalora(kind="ADALORA", **config):
    defaults = {"tinit": 0, "tfinal": 0, "init_r": 12, "target_r": 8, "total_step": None, "rank_pattern": None,
                "orth_reg_weight": 0.5, "kasa_config": None, "monteclora_config": None,
                "auxiliary_loss_weight": 0.25}  # fmt: skip
    held = SimpleNamespace(peft_type=SimpleNamespace(value=kind), **defaults | config)
    return SimpleNamespace(peft_config={}, active_peft_config=held, base_model=SimpleNamespace(),
                           named_parameters=lambda: [])  # fmt: skip


@pytest.mark.parametrize(("steps", "given", "phases"), [
    (100, {}, (10, 20)), (10, {}, (1, 2)), (9, {}, (0, 0)), (100, {"tinit": 5}, (5, 0)), (100, {"tfinal": 7}, (0, 7)),
    (13, {"tinit": 5, "tfinal": 7}, (5, 7)),
])  # fmt: skip
def test_adaloras_phases_are_shares_of_the_run_but_where_they_are_given(steps, given, phases):
    model = adalora(**given)
    set_schedule(model, steps)
    config = model.active_peft_config
    assert (config.tinit, config.tfinal, config.total_step) == (*phases, steps)


def test_phases_that_do_not_fit_and_ranks_that_cannot_fall_are_refused():
    with pytest.raises(
        UserError, match=r"tinit \(5\) and peft\.tfinal \(7\) together are not below the run's 12 steps"
    ):
        set_schedule(adalora(tinit=5, tfinal=7), 12)
    with pytest.raises(UserError, match=r"target_r is 12 and peft\.init_r 12: AdaLoRA takes ranks away"):
        set_schedule(adalora(target_r=12), 100)
    other = adalora("LORA", target_r=12)
    set_schedule(other, 100)
    assert other.active_peft_config.total_step is None
    set_schedule(SimpleNamespace(), 100)


def test_ranks_are_moved_after_every_step_of_a_method_that_does():
    model, steps = adalora(), []
    model.base_model.update_and_allocate = steps.append
    Learning().on_optimizer_step(None, SimpleNamespace(global_step=4), None, model=model)
    allocate(SimpleNamespace(base_model=model.base_model), 9)  # no adapter
    allocate(adalora(), 9)
    assert steps == [5]


def test_what_became_of_ranks():
    pattern = {"a": [True, False, True], "b": [True, True, True], "c": [False, False, True]}
    (proof,) = allocation_proof(adalora(rank_pattern=pattern, init_r=3, target_r=2))
    assert (proof.name, proof.figure, proof.limit, proof.passed) == ("ranks moved", 2.0, 2.0, True)
    assert "3 in each of 3 layers became 1 to 3, 2.0 on average (target 2)" in proof.said
    (proof,) = allocation_proof(adalora(rank_pattern={"a": [True, True]}, init_r=2, target_r=1))
    assert (proof.figure, proof.passed) == (2.0, False)
    for nothing in (None, {}):
        with pytest.raises(UserError, match="AdaLoRA moved no rank"):
            allocation_proof(adalora(rank_pattern=nothing))
    assert allocation_proof(SimpleNamespace()) == [] == allocation_proof(adalora("LORA"))


# A method's own term -------------------------------------------------------------------------------------------------


def test_what_a_method_adds_to_the_loss():
    model = adalora()
    a, b = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0], [4.0]])
    model.named_parameters = lambda: [("x.lora_A.default", a), ("x.weight", a), ("x.lora_B.default", b)]
    # AAᵀ − I is [[4, 2], [2, 0]], BᵀB − I is [[24]]
    assert own_term(model).item() == pytest.approx(0.5 * ((16 + 4 + 4) ** 0.5 + 24) / 2)
    for key, name, term in (("kasa_config", "_get_kasa_loss", 3.0), ("monteclora_config", "_get_monteclora_loss", 4.0)):
        model = adalora("LORA", **{key: "set"})
        setattr(model.base_model, name, lambda term=term: term)
        assert own_term(model) == term
        model.active_peft_config.peft_type.value = "OTHER"
        assert own_term(model) == 0.0
    assert [str(own_term(model)) for model in (adalora("LORA"), SimpleNamespace())] == ["0.0", "0.0"]


@pytest.mark.parametrize(("labels", "weight", "loss", "term"), [
    ("labels", 0.25, 8.0, 2.0), (None, 0.25, 8.0, 0.0), ("labels", 0.0, 8.0, 0.0), ("labels", 0.25, None, 0.0),
])  # fmt: skip
def test_the_loss_of_a_shadow_model_is_weighed(labels, weight, loss, term):
    model, asked = adalora("SHADOW", auxiliary_loss_weight=weight), []
    model.base_model.shadow_auxiliary_loss = lambda given: asked.append(given) or loss
    assert own_term(model, labels) == term and asked == ([labels] if labels and weight else [])
