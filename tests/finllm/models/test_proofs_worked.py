"""Proofs on models whose logits are a table: what they are asked, in which precision, and the figures by hand."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.nn.functional import linear

from finllm.errors import UserError
from finllm.models import proofs
from finllm.models.proofs import (
    Proof,
    Stopwatch,
    clipped,
    future_difference,
    head_difference,
    in_float32,
    is_exact,
    nll_beside,
    nll_of,
    template_proofs,
    tokenizer_fits,
)  # fmt: skip


class Table(nn.Module):
    """Logits by the last token: a row of a table, plus `ahead` times the next token's where there is one."""

    def __init__(self, rows, ahead=0.0, dtype=torch.float32):
        super().__init__()
        self.table, self.ahead, self.asked = nn.Parameter(torch.tensor(rows).to(dtype)), ahead, []

    def forward(self, input_ids, use_cache):
        assert use_cache is False
        self.asked.append(input_ids.tolist())
        logits = self.table[input_ids]
        if self.ahead:
            logits = logits + self.ahead * torch.roll(self.table[input_ids], -1, 1)
        return SimpleNamespace(logits=logits)


def test_a_stopwatch_adds_up_what_passes_inside_it_whatever_comes_of_it(monkeypatch):
    clock = itertools.accumulate([10.0, 1.0, 100.0, 0.5, 100.0, 0.25])
    monkeypatch.setattr(proofs.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    assert watch.seconds == 0
    with watch:
        pass
    assert watch.seconds == 1
    watch(lambda: None)()
    assert watch.seconds == 1.5
    with pytest.raises(ZeroDivisionError), watch:
        raise ZeroDivisionError
    assert watch.seconds == 1.75 and proofs.PROVING.seconds >= 0


def test_a_row_is_clipped_and_its_second_half_supervised():
    row = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100] * 5}
    assert clipped(row, 3) == {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    assert clipped(row, 4) == {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}
    assert clipped(row, 9) == {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]}
    assert clipped({"input_ids": (5, 6)}, 2) == {"input_ids": [5, 6], "labels": [-100, 6]}


# What later tokens change --------------------------------------------------------------------------------------------

TABLE = [[0.0, 1.0, 2.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 3.0]]


@pytest.mark.parametrize("kept", [1, 5, 23, 24])
def test_the_row_goes_on_with_sixteen_other_tokens_of_its_own(kept):
    ids = [0, 1, 2, 2, 1, 0, 0, 1] * 3
    model = Table(TABLE)
    assert future_difference(model, ids, kept, 0.0)[:2] == (0.0, 0.0)
    (whole,), (changed,) = model.asked
    assert whole == ids and len(changed) == min(kept + 16, 24) and changed[:kept] == ids[:kept]
    assert all(new != old and new in (0, 1, 2) for new, old in zip(changed[kept:], ids[kept:], strict=False))
    assert kept > 5 or len({*changed[kept:]}) == 3, "and not all the same"


def test_a_row_of_one_token_over_and_over_cannot_be_changed():
    model = Table(TABLE)
    moved, rounding, nll = future_difference(model, [2] * 20, 4, 0.0)
    assert (moved, rounding) == (0, 0) and model.asked == [[[2] * 20], [[2] * 20]]
    assert nll.tolist() == pytest.approx([math.log(1 + math.exp(-3) + math.exp(-4))] * 19)


def test_what_moves_is_the_largest_change_of_any_probability_at_any_kept_position():
    """The last kept token is followed by 0, and by 1 in the changed row: its logits (0, 2) become (5, 1)."""
    model, ids = Table([[0.0, 1.0], [5.0, 0.0]], ahead=1.0), [0, 0, 0, 1]
    moved, rounding, nll = future_difference(model, ids, 2, 1e-4)
    before = [-math.log(1 + math.exp(2)), -math.log(1 + math.exp(-2))]
    after = [-math.log(1 + math.exp(-4)), -math.log(1 + math.exp(4))]
    assert moved == pytest.approx(max(abs(x - y) for x, y in zip(before, after, strict=True)), rel=1e-5)
    assert rounding == 0 and model.asked == [[ids], [[0, 0, 1, 0]], [ids, [0, 0, 1, 0], ids]]
    # Of 0 by (0, 2) twice, and of 1 by (5, 1)
    assert nll.tolist() == pytest.approx([-before[0], -before[0], math.log(1 + math.exp(4))], rel=1e-5)
    model.asked.clear()
    assert future_difference(model, ids, 2, moved)[0] == moved and len(model.asked) == 2  # not looked at again


@pytest.mark.parametrize("other", [0, 1])
def test_a_probability_that_falls_moves_as_one_that_rises(other):
    """After the last kept token comes 0, then 1, or the other way round: one falls by 4 nats and one rises by less."""
    model = Table([[8.0, 0.0, 0.0], [0.0, 0.0, 0.0]], ahead=1.0)
    ids = [1, other, 1 - other]
    moved, _, _ = future_difference(model, ids, 1, 1e-4)
    falls = math.log(math.exp(8) + 2) - math.log(3)  # of each of the two others
    assert moved == pytest.approx(falls, rel=1e-5)


def test_coarse_logits_are_compared_and_read_in_float32():
    """In bfloat16 ln p of one of 257 equal tokens would be 5.5625, and of two of them 0.6953."""
    model = Table([[0.0] * 257] * 2, dtype=torch.bfloat16)
    rows = [{"input_ids": [0, 1, 0], "labels": [-100, 1, 0]}, {"input_ids": [1, 0], "labels": [1, 0]}]
    exact = pytest.approx([math.log(257)] * 2, rel=1e-6)
    assert future_difference(model, [0, 1, 0], 1, 1e-4)[2].tolist() == exact
    assert nll_of(model, rows[:1]).tolist() == exact
    assert [nll.tolist() for nll in nll_beside(model, rows)] == [exact, pytest.approx([math.log(257)])]
    ahead = Table([[0.0, 1.0], [1.0, 0.0]], ahead=0.25, dtype=torch.bfloat16)
    moved, _, _ = future_difference(ahead, [0, 0, 1], 1, 1e-4)
    ln = [-math.log(1 + math.exp(-each)) for each in (1.25, 0.75, -1.25, -0.75)]
    assert moved == pytest.approx(max(abs(ln[0] - ln[1]), abs(ln[2] - ln[3])), rel=1e-5)


# A head --------------------------------------------------------------------------------------------------------------


class Headed(nn.Module):
    """A body that looks up, and a head whose call and answer a test may change."""

    def __init__(self, call=None, cast=torch.float32):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.body, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        for module in (self.body, self.head):
            module.weight.data = torch.randn(7, 4, generator=draw).to(cast)
        self.call = call or (lambda model, hidden: model.head(hidden))

    def base_model(self, input_ids, use_cache):
        assert use_cache is False
        return SimpleNamespace(last_hidden_state=self.body(input_ids))

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, use_cache):
        hidden = self.base_model(input_ids, use_cache=use_cache).last_hidden_state
        return SimpleNamespace(logits=self.call(self, hidden))


IDS = torch.arange(1, 7).view(2, 3)


class Scaled(nn.Linear):
    def forward(self, hidden, factor, kind):
        return linear(hidden, self.weight) * (factor if kind == "factor" else 0)


def with_arguments(factor):
    model = Headed(lambda model, hidden: model.head(hidden, factor, "factor"))
    scaled = Scaled(4, 7, bias=False)
    scaled.weight = model.head.weight
    model.head = scaled
    return head_difference(model, IDS)


def test_a_head_is_asked_with_all_that_it_is_asked_with():
    assert with_arguments(1.0) < 1e-6 and with_arguments(0.5) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(("call", "least", "most"), [
    (lambda model, hidden: model.head(hidden), 0, 1e-6),
    (lambda model, hidden: model.head(hidden)[:, -1:], 0, 1e-6),  # the logits of the last position alone
    (lambda model, hidden: model.head(hidden)[:, :1], 0.01, 9),  # which is not the first
    (lambda model, hidden: model.head(hidden) + 0 * model.head(hidden), math.inf, math.inf),  # asked twice
    (lambda model, hidden: model.head(hidden[:, -1:]), math.inf, math.inf),  # of one position
    (lambda model, hidden: linear(hidden, model.head.weight), math.inf, math.inf),  # not asked
    (lambda model, hidden: model.head(hidden)[..., :-1], math.inf, math.inf),
    (lambda model, hidden: model.head(hidden * 1.25), 0.1999, 0.2001),  # of a fifth of it nothing was known
])  # fmt: skip
def test_what_a_head_is_asked_and_what_is_made_of_it(call, least, most):
    assert least <= head_difference(Headed(call), IDS) <= most


def test_a_body_that_answers_otherwise_has_no_head_of_ours():
    model = Headed()
    model.base_model = lambda input_ids, use_cache: (model.body(input_ids),)
    assert head_difference(model, IDS) == math.inf
    model.base_model = lambda ids: None
    assert head_difference(model, IDS) == math.inf
    model = Headed()
    model.body.weight.data[1] = math.nan
    assert head_difference(model, IDS) == math.inf
    model = Headed()
    model.head.weight.data = model.head.weight.data.view(7, 2, 2)
    assert head_difference(model, IDS) == math.inf


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_logits_reach_sixty_however_small_weights_are_or_large(size):
    found = []

    def call(model, hidden):
        logits = model.head(hidden)
        found.append(float(logits.abs().max()))
        return logits

    model = Headed(call)
    model.head.weight.data *= size
    assert head_difference(model, IDS) < 1e-6 and found == [pytest.approx(60, rel=1e-5)]


def test_a_head_in_bfloat16_is_given_bfloat16():
    """A body in float32 and a head in bfloat16, as where the body's last norm is float32: both see the same numbers."""
    model = Headed(lambda model, hidden: model.head(hidden.bfloat16()).float())
    model.head.bfloat16()
    assert head_difference(model, IDS) < 2**-7
    assert head_difference(Headed(cast=torch.bfloat16), IDS) < 1e-6


@pytest.mark.parametrize(("own", "ours", "share"), [
    ([1.0, -4.0], [1.0, -3.0], 0.25), ([1.0, -4.0], [1.0, -5.0], 0.25), ([2.0, 1.0], [0.0, 1.5], 1.0),
    ([0.0, 0.0], [0.0, -3.0], 3.0), ([1.0, math.nan], [1.0, 1.0], math.inf), ([1.0, 1.0], [1.0, math.nan], math.inf),
    ([1.0, math.inf], [1.0, math.inf], math.inf), ([1.0, math.inf], [1.0, 2.0], math.inf), ([2.0], [2.0], 0.0),
    ([1.0], [-math.inf], math.inf),
])  # fmt: skip
def test_the_largest_difference_is_a_share_of_the_largest_number(own, ours, share):
    assert proofs._share_apart(torch.tensor(own), torch.tensor(ours)) == share


# Precision -----------------------------------------------------------------------------------------------------------


def test_a_model_of_one_tensor_and_of_registered_nothing():
    model = nn.Module()
    model.register_parameter("none", None)
    model.register_buffer("no", None)
    model.only = nn.Parameter(torch.ones(2))
    assert is_exact(model)
    with torch.autocast("cpu", torch.bfloat16), in_float32(model):
        assert is_exact(model) and model.no is None and model.none is None
    model.only.data = model.only.data.half()
    assert not is_exact(model)


@pytest.mark.parametrize("used_up", [True, False])
def test_every_layer_of_4_bits_is_told_to_compute_in_float32_and_then_as_before(used_up):
    model, kinds = nn.Module(), [torch.bfloat16, torch.float16, torch.float64]
    for number, kind in enumerate(kinds):
        layer = nn.Linear(1, 1).bfloat16()
        layer.compute_dtype = kind
        model.add_module(str(number), layer)
    model.other = nn.Linear(1, 1)
    model.other.compute_dtype = "bfloat16"  # of something else
    layers = [*model.children()]
    with in_float32(model, used_up):
        assert [layer.compute_dtype for layer in layers] == [torch.float32] * 3 + ["bfloat16"] and is_exact(model)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert [layer.compute_dtype for layer in layers] == [*kinds, "bfloat16"]
    kept = torch.float32 if used_up else torch.bfloat16
    assert [layer.weight.dtype for layer in layers] == [kept] * 3 + [torch.float32]
    for layer in layers[1:]:
        layer.compute_dtype = torch.float32
    model.float()
    assert not is_exact(model)
    layers[0].compute_dtype = torch.float64
    assert is_exact(model)


# Tokenizers and templates --------------------------------------------------------------------------------------------


def tokenizer(names, special=(), added=(), **roles):
    """A vocabulary by name; `special` are ids of roles, `added` those of added special tokens."""
    roles = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0, "unk_token_id": None, **roles}
    return SimpleNamespace(**roles, eos_token="end", pad_token="pad", all_special_ids=[*special],
                           added_tokens_decoder={id: SimpleNamespace(special=True) for id in added},
                           get_vocab=lambda: names)  # fmt: skip


def embedded(rows):
    embedding = SimpleNamespace(weight=torch.zeros(rows, 2))
    return SimpleNamespace(get_input_embeddings=lambda: embedding, config=SimpleNamespace(name_or_path="m"))


@pytest.mark.parametrize("role", ["bos_token_id", "eos_token_id", "unk_token_id"])
def test_a_special_token_that_opens_ends_or_stands_for_others_must_have_a_row(role):
    names = {"a": 0, "b": 1, "s": 2}
    for special, added in (([2], []), ([], [2]), ([2], [2])):
        tokenizer_fits(tokenizer(names, special, added), embedded(2))
        with pytest.raises(UserError, match="has 1 tokens beyond the model's embedding, up to 's' with id 2"):
            tokenizer_fits(tokenizer(names, special, added, **{role: 2}), embedded(2))
        tokenizer_fits(tokenizer(names, special, added, **{role: 2}), embedded(3))
    with pytest.raises(UserError, match="up to 's' with id 2"):
        tokenizer_fits(tokenizer(names, [2]), embedded(2), written=[2])


def test_the_highest_of_many_ids_is_told_and_not_the_last_name():
    with pytest.raises(UserError, match="has 2 tokens beyond the model's embedding, up to 'b' with id 4, and the "
                                        "embedding has 2 rows; take the tokenizer that belongs to m, or"):  # fmt: skip
        tokenizer_fits(tokenizer({"a": 0, "b": 4, "z": 2, "c": 3}, [3]), embedded(2))


def test_no_pad_token_stays_none():
    given = tokenizer({"a": 0}, pad_token_id=None)
    tokenizer_fits(given, embedded(1))
    assert given.pad_token == "pad"


@pytest.mark.parametrize(("jinja", "id", "found"), [
    ("{{ x }}", "chatml", [Proof("template", 0.0, 0.0, True, "told")]),
    (None, "chatml", [Proof("template", None, 0.0, False, "told")]),
    (None, proofs.TEMPLATE_ID, [Proof("template", None, 0.0, False, "told")]),
    ("{{ x }}", proofs.TEMPLATE_ID, []),
])  # fmt: skip
@pytest.mark.parametrize("count", [1, proofs.PROVED, proofs.PROVED + 3])
def test_a_template_is_proved_on_the_first_rows(jinja, id, found, count):
    told = []
    template = SimpleNamespace(jinja=jinja, id=id, prove=lambda rows: told.append(rows) or "told")
    rows = Dataset.from_dict({"number": list(range(count))})
    assert template_proofs(template, rows) == found
    assert told == [[{"number": number} for number in range(min(count, proofs.PROVED))]]
