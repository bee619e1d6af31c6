"""The modules: formulas against their definition, causality, the cache, initialisation, save and load."""

import dataclasses
import json

import pytest
import safetensors.torch
import torch

from baselines.scratch.blocks import Stack
from baselines.scratch.config import VARIANTS, ModelConfig
from baselines.scratch.data import collate, lay_out
from baselines.scratch.generation import Cached, Recomputed, write
from baselines.scratch.losses import IGNORED, Objective
from baselines.scratch.model import Transformer
from baselines.scratch.sampling import Sampling
from baselines.scratch.tokenizer import EOS
from finllm.errors import UserError
from tests.baselines.scratch.conftest import shuffled_weights

POSITIONS = ["sinusoidal", "learned", "rotary"]


def model_of(**changes) -> Transformer:
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
    return Transformer(ModelConfig(**(shape | changes))).eval()


def test_it_takes_no_attention_that_wants_a_graph_for_every_length(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", asked := [].append)
    model_of()
    assert asked.__self__ == [False]


def test_only_a_pre_norm_stack_ends_with_a_norm():
    assert isinstance(Stack(model_of(norm="pre").config).norm, torch.nn.LayerNorm)
    assert not list(Stack(model_of(norm="post").config).norm.parameters())


def batch_of(model: Transformer, lengths=((4, 7), (9, 3), (1, 12))):
    draw = torch.Generator().manual_seed(0)
    ids = lambda n: torch.randint(4, 50, (n,), generator=draw).tolist()  # noqa: E731
    pairs = [([2, *ids(n)], [*ids(m), EOS]) for n, m in lengths]
    return collate([lay_out(*pair, model.config.variant) for pair in pairs], torch.device("cpu"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_runs_what_the_plain_formula_says(variant):
    """The loss without N x V logits at once, and its gradients, are those of the formula over them."""
    model = model_of(variant=variant)
    same = Objective(label_smoothing=1e-12)  # goes the long way
    results = []
    for objective in (Objective(), same):
        loss = model(*batch_of(model), objective)
        results.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    assert all(gradient.any() for gradient in results[0][1:])


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_example_that_teaches_nothing_moves_nothing(variant):
    """What a process without an example of its own runs, to stay in step with the others."""
    model = model_of(variant=variant)
    ids, labels, source = batch_of(model)
    for objective in (Objective(), Objective(0.1, 1.0)):
        loss = model(ids, torch.full_like(labels, IGNORED), source, objective)
        assert loss == 0
        loss.backward()
    assert not any(parameter.grad.any() for parameter in model.parameters())


def log_probabilities(model: Transformer, ids, source=None):
    return model.logits(model.hidden(ids, model.read(source))).log_softmax(-1)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_causality(variant, positions, norm):
    """Other tokens after t leave everything up to t as it was, and change what comes after; but for as_published."""
    model = model_of(variant=variant, positions=positions, norm=norm)
    ids = torch.randint(4, 50, (2, 20))
    source = torch.randint(4, 50, (2, 9)) if variant == "seq2seq" else None
    for t in (0, 7, 18):
        other = ids.clone()
        other[:, t + 1 :] = 4 + (other[:, t + 1 :] + 1) % 46
        before, after = (log_probabilities(model, x, source) for x in (ids, other))
        if variant == "as_published":
            assert (before[:, : t + 1] - after[:, : t + 1]).abs().amax(-1).min() > 1e-4
        else:
            torch.testing.assert_close(before[:, : t + 1], after[:, : t + 1], rtol=0, atol=1e-5)
        assert (before[:, t + 1 :] - after[:, t + 1 :]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing(variant):
    """Each text of a batch is what it is alone; seq2seq also reads its whole prompt."""
    model = model_of(variant=variant)
    ids, _, source = batch_of(model)
    together = log_probabilities(model, ids, source)
    for row in range(len(ids)):
        length = int((ids[row] != 0).sum())
        prompt = None if source is None else source[row : row + 1, : int((source[row] != 0).sum())]
        alone = log_probabilities(model, ids[row : row + 1, :length], prompt)
        torch.testing.assert_close(together[row, :length], alone[0], rtol=0, atol=1e-5)
    if source is not None:
        source[:, 0] = 7
        assert (log_probabilities(model, ids, source) - together)[ids != 0].abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_generation_with_the_cache_is_generation_without(variant, positions):
    model = shuffled_weights(model_of(variant=variant, positions=positions), 3.0)  # so that texts differ
    draw = torch.Generator().manual_seed(0)
    prompts = [[2, *torch.randint(4, 50, (n,), generator=draw).tolist()] for n in (3, 9, 30, 1, 38)]
    answers = write(model, prompts, 12)
    assert len({tuple(answer) for answer in answers}) > 1
    for prompt, answer in zip(prompts, answers, strict=True):
        expected: list[int] = []
        ids, _, source = collate([lay_out(prompt, [], variant)], torch.device("cpu"))
        limit = min(12, 40 - ids.shape[1]) if positions == "learned" else 12
        while len(expected) < limit and expected[-1:] != [EOS]:
            logits = log_probabilities(model, torch.cat([ids, torch.tensor([expected], dtype=int)], 1), source)
            expected.append(3 + int(logits[0, -1, 3:].argmax()))
        assert answer == expected


@pytest.mark.parametrize("variant", ["causal", "seq2seq"])
def test_beams_with_the_cache_are_beams_without(variant, monkeypatch):
    model = shuffled_weights(model_of(variant=variant), 2.0)
    prompts = [[2, 5, 6, 7, 8], [2, 9], [2, 10, 11]]
    sampling = Sampling(num_beams=4, length_penalty=0.5)
    cached = write(model, prompts, 8, sampling)
    monkeypatch.setattr("baselines.scratch.generation.Cached", lambda model, prompts, room: Recomputed(model, prompts))
    assert write(model, prompts, 8, sampling) == cached
    assert [write(model, [prompt], 8, sampling)[0] for prompt in prompts] == cached
    assert len({tuple(answer) for answer in cached}) > 1


@torch.inference_mode()
@pytest.mark.parametrize("variant", ["causal", "seq2seq"])
def test_a_session_goes_on_with_the_texts_that_are_kept(variant):
    model = shuffled_weights(model_of(variant=variant), 2.0)
    prompts = [[2, 5, 6, 7, 8], [2, 9], [2, 10, 11]]
    sessions = [Cached(model, prompts, 4), Recomputed(model, prompts)]
    for session in sessions:
        session.add(torch.tensor([12, 13, 14]))
        session.keep(torch.tensor([2, 0, 2, 2]))
        session.add(torch.tensor([15, 16, 17, 18]))
    a, b = (session.next_logits() for session in sessions)
    assert a.shape == (4, 50)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_generation_stops_at_eos(variant):
    model = model_of(tie_embeddings=False, variant=variant, norm="pre")
    last = model.encoder if variant == "as_published" else model.decoder
    with torch.no_grad():
        last.norm.weight.zero_()
        last.norm.bias.fill_(1.0)
        model.vocabulary.weight[EOS] = 1.0
    assert write(model, [[5, 6, 7], [8]], 9) == [[EOS], [EOS]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prompt_longer_than_the_positions(variant):
    model = model_of(variant=variant, positions="learned")
    assert len(write(model, [[2] + [5] * 38], 5)[0]) >= 1
    with pytest.raises(UserError, match=r"a text of 41 tokens: this model learned 40 positions .* larger max_length"):
        write(model, [[2] + [5] * 40], 5)


def test_initial_weights():
    model = model_of(width=64, feed_forward=256, layers=8)
    for block in model.decoder.blocks:
        assert block.attention.query.weight.std().item() == pytest.approx(1 / 8, rel=0.1)
        assert block.attention.output.weight.std().item() == pytest.approx(1 / 8 / 4, rel=0.1)
        assert block.feed_forward.output.weight.std().item() == pytest.approx(1 / 16 / 4, rel=0.1)
        assert not block.feed_forward.inner.bias.any()
    model = model_of(width=64, feed_forward=256, layers=3, variant="seq2seq")
    assert model.decoder.blocks[0].cross_attention.output.weight.std().item() == pytest.approx(1 / 8 / 3, rel=0.1)
    assert model.encoder.blocks[0].attention.output.weight.std().item() == pytest.approx(1 / 8 / 6**0.5, rel=0.1)
    model = model_of(width=64, norm="post")
    assert model.decoder.blocks[0].attention.output.weight.std().item() == pytest.approx(1 / 8, rel=0.1)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_first_logits_are_as_large_as_what_goes_in(variant, norm):
    model = model_of(width=64, feed_forward=128, layers=6, variant=variant, norm=norm)
    ids = torch.randint(4, 50, (8, 30))
    assert 0.7 < model.logits(model.hidden(ids, model.read(ids))).std().item() < 1.5


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load(tmp_path, variant, tied):
    model = model_of(tie_embeddings=tied, variant=variant)
    model.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = Transformer.load(tmp_path)
    ids = torch.randint(4, 50, (2, 9))
    assert torch.equal(log_probabilities(loaded, ids, ids), log_probabilities(model, ids, ids))
    parameters = sum(p.numel() for p in model_of(variant=variant).parameters())
    assert sum(p.numel() for p in loaded.parameters()) == parameters + (0 if tied else 50 * 16)


def test_a_model_from_before_the_variants_is_causal(tmp_path):
    """Its config.json has no variant and no norm, its tensors no `decoder.` in their names."""
    model = model_of(positions="learned")
    model.save(tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())
    del held["variant"], held["norm"]
    (tmp_path / "config.json").write_text(json.dumps(held))
    old = {name.removeprefix("decoder."): tensor for name, tensor in model.state_dict().items()}
    assert {"blocks.0.attention.key.weight", "positions.table.weight", "norm.weight", "tokens.weight"} < set(old)
    (tmp_path / "model.safetensors").write_bytes(safetensors.torch.save(old))
    loaded = Transformer.load(tmp_path)
    ids = torch.randint(4, 50, (2, 9))
    assert loaded.config == model.config and torch.equal(log_probabilities(loaded, ids), log_probabilities(model, ids))


def test_weights_of_another_config(tmp_path):
    model_of().save(tmp_path)
    config = tmp_path / "config.json"
    held = json.loads(config.read_text())
    for key, value, message in (
        (
            "width",
            32,
            r"tokens\.weight is \(50, 16\), the config asks for \(50, 32\); and \d+ more; put back the config",
        ),
        ("layers", 3, r"decoder\.blocks\.2\.attention_norm\.weight is not there, the config asks for \(16,\)"),
        ("layers", 1, r"decoder\.blocks\.1\..* is \(16, 16\), the config asks for none"),
        ("variant", "seq2seq", r"holds the weights of another config: decoder\.blocks\.0\.cross_attention_norm"),
    ):
        config.write_text(json.dumps({**held, key: value}))
        with pytest.raises(UserError, match=message):
            Transformer.load(tmp_path)
    config.write_text(json.dumps({**{key: held[key] for key in held if key != "heads"}, "head": 4}))
    with pytest.raises(
        UserError, match=r"2 problems in .*config\.json; put back .* unknown key 'head'; heads is missing"
    ):
        Transformer.load(tmp_path)


def test_the_defaults_are_what_old_models_are():
    fields = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    assert (fields["variant"], fields["norm"]) == ("causal", "pre")
