"""The figures of finllm.models.proofs on models whose logits are set by hand, at what each is held against."""

import math
from types import SimpleNamespace

import pytest
import torch
from set_models import chain, save
from torch import nn
from transformers import AutoModelForCausalLM

from finllm.errors import UserError
from finllm.models import proofs
from finllm.models.gradients import farther_than_its_own, gradient_difference, gradients_of
from finllm.models.proofs import (
    Proof,
    future_difference,
    head_difference,
    in_float32,
    is_exact,
    nll_beside,
    nll_of,
    rounding_of,
    tokenizer_fits,
)  # fmt: skip

SET = (chain("\nA loan."), 0.5)
IDS = [byte + 1 for byte in b"So\nA loan. And on"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("set"), *SET, positions=64)


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_a_head_by_its_product_and_what_is_more_than_that(model):
    ids = torch.tensor([IDS])
    assert head_difference(model, ids) < 1e-6
    model.lm_head.bias = nn.Parameter(torch.linspace(-3, 3, 257))
    assert head_difference(model, ids) < 1e-6
    forward = model.forward

    def changed(change):
        def call(*arguments, **given):
            output = forward(*arguments, **given)
            output.logits = change(output.logits)
            return output

        model.forward = call
        return head_difference(model, ids)

    # The largest logit is 8 ln 2 before it is scaled to 60
    assert changed(lambda logits: logits * 1.25) == pytest.approx(0.2, rel=1e-4)
    assert 0.06 < changed(lambda logits: logits + 6) < 0.1  # 6 of 66 or a little more
    assert changed(lambda logits: 30 * torch.tanh(logits / 30)) > 0.5
    assert changed(lambda logits: logits * math.nan) == math.inf
    assert changed(lambda logits: logits[..., :-1]) == math.inf
    model.forward = forward
    head = model.lm_head
    model.get_output_embeddings = lambda: None
    assert head_difference(model, ids) == math.inf
    model.get_output_embeddings = lambda: SimpleNamespace(weight=torch.ones(3))
    assert head_difference(model, ids) == math.inf
    del model.get_output_embeddings
    handle = head.register_forward_pre_hook(lambda _, given: (given[0] * 2,))
    assert head_difference(model, ids) > 0.4  # what the head is given is not the last hidden state
    handle.remove()
    with torch.no_grad():
        head.weight.zero_()
        head.bias = None
    assert head_difference(model, ids) == 0
    with torch.no_grad():
        head.weight[0, 0] = math.inf
    assert head_difference(model, ids) == math.inf


def shifting(model, ahead, by=1.0, kept=None):
    """The logits of a position hold `by` times the logits of the one so many places ahead."""
    forward = model.forward

    def call(input_ids, **given):
        output = forward(input_ids=input_ids, **given)
        logits = output.logits
        logits[:, : logits.shape[1] - ahead] += by * logits[:, ahead:].clone()
        return output

    model.forward = call
    return model


@pytest.mark.parametrize("kept", [1, 8, 15])
def test_what_moves_when_later_tokens_change(model, kept):
    moved, rounding, nll = future_difference(model, IDS, kept, 1e-4)
    assert (moved, rounding) == (0, 0) and len(nll) == len(IDS) - 1
    # after "\n" its chain, one bit each; all else nine
    bits = [1 if IDS[n + 1] == SET[0][IDS[n]] else 9 for n in range(len(IDS) - 1)]
    assert (nll / math.log(2)).tolist() == pytest.approx(bits, rel=1e-5) and bits.count(1) == 7
    moved, rounding, _ = future_difference(shifting(model, 1), IDS, kept, 1e-4)
    assert moved > 1 and rounding == 0


def test_what_is_drawn_anew_is_rounding_and_what_is_no_number_moves(model):
    forward = model.forward

    def noisy(input_ids, **given):
        output = forward(input_ids=input_ids, **given)
        output.logits = output.logits + torch.rand_like(output.logits)
        return output

    model.forward = noisy
    moved, rounding, _ = future_difference(model, IDS, 8, 1e-4)
    assert moved > 0.1 and rounding > 0.1
    model.forward = lambda input_ids, **given: SimpleNamespace(logits=torch.full((len(input_ids), 17, 257), math.nan))
    assert future_difference(model, IDS, 8, 1e-4)[0] == math.inf


def test_the_own_nats_of_rows(model):
    rows = [{"input_ids": IDS, "labels": [-100] * 3 + IDS[3:]}, {"input_ids": IDS[:2], "labels": [-100, IDS[1]]}]
    nll = nll_of(model, rows)
    assert nll.requires_grad and len(nll) == len(IDS) - 3 + 1
    assert (nll.detach() / math.log(2)).tolist() == pytest.approx([1] * 7 + [9] * 7 + [9], rel=1e-5)


def test_rows_beside_each_other_have_their_own_nats(folder):
    """Whichever is the longer, and wherever their supervised tokens stand."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = [{"input_ids": IDS[:5], "labels": [-100] * 3 + IDS[3:5]}, {"input_ids": IDS, "labels": [-100] * 9 + IDS[9:]},
            {"input_ids": IDS[2:9], "labels": IDS[2:9]}]  # fmt: skip
    for order in ([0, 1, 2], [1, 2, 0], [2]):
        found = nll_beside(model, [rows[index] for index in order])
        for index, nll in zip(order, found, strict=True):
            assert nll.requires_grad and torch.allclose(nll, nll_of(model, [rows[index]]))
    assert [len(nll) for nll in nll_beside(model, rows)] == [2, 8, 6]
    asked = []
    forward = model.forward
    model.forward = lambda input_ids, **given: asked.append(input_ids.tolist()) or forward(input_ids=input_ids, **given)
    nll_beside(model, rows)
    assert asked == [[IDS[:5] + IDS[4:5] * 12, IDS, IDS[2:9] + IDS[8:9] * 10]]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([1.0]))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)


def test_how_far_gradients_are_apart():
    """Of `a` the own gradient is (6, 8), so a tenth of it is 0.1 apart; of `b` 1."""
    model = Two()
    own = lambda: gradients_of(model, (model.a**2).sum() + model.b.sum())  # noqa: E731
    assert gradient_difference(model, own(), (model.a**2).sum() + model.b.sum(), 1e-3)[0] < 1e-6
    share, name = gradient_difference(model, own(), 1.1 * (model.a**2).sum() + model.b.sum(), 1e-3)
    assert (share, name) == (pytest.approx(0.1, rel=1e-4), "a")
    share, name = gradient_difference(model, own(), (model.a**2).sum() - model.b.sum(), 1e-3)
    assert (share, name) == (pytest.approx(2), "b")
    share, name = gradient_difference(model, own(), (model.a**2).sum() - model.b.sum(), 0.5)
    assert (share, name) == (pytest.approx(2 / (0.5 * math.sqrt(101)), rel=1e-4), "b")
    share, name = gradient_difference(model, own(), (model.a**2).sum() + (model.b * math.nan).sum(), 1e-3)
    assert (share, name) == (math.inf, "b")
    assert model.a.grad is None and model.b.grad is None
    assert gradient_difference(model, gradients_of(model, (model.a * 0).sum()), model.a.sum(), 1e-3)[0] > 1e20


class Three(nn.Module):
    """`b` stands between the others, so that the first and the last both have a share in the norm of all."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.ones(2)) for _ in range(3))

    def loss(self, a, b, c):
        """One whose gradients are (a, 0), (b, 0) and (c, 0)."""
        return a * self.a[0] + b * self.b[0] + c * self.c[0]


def test_a_gradient_that_is_rounding_is_measured_by_the_norm_of_all():
    """Of (3, 0, 4) the norm is 5, of which a tenth is 0.5."""
    model = Three()
    exact = gradients_of(model, model.loss(3.0, 0.0, 4.0))
    own, ours = (3.0, 0.0, 4.0), (3.0, 2.0, 4.0)
    found = farther_than_its_own(exact, *(gradients_of(model, model.loss(*each)) for each in (own, ours)), 0.1, 0.25)
    assert found == (pytest.approx(4.0, rel=1e-6), 0.25, "b")
    assert [type(figure) for figure in found[:2]] == [float, float]
    nothing = gradients_of(model, model.loss(0.0, 0.0, 0.0))
    found = farther_than_its_own(nothing, nothing, gradients_of(model, model.loss(0.0, 0.0, 2.0)), 0.1, 0.25)
    assert found == (pytest.approx(2e30, rel=1e-6), 0.25, "c")


def test_the_farthest_gradient_is_the_one_farthest_beyond_what_it_may_be():
    """The own one of `a` is once its size away, so that ours may be twice, and is 1.5 times; `b` is 0.75 away."""
    model = Three()
    exact = gradients_of(model, model.loss(2.0, 4.0, 4.0))
    own, ours = (gradients_of(model, model.loss(*each)) for each in ((4.0, 4.0, 4.0), (5.0, 7.0, 4.0)))
    found = farther_than_its_own(exact, own, ours, 0.1, 0.25)
    assert found == (0.75, 0.25, "b")


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_gradient_that_is_no_number_is_the_farthest_wherever_it_stands(name):
    model = Three()
    exact = gradients_of(model, model.loss(3.0, 1.0, 4.0))
    ours = gradients_of(model, model.loss(**{"a": 9.0, "b": 9.0, "c": 9.0, name: math.nan}))
    apart, may, found = farther_than_its_own(exact, exact, ours, 0.1, 0.25)
    assert math.isnan(apart) and (may, found) == (0.25, name)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_model_that_holds_a_gradient_already_is_refused_whichever_it_is_of(name):
    model = Three()
    getattr(model, name).grad = torch.ones(2)
    with pytest.raises(AssertionError, match="before the first step"):
        gradient_difference(model, {}, model.loss(3.0, 1.0, 4.0), 0.1)
    with pytest.raises(AssertionError, match="before the first step"):
        gradients_of(model, model.loss(3.0, 1.0, 4.0))
    assert getattr(model, name).grad.tolist() == [1, 1]


def test_gradients_are_of_sums_of_nats_and_their_norms_are_taken_in_float32():
    """The own one is (1, 1), whose norm would be 1.4141 in bfloat16; ours is (1, 2), so they are (0, 1) apart."""
    model = nn.Module()
    model.a = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    own, ours = model.a * torch.tensor([1.0, 1.0]), model.a * torch.tensor([1.0, 2.0])
    share, name = gradient_difference(model, gradients_of(model, own), ours, 0.1)
    assert (share, name) == (pytest.approx(1 / math.sqrt(2), rel=1e-6), "a") and type(share) is float
    assert gradients_of(model, model.a * torch.tensor([1.0, 2.0]))["a"].tolist() == [1, 2]


def test_what_no_loss_reaches_has_a_gradient_of_zeros():
    model = Three()
    for each in (model.a, model.c):
        each.data = each.data.bfloat16()
    model.b.requires_grad_(False)
    found = gradients_of(model, 2 * model.c.sum())
    assert {name: gradient.tolist() for name, gradient in found.items()} == {"a": [0, 0], "c": [2, 2]}
    assert {gradient.dtype for gradient in found.values()} == {torch.float32} and model.c.grad is None
    share, name = gradient_difference(model, found, 2 * model.c.sum(), 0.1)
    assert (str(share), name) == ("0.0", "a")  # the first of those that are equally far, and no −0.0, which is shown
    share, name = gradient_difference(model, found, 2 * model.c.sum() + model.a.sum(), 0.1)
    assert (share, name) == (pytest.approx(math.sqrt(2) / (0.1 * math.sqrt(8)), rel=1e-6), "a")


@pytest.mark.parametrize(("memory", "held"), [(6 * 2 * 16, True), (6 * 2 * 16 - 1, False)])
def test_what_is_held_beside_comes_back_unless_it_was_changed(monkeypatch, memory, held):
    """Six numbers of two bytes, a buffer's among them."""
    monkeypatch.setattr("finllm.models.proofs.memory_bytes", lambda: memory)
    model = Two().bfloat16()
    model.register_buffer("kept", torch.ones(2, dtype=torch.float16))
    before = model.state_dict()  # held, so that nobody else is given their places
    places = {name: tensor.data_ptr() for name, tensor in before.items()}
    sizes = {tensor.dtype.itemsize * tensor.numel() for tensor in model.state_dict().values()}
    assert sizes == {2, 4}
    with torch.no_grad(), in_float32(model, beside=True):
        assert is_exact(model) and model.kept.dtype == torch.float32
        model.b.add_(1.0)  # to 2, as a step would
    found = model.state_dict()
    assert {str(tensor.dtype) for tensor in found.values()} == {"torch.bfloat16", "torch.float16"}
    assert (found["a"].tolist(), found["b"].tolist(), found["kept"].tolist()) == ([3, 4], [2], [1, 1])
    same = {name for name, tensor in found.items() if tensor.data_ptr() == places[name]}
    assert same == ({"a", "frozen", "kept"} if held else set())
    with pytest.raises(ZeroDivisionError), in_float32(model, beside=True):
        raise ZeroDivisionError
    assert not is_exact(model)
    last = model.state_dict()
    with in_float32(model):  # and nothing is held where nobody asks for it
        pass
    assert {name for name, tensor in model.state_dict().items() if tensor.data_ptr() == last[name].data_ptr()} == set()
    with in_float32(model, beside=True, used_up=True):
        pass
    assert is_exact(model)


def test_precision_and_what_it_is_turned_back_into(model):
    assert is_exact(model) and rounding_of(model) == 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_exact(model) and rounding_of(model) == 2**-5
        with in_float32(model):
            assert is_exact(model)
    model.transformer.wte.bfloat16()
    model.lm_head.half()
    model.register_buffer("kept", torch.ones(1, dtype=torch.bfloat16))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not is_exact(model)
    with in_float32(model):
        assert is_exact(model) and model.kept.dtype == torch.float32
        assert model.transformer.wte.weight.dtype == model.lm_head.weight.dtype == torch.float32
    after = model.state_dict()
    assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in before.items()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    tied = Two()
    tied.register_parameter("again", tied.a)
    tied.bfloat16()
    with in_float32(tied, used_up=True):
        assert tied.again is tied.a and is_exact(tied)
    assert is_exact(tied), "it is done with"
    with pytest.raises(ZeroDivisionError), in_float32(model):
        raise ZeroDivisionError
    assert model.lm_head.weight.dtype == torch.float16 and is_exact(Two().double())
    layer = nn.Module()
    layer.compute_dtype = torch.bfloat16
    told = Two()
    told.layer = layer
    assert not is_exact(told)
    with in_float32(told):
        assert is_exact(told)
    assert layer.compute_dtype == torch.bfloat16
    quantised = Two()
    quantised.a.data = quantised.a.data.bfloat16()
    quantised.a.quant_state = 1
    with in_float32(quantised):
        assert quantised.a.dtype == torch.bfloat16 and is_exact(quantised)


def test_a_proof_as_json():
    assert Proof("n", 0.5, 1.0, True, "s").as_json() == {
        "name": "n", "figure": 0.5, "limit": 1.0, "passed": True, "said": "s"
    }  # fmt: skip
    assert [Proof("n", each, 1, False, "s").as_json()["figure"] for each in (math.inf, math.nan, None, 0.0)] == [
        None, None, None, 0.0
    ]  # fmt: skip


def tokenizer(rows, beyond=(), special=(), pad=0):
    added, names = (
        {id: SimpleNamespace(special=True) for id in special},
        {f"t{id}": id for id in [*range(rows), *beyond]},
    )
    return SimpleNamespace(
        pad_token_id=pad, eos_token="end", pad_token="pad", bos_token_id=0, eos_token_id=0, unk_token_id=None,
        all_special_ids=[0], added_tokens_decoder=added, get_vocab=lambda: names,
    )  # fmt: skip


def test_ids_beyond_the_embedding(model):
    model.config.name_or_path = "m"
    assert tokenizer_fits(tokenizer(257), model) is None
    with pytest.raises(UserError, match="has 2 tokens beyond the model's embedding, up to 't300' with id 300, and the "
                                        "embedding has 257 rows"):  # fmt: skip
        tokenizer_fits(tokenizer(258, [300]), model)
    assert tokenizer_fits(tokenizer(257, [257, 258], special=[257, 258]), model) is None
    with pytest.raises(UserError, match="has 1 tokens beyond the model's embedding, up to 't258' with id 258"):
        tokenizer_fits(tokenizer(257, [257, 258], special=[257, 258]), model, written=[258])
    added = tokenizer(257, [257], special=[257])
    added.added_tokens_decoder[257].special = False
    with pytest.raises(UserError, match="up to 't257' with id 257"):
        tokenizer_fits(added, model)
    padded = tokenizer(257, pad=257)
    tokenizer_fits(padded, model)
    assert padded.pad_token == "end"
    inside = tokenizer(257, pad=256)
    tokenizer_fits(inside, model)
    assert inside.pad_token == "pad"
    assert proofs.LARGE == 60.0


def test_a_gradient_may_be_twice_as_far_from_float32s_as_the_models_own():
    model = nn.Module()
    model.a, model.b = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2))
    exact = gradients_of(model, (model.a * torch.tensor([6.0, 8.0])).sum() + (0.001 * model.b).sum())
    assert exact["a"].tolist() == [6, 8] and model.a.grad is None

    def compared(own, ours, limit=0.2):
        losses = [(model.a * torch.tensor([6.0, 8.0]) * factor).sum() + 0 * model.b.sum() for factor in (own, ours)]
        return farther_than_its_own(exact, *(gradients_of(model, loss) for loss in losses), 0.1, limit)

    assert compared(1.0, 1.1) == (pytest.approx(0.1), 0.2, "a")
    assert compared(1.3, 1.5) == (pytest.approx(0.5), pytest.approx(0.6), "a")
    apart, may, _ = compared(1.05, 1.5)
    assert apart > may == pytest.approx(0.2)
    apart, may, _ = compared(1.0, math.nan)
    assert not apart <= may
