"""Attention, blocks and positions against values worked out by hand, each other, and torch's own."""

import math

import pytest
import torch

from baselines.scratch.attention import Keys, MultiHeadAttention, Visible, attend_fast, attend_plain
from baselines.scratch.blocks import Block
from baselines.scratch.positional import LearnedPositions, Rotation, SinusoidalPositions
from finllm.errors import UserError
from tests.baselines.scratch.conftest import shuffled_weights


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_plain_and_fast_attention_agree(causal, padded):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 7, 8, requires_grad=True) for _ in range(3))
    visible = Visible(causal, torch.arange(7)[None] < torch.tensor([[7], [4], [1]]) if padded else None)
    results = []
    for attend in (attend_plain, attend_fast):
        heads = attend(q, Keys(k, v, visible))
        results.append((heads, *torch.autograd.grad(heads.square().sum(), (q, k, v))))
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(plain, fast)


def test_plain_and_fast_cross_attention_agree():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 8), torch.randn(3, 2, 9, 8), torch.randn(3, 2, 9, 8)
    for keys_BS in (None, torch.arange(9)[None] < torch.tensor([[9], [4], [1]])):
        keys = Keys(k, v, Visible(keys_BS=keys_BS))
        torch.testing.assert_close(attend_plain(q, keys), attend_fast(q, keys))


def test_attention_by_hand():
    q = torch.tensor([[[[2.0], [0.0]]]])  # D = 1, so scores are q · k
    k = torch.tensor([[[[0.0], [math.log(3) / 2]]]])
    v = torch.tensor([[[[4.0], [8.0]]]])
    by_hand = [
        (Visible(), [(4 + 3 * 8) / 4, 6.0]),
        (Visible(causal=True), [4.0, 6.0]),
        (Visible(keys_BS=torch.tensor([[False, True]])), [8.0, 8.0]),
    ]
    for visible, expected in by_hand:
        assert attend_plain(q, Keys(k, v, visible)).flatten().tolist() == pytest.approx(expected)


def test_padding_hides_keys_from_causal_queries_too():
    """Query t sees the keys 0 … t that are text, and none else: the first of the second text is padding."""
    keys_BS = torch.tensor([[True, True, False], [True, False, True]])
    k = torch.zeros(2, 1, 3, 1)
    assert Visible(True, keys_BS).mask(k).tolist() == [
        [[[True, False, False], [True, True, False], [True, True, False]]],
        [[[True, False, False], [True, False, False], [True, False, True]]],
    ]
    assert Visible(True).mask(k).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert Visible(keys_BS=keys_BS).mask(k).tolist() == [[[[True, True, False]]], [[[True, False, True]]]]
    assert Visible().mask(k) is None
    v = torch.tensor([1.0, 10.0, 100.0]).view(1, 1, 3, 1).expand(2, 1, 3, 1)
    for attend in (attend_plain, attend_fast):
        found = attend(torch.zeros(2, 1, 3, 1), Keys(k, v, Visible(True, keys_BS)))
        assert found.flatten().tolist() == pytest.approx([1, 5.5, 5.5, 1, 1, 50.5])


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(16, 4), torch.nn.MultiheadAttention(16, 4, bias=False, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.out_proj.weight.copy_(ours.output.weight)
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    keys_BS = torch.arange(7)[None] < torch.tensor([[7], [3]])
    expected, _ = theirs(x, memory, memory, key_padding_mask=~keys_BS)
    torch.testing.assert_close(ours(x, Keys(*ours.keys_of(memory), Visible(keys_BS=keys_BS))), expected)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("cross", [True, False])
def test_a_block_is_that_of_torch(norm, cross):
    """The same as nn.TransformerEncoderLayer, or nn.TransformerDecoderLayer, with the same weights and no biases."""
    torch.manual_seed(0)
    ours = shuffled_weights(Block(16, 4, 32, 0.1, norm, cross)).eval()
    kind = torch.nn.TransformerDecoderLayer if cross else torch.nn.TransformerEncoderLayer
    theirs = kind(16, 4, 32, activation="gelu", batch_first=True, norm_first=norm == "pre").eval()
    norms = [ours.attention_norm, *([ours.cross_attention_norm] if cross else []), ours.feed_forward_norm]
    pairs = [(ours.attention, theirs.self_attn), *([(ours.cross_attention, theirs.multihead_attn)] if cross else [])]
    with torch.no_grad():
        for a, b in pairs:
            b.in_proj_weight.copy_(torch.cat([a.query.weight, a.key.weight, a.value.weight]))
            b.out_proj.weight.copy_(a.output.weight)
            b.in_proj_bias.zero_(), b.out_proj.bias.zero_()
        linear = [(ours.feed_forward.inner, theirs.linear1), (ours.feed_forward.output, theirs.linear2)]
        for a, b in [*linear, *((norm, getattr(theirs, f"norm{n}")) for n, norm in enumerate(norms, 1))]:
            b.load_state_dict(a.state_dict())
    x, memory = torch.randn(3, 7, 16), torch.randn(3, 5, 16)
    text_BT, text_BS = (torch.arange(n)[None] < torch.tensor([[n], [3], [1]]) for n in (7, 5))
    if cross:
        keys = Keys(*ours.cross_attention.keys_of(memory), Visible(keys_BS=text_BS))
        future = torch.ones(7, 7, dtype=torch.bool).triu(1)
        expected = theirs(x, memory, tgt_mask=future, memory_key_padding_mask=~text_BS)
        found = ours(x, Visible(causal=True), prompt=keys)
    else:
        expected = theirs(x, src_key_padding_mask=~text_BT)
        found = ours(x, Visible(keys_BS=text_BT))
        expected, found = expected[text_BT], found[text_BT]  # torch leaves zeros where padding is
    torch.testing.assert_close(found, expected)


def test_rotary_positions_by_hand():
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4).expand(1, 1, 2, 4)
    turned = Rotation.at(torch.tensor([[0, 3]]), 4)(x)[0, 0]
    assert turned[0].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert turned[1].tolist() == pytest.approx([math.cos(3), math.sin(3), -math.sin(3 / 100), math.cos(3 / 100)])


def test_rotary_products_know_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    at = lambda position: Rotation.at(torch.tensor([[position]]), 8)  # noqa: E731
    products = [(at(t)(q) * at(s)(k)).sum().item() for t, s in ((5, 2), (103, 100), (6, 2))]
    assert products[0] == pytest.approx(products[1], abs=1e-4) and abs(products[0] - products[2]) > 1e-2


def test_sinusoidal_positions_by_hand():
    encoding = SinusoidalPositions(4)(torch.tensor([[0, 3]]))
    expected = [math.sin(3), math.cos(3), math.sin(3 / 100), math.cos(3 / 100)]
    assert encoding[0, 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert encoding[0, 1].tolist() == pytest.approx(expected)


def test_learned_positions_end():
    positions = LearnedPositions(5, 8)
    assert positions(torch.arange(5)[None]).shape == (1, 5, 8)
    with pytest.raises(UserError, match=r"a text of 6 tokens: this model learned 5 positions .* larger max_length"):
        positions(torch.arange(6)[None])
