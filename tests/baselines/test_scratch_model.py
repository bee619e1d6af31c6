"""The modules: formulas against their definition, causality, the cache, initialisation, save and load."""

import math

import pytest
import torch

from baselines.scratch.attention import attend_fast, attend_plain
from baselines.scratch.losses import IGNORED, cross_entropy, next_token_pairs
from baselines.scratch.model import CausalTransformer, ModelConfig
from baselines.scratch.positional import LearnedPositions, SinusoidalPositions
from baselines.scratch.sampling import greedy
from baselines.scratch.tokenizer import EOS
from finllm.run import UserError


def model_of(**changes) -> CausalTransformer:
    torch.manual_seed(0)
    shape = {
        "vocabulary_size": 50,
        "max_length": 40,
        "layers": 2,
        "width": 16,
        "heads": 4,
        "feed_forward": 32,
        "dropout": 0.1,
        "positions": "sinusoidal",
        "tie_embeddings": True,
    }
    return CausalTransformer(ModelConfig(**(shape | changes))).eval()


@pytest.mark.parametrize("causal, masked", [(True, False), (False, True), (False, False)])
def test_plain_and_fast_attention_agree(causal, masked):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 7, 8, requires_grad=True) for _ in range(3))
    visible = torch.arange(7)[None] < torch.tensor([[7], [4], [1]]) if masked else None
    results = []
    for attend in (attend_plain, attend_fast):
        heads = attend(q, k, v, causal, visible)
        results.append((heads, *torch.autograd.grad(heads.square().sum(), (q, k, v))))
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(plain, fast)


def test_attention_by_hand():
    q = torch.tensor([[[[2.0], [0.0]]]])  # D = 1, so scores are q · k
    k = torch.tensor([[[[0.0], [math.log(3) / 2]]]])
    v = torch.tensor([[[[4.0], [8.0]]]])
    assert attend_plain(q, k, v, causal=False).flatten().tolist() == pytest.approx([(4 + 3 * 8) / 4, 6.0])
    assert attend_plain(q, k, v, causal=True).flatten().tolist() == pytest.approx([4.0, 6.0])


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


def test_cross_entropy_by_hand():
    logits = torch.tensor([[math.log(1), math.log(2), math.log(5)], [0.0, 0.0, 0.0]])
    nll = cross_entropy(logits, torch.tensor([1, 2]))
    assert nll.tolist() == pytest.approx([-math.log(2 / 8), math.log(3)])


def test_only_supervised_positions_are_paired():
    hidden = torch.arange(10.0).view(2, 5, 1)
    labels = torch.tensor([[IGNORED, IGNORED, 7, 8, IGNORED], [IGNORED, 9, IGNORED, IGNORED, 6]])
    picked, next_tokens = next_token_pairs(hidden, labels)
    assert picked.flatten().tolist() == [1.0, 2.0, 5.0, 8.0]
    assert next_tokens.tolist() == [7, 8, 9, 6]


def test_an_example_that_teaches_nothing_moves_nothing():
    """What a process without an example of its own runs, to stay in step with the others."""
    model = model_of()
    ids = torch.randint(4, 50, (1, 9))
    nll = model(ids, torch.full_like(ids, IGNORED))
    assert nll.shape == (0,)
    nll.sum().backward()
    assert not any(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_causality(positions):
    """Other tokens after t leave everything up to t as it was, and change what comes after."""
    model = model_of(positions=positions)
    ids = torch.randint(4, 50, (2, 20))
    for t in (0, 7, 18):
        other = ids.clone()
        other[:, t + 1 :] = (other[:, t + 1 :] + 1) % 50
        before, after = (model.logits(model.hidden(x)).log_softmax(-1) for x in (ids, other))
        torch.testing.assert_close(before[:, : t + 1], after[:, : t + 1], rtol=0, atol=1e-6)
        assert (before[:, t + 1 :] - after[:, t + 1 :]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_generation_with_the_cache_is_generation_without(positions):
    model = model_of(positions=positions)
    for parameter in model.parameters():  # weights large enough that the answers differ from text to text
        parameter.data.mul_(5)
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(4, 50, (n,), generator=draw).tolist() for n in (3, 9, 30, 1, 39)]
    answers = greedy(model, prompts, 12)
    assert len({tuple(answer) for answer in answers}) > 3
    for prompt, answer in zip(prompts, answers, strict=True):
        expected: list[int] = []
        limit = min(12, 40 - len(prompt)) if positions == "learned" else 12
        while len(expected) < limit and expected[-1:] != [EOS]:
            hidden = model.hidden(torch.tensor([prompt + expected]))
            expected.append(int(model.logits(hidden[:, -1]).argmax()))
        assert answer == expected


def test_generation_stops_at_eos():
    model = model_of(tie_embeddings=False)
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.fill_(1.0)
        model.vocabulary.weight[EOS] = 1.0
    assert greedy(model, [[5, 6, 7], [8]], 9) == [[EOS], [EOS]]


def test_initial_weights():
    model = model_of(width=64, feed_forward=256, layers=8)
    for block in model.blocks:
        assert block.attention.query.weight.std().item() == pytest.approx(1 / 8, rel=0.1)
        assert block.attention.output.weight.std().item() == pytest.approx(1 / 8 / 4, rel=0.1)
        assert block.feed_forward.output.weight.std().item() == pytest.approx(1 / 16 / 4, rel=0.1)
        assert not block.feed_forward.inner.bias.any()
    ids = torch.randint(0, 50, (8, 30))
    logits = model.logits(model.hidden(ids))
    assert 0.7 < logits.std().item() < 1.5  # about as large as what goes in


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load(tmp_path, tied):
    model = model_of(tie_embeddings=tied)
    model.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = CausalTransformer.load(tmp_path)
    ids = torch.randint(0, 50, (2, 9))
    assert torch.equal(loaded.logits(loaded.hidden(ids)), model.logits(model.hidden(ids)))
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model_of().parameters()) + (
        0 if tied else 50 * 16
    )
