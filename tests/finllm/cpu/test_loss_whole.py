"""All of the loss: who needs a gradient and gets it, in which precision, and a model's own logits in its place."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear
from transformers import AutoModelForCausalLM, LlamaConfig

from finllm.cpu import loss
from finllm.cpu.loss import TiedGradient, add_supervised_head, aligned_head, is_plain, linear_cross_entropy, logits_at

N, C, V = 21, 6, 11


def drawn(*needs, dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    tensors = [torch.randn(*size, generator=generator).to(dtype) for size in ((N, C), (V, C), (V,))]
    for tensor, needed in zip(tensors, needs, strict=True):
        tensor.requires_grad_(needed)
    return *tensors, torch.randint(V, (N,), generator=generator)


@pytest.mark.parametrize("needs", [*itertools.product([True, False], repeat=3)][:-1], ids=str)
@pytest.mark.parametrize("filled", [True, False])
def test_whoever_needs_a_gradient_gets_it_and_nobody_else(monkeypatch, needs, filled):
    monkeypatch.setattr(loss, "has_amx", lambda: filled)
    monkeypatch.setattr(loss, "CHUNK", 8)
    monkeypatch.setattr(loss, "ALIGNED", 4)
    monkeypatch.setattr(loss, "BLOCK", 3)
    *ours, labels = drawn(*needs)
    *exact, _ = drawn(*needs, dtype=torch.float64)
    expected_N = cross_entropy(linear(*exact), labels, reduction="none")
    nll, nll_N = linear_cross_entropy(*ours[:2], labels, ours[2])
    assert nll_N.dtype == nll.dtype == torch.float32 and not nll_N.requires_grad and nll.requires_grad
    torch.testing.assert_close(nll_N.double(), expected_N.detach(), rtol=1e-5, atol=1e-5)
    (nll / 3).backward()
    (expected_N.sum() / 3).backward()
    for tensor, reference in zip(ours, exact, strict=True):
        assert (tensor.grad is None) == (reference.grad is None)
        if tensor.grad is not None:
            torch.testing.assert_close(tensor.grad.double(), reference.grad, rtol=1e-4, atol=1e-5)


def test_without_gradients_likelihoods_are_the_same():
    *tensors, labels = drawn(True, True, True)
    nll, nll_N = linear_cross_entropy(*tensors[:2], labels, tensors[2])
    with torch.no_grad():
        again, again_N = linear_cross_entropy(*tensors[:2], labels, tensors[2])
    assert torch.equal(nll.detach(), again) and torch.equal(nll_N, again_N) and not again.requires_grad


def test_a_share_of_a_coarse_gradient_is_taken_exactly():
    """A third is 0.334 in bfloat16, 0.2 % more: rounded is the gradient and not the factor."""
    found = []
    for factor in (1.0, 1 / 3):
        *tensors, labels = drawn(True, True, True, dtype=torch.bfloat16)
        (factor * linear_cross_entropy(*tensors[:2], labels, tensors[2])[0]).backward()
        found.append([tensor.grad for tensor in tensors])
        assert {gradient.dtype for gradient in found[-1]} == {torch.bfloat16}
    assert torch.equal(found[1][0], (found[0][0].float() / 3).bfloat16())
    for whole, third in zip(*found, strict=True):
        # Both are rounded, each to half of a 256th
        assert ((third.float() - whole.float() / 3).abs() <= whole.float().abs() / 3 * 2**-7 + 1e-8).all()


def test_a_biass_gradient_is_a_sum_in_float32_of_every_chunk(monkeypatch):
    """Of a head of zeros each of 8 tokens has an eighth, and a bias's gradient is N / 8 less how often it is right."""
    monkeypatch.setattr(loss, "CHUNK", 64)
    weight, bias = torch.zeros(8, C), torch.zeros(8, requires_grad=True)
    labels = torch.arange(1025) % 8
    with torch.autocast("cpu", torch.bfloat16):
        nll, _ = linear_cross_entropy(torch.ones(1025, C), weight, labels, bias)
    nll.backward()
    assert bias.grad.tolist() == [1025 / 8 - 129] + [1025 / 8 - 128] * 7
    bias.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        nll, _ = linear_cross_entropy(torch.ones(1025, C), weight, torch.zeros(1025, dtype=torch.long), bias)
    nll.backward()
    assert bias.grad.tolist() == [1025 / 8 - 1025] + [1025 / 8] * 7


@pytest.mark.parametrize(("count", "size"), [
    (0, 64), (1, 64), (64, 64), (65, 128), (2047, 2048), (2048, 2048), (2049, 1088), (4096, 2048), (4097, 1408),
])  # fmt: skip
def test_positions_go_through_the_head_in_even_chunks_of_up_to_2048(count, size):
    assert loss._chunk(count) == size


def test_a_head_that_stands_aligned_and_in_its_dtype_is_taken_as_it_is():
    weight, bias = torch.randn(64, C), torch.randn(64)
    found, found_bias = aligned_head(weight, bias, torch.float32)
    assert found is weight and torch.equal(found_bias, bias)
    for dtype, rows in ((torch.bfloat16, 64), (torch.float32, 65)):
        weight, bias = torch.randn(rows, C), torch.randn(rows)
        for trains in (True, False):
            found, found_bias = aligned_head(weight.requires_grad_(trains), bias, dtype)
            assert found.dtype == found_bias.dtype == dtype and len(found) == len(found_bias) == -(-rows // 64) * 64
            assert torch.equal(found[:rows], weight.detach().to(dtype)) and not found[rows:].any()
            assert torch.equal(found_bias[:rows], bias.to(dtype)) and not found_bias[rows:].any()
        assert aligned_head(weight, None, dtype)[0] is found and aligned_head(weight, None, dtype)[1] is None
        assert aligned_head(weight.requires_grad_(), None, dtype)[0] is not found


# A model's head ------------------------------------------------------------------------------------------------------

IDS = torch.arange(3, 43).view(2, 20) % 30
LABELS = IDS.clone()
LABELS[0, :15] = LABELS[1, :4] = LABELS[1, 9:] = -100  # row 0 learns its last five tokens, row 1 five of its middle
ROWS = [*range(14, 19), *range(3, 8)]  # the positions that predict them


def llama(tied=False):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=30, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
                         tie_word_embeddings=tied)  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def expected_of(model, **inputs):
    logits = model(**(inputs or {"input_ids": IDS})).logits[:, :-1]
    labels = LABELS[:, 1:]
    return cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")


def same_gradients(found, expected):
    for (name, ours), own in zip(found.named_parameters(), expected.named_parameters(), strict=True):
        assert (ours.grad is None) == (own[1].grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, own[1].grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("own_logits", [True, False])
@pytest.mark.parametrize("hooked", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_models_output_is_its_loss_of_each_supervised_token(monkeypatch, own_logits, hooked, tied):
    """Where a hook hangs on the head, in as many calls as there are chunks."""
    monkeypatch.setattr(loss, "CHUNK", 4)
    own, model, asked = llama(tied), llama(tied), []
    add_supervised_head(model)
    if hooked:
        model.lm_head.register_forward_pre_hook(lambda module, given: asked.append(tuple(given[0].shape)))
    output = model(input_ids=IDS, labels=LABELS, supervised_head=True, own_logits=own_logits)
    expected_N = expected_of(own)
    assert [*output] == ["nll", "nll_N", "mask"] and output.mask.tolist() == (LABELS[:, 1:] != -100).tolist()
    torch.testing.assert_close(output.nll_N, expected_N.detach())
    assert not output.nll_N.requires_grad and output.nll.item() == pytest.approx(expected_N.sum().item(), rel=1e-6)
    output.nll.backward()
    expected_N.sum().backward()
    same_gradients(model, own)
    # Own logits are those of ten positions, of which each row asks for five
    assert asked == ([(2, 10, 8)] if own_logits else [(4, 8), (4, 8), (2, 8)]) * hooked


def test_coarse_logits_of_a_models_own_are_read_in_float32(monkeypatch):
    for own_logits, hooked in ((True, False), (False, True), (False, False)):
        model = llama().bfloat16()
        model.lm_head.weight.data.zero_()
        if hooked:
            model.lm_head.register_forward_hook(lambda module, given, output: None)
        add_supervised_head(model)
        output = model(input_ids=IDS, labels=LABELS, supervised_head=True, own_logits=own_logits)
        assert output.nll_N.tolist() == pytest.approx([torch.tensor(30.0).log().item()] * 10, rel=1e-6)


def test_batches_of_own_logits_come_by_name():
    model = llama()
    add_supervised_head(model)
    with pytest.raises(AssertionError, match="by name"):
        model(IDS, labels=LABELS, supervised_head=True, own_logits=True)
    output = model(IDS, labels=LABELS, supervised_head=True)
    torch.testing.assert_close(output.nll_N, expected_of(llama()).detach())


def test_a_model_that_is_not_asked_for_its_supervised_head_answers_as_before():
    model, told = llama(), []
    forward = model.forward
    model.forward = lambda *given, **named: told.append((len(given), {*named})) or forward(*given, **named)
    add_supervised_head(model)
    own = llama()
    assert torch.equal(model(IDS).logits, own(IDS).logits) and model(IDS).loss is None
    assert model(IDS, labels=LABELS).loss.item() == pytest.approx(own(IDS, labels=LABELS).loss.item())
    assert model(input_ids=IDS, own_logits=True).logits.shape == (2, 20, 30)
    assert told == [(1, set()), (1, set()), (1, {"labels"}), (0, {"input_ids"})]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("embedded", [True, False])
def test_a_weight_that_embeds_and_is_the_head_gets_both_gradients_where_it_trains(frozen, embedded):
    """Embeddings that are given are asked for their gradient too, and nothing is looked up."""
    found = []
    for ours in (True, False):
        model = llama(tied=True)
        model.lm_head.weight.requires_grad_(not frozen)
        given = model.get_input_embeddings().weight.detach()[IDS].requires_grad_()
        inputs = {"inputs_embeds": given} if embedded else {"input_ids": IDS}
        if ours:
            add_supervised_head(model)
            model(**inputs, labels=LABELS, supervised_head=True).nll.backward()
        else:
            expected_of(model, **inputs).sum().backward()
        assert (model.lm_head.weight.grad is None) == frozen and (given.grad is None) != embedded
        found.append((model, given.grad))
    same_gradients(found[0][0], found[1][0])
    if embedded:
        torch.testing.assert_close(found[0][1], found[1][1])


def test_a_tied_gradient_waits_for_the_embeddings_once():
    tied = TiedGradient()
    hidden, weight, labels = torch.randn(3, C, requires_grad=True), torch.randn(V, C, requires_grad=True), [1, 2, 2]
    ids = torch.tensor([[4, 4], [10, 0]])
    looked_up = loss._TiedLookup.apply(weight, ids, tied)
    assert torch.equal(looked_up, weight[ids])
    nll, _ = linear_cross_entropy(hidden, weight, torch.tensor(labels), None, tied)
    nll.backward()
    assert weight.grad is None and tied.of_head.shape == (V, C)
    of_head = tied.of_head.clone()
    factors = torch.arange(1.0, 5).view(2, 2, 1)
    (looked_up * factors).sum().backward()
    of_head[[4, 10, 0]] += torch.tensor([[3.0], [3.0], [4.0]])
    torch.testing.assert_close(weight.grad, of_head)
    assert tied.of_head is None


@pytest.mark.parametrize("leaves_out", [True, False])
def test_own_logits_are_those_of_the_positions_that_are_asked_for(leaves_out):
    logits, asked = torch.arange(2 * 4 * 3).view(2, 4, 3), []

    def whole(ids):
        return SimpleNamespace(logits=logits)

    def some(ids, logits_to_keep):
        asked.append(logits_to_keep.tolist())
        return SimpleNamespace(logits=logits[:, logits_to_keep])

    where = torch.tensor([[False, True, False, True], [False, False, False, True]])
    found = logits_at(some if leaves_out else whole, where, ids=None)
    assert found.tolist() == [[3, 4, 5], [9, 10, 11], [21, 22, 23]] and asked == [[1, 3]] * leaves_out
    module = nn.Module()
    module.forward = some if leaves_out else whole
    assert torch.equal(logits_at(module, where, ids=None), found) and asked == [[1, 3]] * 2 * leaves_out


def test_a_module_is_plain_without_hooks_wrappers_and_a_forward_of_its_own():
    for register in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
                     "register_full_backward_pre_hook"):  # fmt: skip
        layer = nn.Linear(2, 2)
        assert is_plain(layer, nn.Linear)
        handle = getattr(layer, register)(lambda *given: None)
        assert not is_plain(layer, nn.Linear)
        handle.remove()
        assert is_plain(layer, nn.Linear)
    layer.forward = layer.forward
    assert not is_plain(layer, nn.Linear)
    assert not is_plain(nn.Bilinear(2, 2, 2), nn.Linear) and not is_plain(nn.LazyLinear(2), nn.Linear)
