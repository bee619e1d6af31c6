"""Which tensors are watched while a model trains and what is said of them, by models whose every tensor trains."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import SGD

from finllm.errors import UserError
from finllm.training import learning
from finllm.training.learning import Learning, allocation_proof, fingerprint, own_term, set_schedule


class Named(nn.Module):
    """Tensors with these names, each [1, 1], and nothing else."""

    def __init__(self, *names):
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.ones(2)))


def adapter(kind, parameters=(), **config):
    held = SimpleNamespace(peft_type=SimpleNamespace(value=kind), **config)
    return SimpleNamespace(peft_config={}, active_peft_config=held, base_model=SimpleNamespace(),
                           named_parameters=lambda: parameters)  # fmt: skip


def begun(model, **state):
    callback = Learning()
    callback.on_train_begin(None, SimpleNamespace(max_steps=100, **state), None, model=model)
    return callback


def stepped(callback, model, steps, gradient=None):
    """Steps of SGD with this gradient of every tensor, as the trainer tells of them."""
    optimizer = SGD(model.parameters(), lr=0.5)
    for step in range(steps):
        for weight in model.parameters():
            weight.grad = None if gradient is None else torch.tensor(gradient).expand_as(weight).clone()
        callback.on_pre_optimizer_step(None, None, None, model=model, optimizer=optimizer)
        optimizer.step()
        callback.on_optimizer_step(None, SimpleNamespace(global_step=step), None, model=model)
    return callback


def test_a_fingerprint_is_a_number_and_takes_no_part_in_the_gradient():
    """The numbers are those of IEEE 754: 1.0 is 0x3f800000 in float32 and 0x3f80 in bfloat16."""
    weight = nn.Parameter(torch.ones(3, 2))
    found = [fingerprint(each) for each in (weight, weight.data.T, weight.data.bfloat16(), weight[:2])]
    assert found == [6 * 0x3F800000, 6 * 0x3F800000, 6 * 0x3F80, 4 * 0x3F800000]
    assert {type(each) for each in found} == {int}


def test_the_first_tensor_is_watched_as_every_other():
    model = Named("a", "b", "c")
    callback = begun(model)
    assert (list(callback.still), callback.untouched, callback.count) == (["a", "b", "c"], {"a", "b", "c"}, 3)
    stepped(callback, model, 1, [1.0, 1.0])
    assert (callback.still, callback.untouched) == ({}, set())


def test_a_tensor_of_which_one_entry_has_a_gradient_is_touched():
    """As an embedding is, of which most tokens are in no row."""
    model = Named("a", "b")
    callback = stepped(begun(model), model, 1, [0.0, 1.0])
    assert (callback.still, callback.untouched) == ({}, set())


def test_a_tensor_of_another_kind_is_none_of_those_watched():
    """Its bits are not to be read so: of a shard, or of one that is quantized."""
    shard = type("Shard", (torch.Tensor,), {})
    model = Named("a")
    model.register_parameter("b", nn.Parameter(torch.ones(2).as_subclass(shard)))
    assert type(model.b.data) is shard and model.b.requires_grad
    callback = begun(model)
    assert (list(callback.still), callback.count) == (["a"], 1)


@pytest.mark.parametrize(("names", "said"), [((), None), (("a",), "1 of 1 trainable tensors have moved")])
def test_where_nothing_is_watched_nothing_is_proved(names, said):
    model = Named("a")
    callback = begun(Named(*names))
    stepped(callback, model, 3, [1.0, 1.0])
    proofs = callback.proof(model)
    assert [proof.said for proof in proofs] == ([said] if said else [])


def test_the_counts_of_a_proof_are_floats():
    model = Named("a", "b")
    (proof,) = stepped(begun(model), model, 2).proof(model)
    assert (repr(proof.figure), repr(proof.limit)) == ("2.0", "0.0")
    (proof,) = allocation_proof(adapter("ADALORA", rank_pattern={"a": [True, False]}, init_r=2, target_r=1))
    assert (repr(proof.figure), repr(proof.limit)) == ("1.0", "1.0")


def test_tensors_that_stood_still_are_told_in_order_but_for_those_known_to(monkeypatch):
    """A method's regular expression is looked for anywhere in the name."""
    model = Named("layer_e", "layer_d", "layer_c", "layer_b", "layer_a", "gate_d")
    model.active_peft_config = SimpleNamespace(peft_type=SimpleNamespace(value="KIND"))
    monkeypatch.setattr(learning, "known_method", lambda name: SimpleNamespace(silent="_d", silent_because="so it is"))
    callback = begun(model)
    model.layer_a.data.add_(1)
    stepped(callback, model, 3)
    with pytest.raises(UserError, match=r"^3 of 6 trainable tensors .* 3 steps: layer_b, layer_c, layer_e; raise"):
        callback.proof(model)
    callback.steps = 2
    (proof,) = callback.proof(model)
    assert (proof.figure, proof.limit, proof.passed) == (5.0, 2.0, False)
    assert proof.said == (
        "1 of 6 trainable tensors have moved; so it is; without a gradient, or with steps smaller than their rounding: "
        "layer_b, layer_c, layer_e"
    )


def test_training_begins_with_adaloras_phases():
    model = adapter("ADALORA", [("a", nn.Parameter(torch.ones(2)))], tinit=0, tfinal=0, init_r=12, target_r=8)
    begun(model)
    config = model.active_peft_config
    assert (config.total_step, config.tinit, config.tfinal) == (100, 10, 20)


@pytest.mark.parametrize(("steps", "phases"), [(19, ("1", "3")), (24, ("2", "4")), (29, ("2", "5"))])
def test_adaloras_phases_are_whole_steps(steps, phases):
    model = adapter("ADALORA", tinit=0, tfinal=0, init_r=12, target_r=8)
    set_schedule(model, steps)
    assert (repr(model.active_peft_config.tinit), repr(model.active_peft_config.tfinal)) == phases


def test_only_a_shadow_model_is_asked_for_its_own_loss():
    plain = {"kasa_config": None, "monteclora_config": None, "auxiliary_loss_weight": 0.25}
    for kind, term in (("LORA", 0.0), ("LOHA", 0.0), ("SHADOW", 2.0)):
        model = adapter(kind, **plain)
        model.base_model.shadow_auxiliary_loss = lambda labels: 8.0
        assert own_term(model, torch.zeros(1)) == term


def test_orthogonality_is_of_the_short_sides_of_a_and_b_alone_in_their_own_format():
    """A A^T is 14 and B^T B is 25 here; 13 and 24 are left of them. A^T A and B B^T have other norms."""
    a, b, weight = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0], [4.0]]), torch.full((2, 3), 9.0)
    parameters = [("x.lora_A.default", a), ("x.weight", weight), ("x.lora_B.default", b), ("x.lora_E.default", weight)]
    assert own_term(adapter("ADALORA", parameters, orth_reg_weight=0.5)).item() == 0.5 * (13 + 24) / 2
    coarse = [(name, tensor.bfloat16()) for name, tensor in parameters]
    term = own_term(adapter("ADALORA", coarse, orth_reg_weight=1.0))
    assert (term.dtype, term.item()) == (torch.bfloat16, 18.5)
