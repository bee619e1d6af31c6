"""What a transformers model is asked, how its rows are batched and run in other ways: the parts between are set.

Likelihoods by hand are those of set_models.py, whose attention adds nothing; another model has an attention that does.
"""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from set_models import chain, nats, save
from transformers import GPT2Config, GPT2LMHeadModel

from eval.models import transformers_lm
from eval.models.language_model import Description
from eval.models.transformers_lm import TransformersLM, load_base
from finllm.cpu import joined
from finllm.errors import UserError

SET = (chain("\nA loan.", "the", of="o"), 0.5, 90)
PROMPTS = ["Why?\n", "A much longer question than all the others of them.\n" * 2, "So\n"]
RESPONSES = ["A loan.", "A loan, or another one.", "the state"]
DESCRIPTION = Description("base", "m", "m", 1, 0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_base(str(save(tmp_path_factory.mktemp("set"), *SET, positions=300)), 1)


@pytest.fixture
def tokenizer(loaded):
    return loaded.tokenizer


@pytest.fixture
def fresh(loaded):
    """The set model as it is when nothing has been asked of it; of its `own` weights, where a test changes them."""

    def make(batch_size, own=False):
        model = copy.deepcopy(loaded.model) if own else loaded.model
        return TransformersLM(model, loaded.tokenizer, loaded.description, batch_size, loaded.template)

    return make


@pytest.fixture
def attentive(tokenizer):
    """A model of random weights, whose attention counts."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=257, n_positions=300, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    return TransformersLM(GPT2LMHeadModel(config).eval(), tokenizer, DESCRIPTION, 4)


def pairs_of(model):
    return [model.encode(*pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]


def by_hand():
    return [math.fsum(nats(*SET, *pair)) for pair in zip(PROMPTS, RESPONSES, strict=True)]


def seen_by(module, of="input_ids"):
    """The shapes of what a part of a model is called with from now on."""
    shapes = []
    module.register_forward_pre_hook(
        lambda _, given, named: shapes.append(tuple((named[of] if of in named else given[0]).shape)), with_kwargs=True
    )
    return shapes


# The head ------------------------------------------------------------------------------------------------------------


def test_the_head_is_proved_once_on_the_first_tokens_of_the_first_text(fresh, monkeypatch):
    model, asked = fresh(2), []
    monkeypatch.setattr(transformers_lm, "head_difference", lambda model, ids: asked.append(ids.tolist()) or 0.0)
    assert model.score([], []) == [] and model.log_probs([]) == [] and asked == []
    first, second = ([1] * 60, [2] * 10), ([3], [4, 5])
    model.log_probs([first, second])
    model.log_probs([second])
    model.distributions([second], [0])
    assert asked == [[[1] * 60 + [2] * 4]]
    for single in (second, ([7, 8], [9])):
        asked.clear()
        fresh(2).log_probs([single])
        assert asked == [[[*single[0], *single[1]]]]


def test_logits_are_made_where_responses_stand_if_the_head_is_plain_and_by_the_model_if_not(fresh, monkeypatch):
    limit = 2.0**-7
    monkeypatch.setattr(transformers_lm, "rounding_of", lambda model: limit)
    for apart, plain in ((0.0, True), (limit, True), (math.nextafter(limit, 1), False), (math.inf, False)):
        monkeypatch.setattr(transformers_lm, "head_difference", lambda model, ids, apart=apart: apart)
        model = fresh(4)
        whole, body = seen_by(model.model), seen_by(model.model.transformer)
        scores = model.score(PROMPTS, RESPONSES)
        assert [score.nll for score in scores] == pytest.approx(by_hand(), rel=1e-6)
        assert (whole == []) is plain and len(body) == 2, apart
        model.distributions(pairs_of(model), [0, 1, 2])
        assert (whole == []) is plain and len(body) == 4
    # A head that is no plain one, though its product is proved: it is asked itself
    monkeypatch.setattr(transformers_lm, "head_difference", lambda model, ids: 0.0)
    model = fresh(4, own=True)
    model.model.lm_head.register_forward_hook(lambda head, given, logits: logits)
    whole = seen_by(model.model)
    assert [score.nll for score in model.score(PROMPTS, RESPONSES)] == pytest.approx(by_hand(), rel=1e-6)
    assert len(whole) == 2


class Moved(torch.nn.Module):
    """A model under a method that stands a hundred positions later, as behind virtual tokens."""

    takes_one_task = True

    def __init__(self, base):
        super().__init__()
        self.base, self.config = base, base.config

    device = property(lambda self: self.base.device)

    def get_base_model(self):
        return self.base

    def forward(self, input_ids, **how):
        return self.base(input_ids, position_ids=100 + torch.arange(input_ids.shape[1])[None], **how)


def test_what_adapts_the_whole_model_is_asked_as_a_whole(fresh, tokenizer):
    model = TransformersLM(Moved(fresh(1).model), tokenizer, DESCRIPTION, 2)
    expected = [nats(*SET, "x" * 100 + prompt, response) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    for found, own in zip(model.log_probs(pairs_of(model)), expected, strict=True):
        assert -found == pytest.approx(own, abs=1e-5)
    assert [score.nll for score in model.score(PROMPTS, RESPONSES)] == pytest.approx([*map(math.fsum, expected)])
    (row,) = model.distributions(pairs_of(model)[:1], [3])
    assert -row[ord("o") + 1] == pytest.approx(expected[0][3], rel=1e-5)


def test_in_bfloat16_what_is_summed_is_float32(fresh):
    """The numbers are float64, and those of one position are the logarithms of shares of one."""
    model = fresh(2, own=True)
    model.model.bfloat16()
    pairs = pairs_of(model)
    positions = [2, 5, 0]
    rows, found = model.distributions(pairs, positions), model.log_probs(pairs)
    for row, log_probs, (_, response), position in zip(rows, found, pairs, positions, strict=True):
        assert row.dtype == log_probs.dtype == np.float64 and len(log_probs) == len(response)
        assert np.exp(row).sum() == pytest.approx(1, abs=1e-6)
        assert log_probs[position] == pytest.approx(row[response[position]], abs=1e-6)
    nll = [float(-log_probs.sum()) for log_probs in found]
    ways = model.otherwise(pairs)
    assert list(ways) == ["padded on the left", "packed"]
    assert ways["padded on the left"] == pytest.approx(nll, rel=1e-4) and ways["packed"] == pytest.approx(nll, rel=1e-4)
    score = model.score(PROMPTS[:1], RESPONSES[:1])[0]
    assert [type(each) for each in (score.nll, score.tokens, score.correct_tokens)] == [float, int, int]


def test_a_hidden_state_finer_than_the_weights(fresh):
    """As mamba's residual stream, which is float32 beside weights in bfloat16."""

    class Finer(torch.nn.LayerNorm):
        def forward(self, hidden):
            return super().forward(hidden).float()

    model = fresh(4, own=True)
    norm = model.model.transformer.ln_f
    finer = model.model.transformer.ln_f = Finer(norm.normalized_shape, eps=norm.eps)
    finer.load_state_dict(norm.state_dict())
    model.model.bfloat16()
    assert [score.nll for score in model.score(PROMPTS, RESPONSES)] == pytest.approx(by_hand(), rel=0.02)


@pytest.mark.parametrize(("chunk", "block"), [(5, 2), (7, 7), (4, 16)])
def test_positions_a_chunk_change_nothing(fresh, monkeypatch, chunk, block):
    model = fresh(3)
    before = model.log_probs(pairs_of(model))
    monkeypatch.setattr(transformers_lm, "CHUNK", chunk)
    monkeypatch.setattr(transformers_lm, "BLOCK", block)
    for found, own in zip(model.log_probs(pairs_of(model)), before, strict=True):
        assert found == pytest.approx(own, abs=1e-5)
    assert [score.correct_tokens for score in model.score(PROMPTS, RESPONSES)] == [
        score.correct_tokens for score in fresh(3).score(PROMPTS, RESPONSES)
    ]


# Batches -------------------------------------------------------------------------------------------------------------


def test_rows_that_are_scored_together_are_alike_and_those_that_are_audited_are_not(fresh):
    model = fresh(3)
    pairs = [([1] * length, [2]) for length in (9, 99, 89, 79)]
    model.log_probs(pairs[:1])
    body = seen_by(model.model.transformer)
    model.log_probs(pairs)
    assert body == [(3, 100), (1, 10)]
    body.clear()
    model.distributions(pairs, [0, 1, 0, 1])
    assert body == [(2, 100), (1, 80), (1, 10)]
    body.clear()
    model.score(["x" * 9, "x" * 99, "x" * 89, "x" * 79], ["", "", "", ""])
    assert body == [(2, 100), (1, 80), (1, 10)]


def test_where_a_batch_ends(fresh):
    model = fresh(4)

    def batches(*lengths, alike=0.9):
        return model._batches([([1] * (length - 2), [2, 3]) for length in lengths], alike)

    assert batches() == [] and batches(7) == [[0]]
    assert batches(10, 9) == [[0, 1]] and batches(100, 90, 89) == [[0, 1], [2]]  # nine tenths are like enough
    assert batches(100, 95, 88) == [[0, 1], [2]]  # held against the first, not the one before
    assert batches(10, 20, 40, alike=0.5) == [[2, 1], [0]]
    assert batches(*range(4, 13), alike=0) == [[8, 7, 6, 5], [4, 3, 2, 1], [0]]
    assert batches(5, 5, 5, 5, 5, 5, alike=1) == [[0, 1, 2, 3], [4, 5]]
    for lengths in ((301, 5), (5, 301)):
        with pytest.raises(UserError, match=r"max_length is 301 and .* has 300 positions"):
            batches(*lengths)
    assert batches(300, 5) == [[0], [1]]


# Other ways ----------------------------------------------------------------------------------------------------------


def test_other_ways_are_as_likely(fresh, attentive):
    for model in (fresh(4), attentive):
        pairs = pairs_of(model)
        own = [float(-each.sum()) for each in model.log_probs(pairs)]
        for some in (slice(None), slice(1), slice(2), slice(1, None)):
            ways = model.otherwise(pairs[some])
            assert list(ways) == ["padded on the left", "packed"]
            for values in ways.values():
                assert values == pytest.approx(own[some], rel=1e-4) and {*map(type, values)} == {float}
        assert model.model.config._attn_implementation == "sdpa"


def test_the_first_position_is_the_first_wherever_it_stands(tmp_path):
    """Of a model that tires after it; a prompt of one token is padded on the left."""
    of = (SET[0], 0.5, 1)
    model = load_base(str(save(tmp_path / "m", *of, positions=300)), 2)
    pairs = [model.encode("x", "o"), model.encode("x" * 9, "the")]
    expected = [math.fsum(nats(*of, "x", "o")), math.fsum(nats(*of, "x" * 9, "the"))]
    assert model.otherwise(pairs)["padded on the left"] == pytest.approx(expected, rel=1e-5)


def test_a_way_that_the_model_is_not_run_in_is_not_looked_at(attentive, monkeypatch):
    pairs, base = pairs_of(attentive), attentive.model
    base.set_attn_implementation("eager")
    assert list(attentive.otherwise(pairs)) == ["padded on the left"]
    base.set_attn_implementation("sdpa")
    forward = type(base).forward

    def refuses(self, *given, **inputs):
        if "parts" in inputs:
            raise RuntimeError("what is that?")
        return forward(self, *given, **inputs)

    with monkeypatch.context() as patched:
        patched.setattr(type(base), "forward", refuses)
        assert list(attentive.otherwise(pairs)) == ["padded on the left"]
    assert base.config._attn_implementation == "sdpa"
    asked = []
    monkeypatch.setattr(transformers_lm, "may_be_padded_left", lambda *of: asked.append(of))
    assert list(attentive.otherwise(pairs)) == ["packed"]
    assert asked == [(base, attentive.tokenizer, [prompt + response for prompt, response in pairs])]


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("sign", [1, -1])
def test_packed_rows_are_as_likely_to_a_limit_a_token(attentive, monkeypatch, at, sign):
    pairs = pairs_of(attentive)
    own = [log_probs.sum() for log_probs in attentive.log_probs(pairs)]
    tokens = [len(response) for _, response in pairs]
    limit, moved, dtype = 1e-4, [0.0] * 3, torch.float64

    def packed_rows(rows):
        return [torch.tensor(more - own[row], dtype=dtype) for row, more in enumerate(moved[: len(rows)])]

    monkeypatch.setattr(transformers_lm, "rounding_of", lambda model: limit)
    monkeypatch.setattr(attentive, "_packed", packed_rows)
    for share, packed in ((0.0, True), (0.99, True), (1.01, False)):
        moved[at] = sign * share * limit * tokens[at]
        assert ("packed" in attentive.otherwise(pairs)) is packed, share
    moved[:] = [0.0, 0.0, 9.0]  # the first two rows are tried, and no other
    assert attentive.otherwise(pairs)["packed"][2] == pytest.approx(9 - own[2])
    moved[2], limit = 0.0, 0.0
    assert "packed" in attentive.otherwise(pairs)  # the limit is within it
    dtype = torch.float32
    assert np.float32(own[0]) != own[0] and "packed" not in attentive.otherwise(pairs)


class Device:
    """A model on another device, which notes where what it is given lies."""

    def __init__(self):
        self.device, self.given, self.config = torch.device("meta"), [], SimpleNamespace(_attn_implementation="own")

    def set_attn_implementation(self, name):
        self.config._attn_implementation = name

    def __call__(self, use_cache, **inputs):
        self.given.append((self.config._attn_implementation, {key: value.device.type for key, value in inputs.items()}))
        raise KeyboardInterrupt


def test_what_the_model_is_given_lies_where_it_does(tokenizer, monkeypatch):
    stub = Device()
    model = TransformersLM(stub, tokenizer, DESCRIPTION, 2)
    monkeypatch.setattr(transformers_lm, "base_of", lambda model: model)
    monkeypatch.setattr(model, "_can_be_packed", lambda *of: True)
    pairs = pairs_of(model)
    for padded in (True, False):
        monkeypatch.setattr(transformers_lm, "may_be_padded_left", lambda *of, padded=padded: padded)
        with pytest.raises(KeyboardInterrupt):
            model.otherwise(pairs)
    assert stub.given == [
        ("own", dict.fromkeys(("input_ids", "attention_mask", "position_ids"), "meta")),
        (joined.NAME, dict.fromkeys(("input_ids", "position_ids", "parts"), "meta")),
    ]
    assert stub.config._attn_implementation == "own"
