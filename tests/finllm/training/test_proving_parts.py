"""What a trainer's proofs are held against, from both sides of every limit, and which way is taken: as literals.

The figures themselves are those of finllm/models/proofs.py, whose own tests see whether they are right; here they are
given.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel

from finllm.errors import UserError
from finllm.models import proofs
from finllm.models.dropout import StaysRandom
from finllm.models.proofs import Proof
from finllm.training import proving

IGNORED = -100


class Model:
    """Neither torch's nor transformers': all that is asked of it here is its mode."""

    training, quantization_method = True, None

    def __init__(self, name="base"):
        self.name, self.modes, self.moved_to = name, [], []
        self.config = SimpleNamespace(name_or_path=name)

    def eval(self):
        return self.train(False)

    def train(self, mode=True):
        self.training = mode
        self.modes.append(mode)
        return self

    def to(self, device):
        self.moved_to.append(device)


class Adapted(Model, PeftModel):
    """An adapter, as far as `isinstance` asks."""

    __setattr__, __getattr__ = object.__setattr__, object.__getattribute__


@pytest.fixture
def given(monkeypatch):
    """What the figures of finllm/models/proofs.py are; a test changes them."""
    found = SimpleNamespace(
        exact=True, rounding=1e-4, head=0.0, gradients=(0.0, "w"), nll={}, kernels=[], asked=[], float32=[]
    )
    monkeypatch.setattr(proving, "is_exact", lambda model: found.exact)
    monkeypatch.setattr(proving, "in_float32", lambda model, **how: found.float32.append(how) or nullcontext())
    monkeypatch.setattr(proving, "base_of", lambda model: model)
    monkeypatch.setattr(proving, "rounding_of", lambda model: found.rounding)
    monkeypatch.setattr(proving, "head_difference", lambda model, ids: found.asked.append(ids.tolist()) or found.head)
    monkeypatch.setattr(proving.kernels, "use_in", found.kernels.append)

    def gradient_difference(model, own, ours, least):
        found.least, found.of = least, (own, ours)
        return found.gradients

    monkeypatch.setattr(proving, "gradient_difference", gradient_difference)
    return found


class Trainer:
    def __init__(self, model=None, ways=(("joined", "head"), ("padded", "head")), cpu=True, packing=False):
        self.model, self.on_cpu, self.taken = model or Model(), cpu, []
        self.args = SimpleNamespace(device="cpu", packing=packing)
        self.joins_rows, self.uses_own_logits = True, False
        self.accelerator = SimpleNamespace(autocast=nullcontext, unwrap_model=lambda model, **bare: model)
        self.ways = lambda plain: self.plain.append(plain) or list(ways)
        self.plain, self.data_collator, self.packed = [], lambda rows: rows, list
        self._prepare_inputs = lambda rows: rows

    def set_way(self, rows, loss):
        self.taken.append((rows, loss))
        self.joins_rows, self.uses_own_logits = rows == "joined", loss == "logits"


def likelihood(nll_B, tokens_B=(1, 1), grad=False):
    """Of a batch, whatever its rows."""
    nll_B = torch.tensor(nll_B, dtype=torch.float64)
    return lambda model, rows: (nll_B.sum().requires_grad_(grad), nll_B, torch.tensor(tokens_B))


# Rows ----------------------------------------------------------------------------------------------------------------


def row(length, first=0):
    return {"input_ids": list(range(length)), "labels": [IGNORED] * first + list(range(first, length))}


def test_a_rows_first_tokens_the_second_half_of_them_supervised():
    assert proofs.clipped(row(9), 6) == {"input_ids": [0, 1, 2, 3, 4, 5], "labels": [IGNORED] * 3 + [3, 4, 5]}
    assert proofs.clipped(row(5), 6) == {"input_ids": [0, 1, 2, 3, 4], "labels": [IGNORED] * 2 + [2, 3, 4]}


@pytest.mark.parametrize(("length", "first", "end"), [(300, 10, 64), (300, 48, 64), (300, 49, 65), (300, 200, 216),
                                                      (60, 50, 60)])  # fmt: skip
def test_as_much_of_a_row_as_reaches_its_answer(length, first, end):
    found = proving.short_of({**row(length, first), "id": "more"})
    whole = row(length, first)
    assert found == {"input_ids": whole["input_ids"][:end], "labels": whole["labels"][:end]}
    labels = [0, *whole["labels"][1:]]  # the first token is never predicted
    assert len(proving.short_of({**whole, "labels": labels})["labels"]) == end


# The future ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("moved", "rounding", "seen"), [
    (0.0, 0.0, False), (1.9e-4, 0.0, False), (2.1e-4, 0.0, True), (2.1e-4, 1e-5, True), (9.9e-4, 1e-4, False),
    (1.1e-3, 1e-4, True),
])  # fmt: skip
def test_how_far_a_prediction_may_move_with_what_comes_later(monkeypatch, moved, rounding, seen):
    asked = []

    def future_difference(*what):
        asked.append(what)
        return moved, rounding, torch.tensor([1.0, 2, 4, 8])

    monkeypatch.setattr(proving, "future_difference", future_difference)
    text = {"input_ids": [5, 6, 7, 8, 9], "labels": [5, IGNORED, 7, IGNORED, 9]}
    model = Model("gpt")
    if seen:
        with pytest.raises(UserError, match=r"gpt sees the future: log-probabilities move by .* take a model"):
            proving._sees_no_future(model, text)
    else:
        proof, nll_N = proving._sees_no_future(model, text)
        assert nll_N.tolist() == [2.0, 8.0]
        assert (proof.name, proof.figure, proof.passed) == ("sees no future", moved, True)
        assert proof.limit == pytest.approx(max(2e-4, 10 * rounding))
    assert asked == [(model, [5, 6, 7, 8, 9], 2, 2e-4)]


@pytest.mark.parametrize(("kind", "fix"), [(Model, "take another model"), (Adapted, "leave such layers out of lora_")])
def test_a_model_that_fails_on_a_row_is_refused(monkeypatch, kind, fix):
    def fails(*asked):
        raise ValueError("one\n  two")

    monkeypatch.setattr(proving, "future_difference", fails)
    monkeypatch.setattr(proving, "base_of", lambda model: model)
    with pytest.raises(UserError, match=rf"{kind.__name__} fails on a row of 5 tokens: ValueError: one two; {fix}"):
        proving._sees_no_future(kind(), row(5))


# One way -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("exact", "apart", "share", "good"), [
    (True, 0.9e-4, 1e-3, [True, True]),
    (True, 0.9e-4, 0.9e-3, [True, True]), (True, 1.1e-4, 0.9e-3, [False, True]), (True, 0.9e-4, 1.1e-3, [True, False]),
    (False, 0.09, 0.19, [True, True]), (False, 0.11, 0.19, [False, True]), (False, 0.09, 0.21, [True, False]),
])  # fmt: skip
@pytest.mark.parametrize("sign", [1, -1])
def test_the_limits_of_a_ways_loss_and_gradients(given, exact, apart, share, good, sign):
    given.exact, given.gradients = exact, (share, "w")
    trainer = Trainer()
    own_N, own = torch.tensor([2.0, 3, 4, 1], dtype=torch.float64), {"w": torch.zeros(1)}
    trainer._likelihood = likelihood([4.0, 6.0 + sign * 4 * apart], grad=True)
    loss, gradients = proving._own_loss(trainer, [], own_N, own, "joined · head", "joined")
    assert [loss.passed, gradients.passed] == good and given.least == (1e-3 if exact else 0.1)
    assert given.of[0] is own and given.of[1].shape == ()
    assert (loss.name, gradients.name) == ("loss, joined · head", "gradients, joined · head")
    assert loss.figure == pytest.approx(apart) and gradients.figure == share
    assert (loss.limit, gradients.limit) == ((1e-4, 1e-3) if exact else (0.1, 0.2))


def test_nats_are_summed_more_exactly_than_they_are_computed(given):
    """16,777,217 is no number of float32."""
    trainer, nll_B = Trainer(), torch.tensor([2.0**24, 1.0])
    trainer._likelihood = lambda model, rows: (nll_B.sum(), nll_B, torch.tensor([1, 1]))
    (loss,) = proving._own_loss(trainer, [], torch.tensor([2.0**24, 1.0], dtype=torch.float64), {}, "way", "joined")
    assert loss.figure == 0 == proving._apart(trainer, [], torch.tensor([2.0**24, 1.0]), "joined").figure
    (loss,) = proving._own_loss(trainer, [], torch.tensor([2.0**24, 1.0]), {}, "way", "joined")
    assert loss.figure == 0


@pytest.mark.parametrize(("own", "ours"), [(True, False), (False, True), (False, False)])
def test_where_nothing_trains_only_the_loss_is_looked_at(given, own, ours):
    trainer = Trainer()
    trainer._likelihood = likelihood([4.0, 6.0], grad=ours)
    gradients = {"w": torch.zeros(1)} if own else {}
    (loss,) = proving._own_loss(trainer, [], torch.full((4,), 2.5), gradients, "way", "joined")
    assert loss.passed and loss.figure == 0


@pytest.mark.parametrize(("exact", "apart", "good"), [
    (True, 0.9e-4, True), (True, 1.1e-4, False), (False, 1.9e-2, True), (False, 2.1e-2, False),
])  # fmt: skip
@pytest.mark.parametrize("sign", [1, -1])
def test_how_far_rows_may_move_each_other(given, exact, apart, good, sign):
    given.exact = exact
    trainer, own_N = Trainer(), torch.tensor([2.0, 3, 4, 1])
    trainer._likelihood = likelihood([4.0, 6.0 + sign * 4 * apart])
    proof = proving._apart(trainer, [], own_N, "joined")
    assert (proof.name, proof.passed) == ("rows stay apart, joined", good)
    assert proof.figure == pytest.approx(apart) and proof.limit == (1e-4 if exact else 2e-2)


@pytest.mark.parametrize(("exact", "apart", "refused"), [
    (True, 0.9e-4, False), (True, 1.1e-4, True), (False, 1.9e-2, False), (False, 2.1e-2, True),
])  # fmt: skip
@pytest.mark.parametrize(("packing", "fix"), [(True, "packing: false"), (False, "per_device_train_batch_size: 1")])
def test_a_model_that_reads_its_neighbours_is_refused(given, exact, apart, refused, packing, fix):
    given.exact = exact
    trainer, pair = Trainer(packing=packing), ["first", "second"]
    alone = {"first": (4.0, 3), "second": (6.0, 2)}

    def of(model, rows):
        nll, tokens = zip(*(alone[each] for each in rows), strict=True)
        nll_B = torch.tensor(nll, dtype=torch.float64)
        nll_B[-1] -= 5 * apart * (len(rows) > 1)
        return None, nll_B, torch.tensor(tokens)

    trainer._likelihood = of
    assert proving._nats_apart(trainer, pair) == pytest.approx(apart)
    if refused:
        with pytest.raises(UserError, match=rf"does not keep the rows of a batch apart: .*; set {fix}"):
            proving._refuse_mixing(trainer, pair)
    else:
        proving._refuse_mixing(trainer, pair)
    trainer._likelihood = likelihood([1.0, 1.0], (0, 0))
    assert proving._nats_apart(trainer, pair) == 2.0  # 2 − 2 · 2, of no token


# Which way -----------------------------------------------------------------------------------------------------------

WAYS = [("joined", "head"), ("joined", "logits"), ("padded", "head"), ("padded", "logits")]
PROBE = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {"input_ids": [4, 5], "labels": [4, 5]}]


@pytest.mark.parametrize("cpu", [True, False])
@pytest.mark.parametrize(("head", "plain"), [(0.9e-4, True), (1e-4, True), (1.1e-4, False)])
@pytest.mark.parametrize("good", range(4))
@pytest.mark.parametrize("wrong", ["loss", "apart", "error"])
def test_the_first_way_that_is_the_models_own_is_taken(given, monkeypatch, capsys, good, wrong, head, plain, cpu):
    given.head = head
    trainer, seen = Trainer(ways=WAYS, cpu=cpu), []
    own = lambda model, rows: ([torch.tensor([float(len(row["input_ids"]))]) for row in rows], "own")  # noqa: E731
    monkeypatch.setattr(proving, "nats_and_gradients", own)

    def own_loss(trainer, probe, own_N, gradients, way, rows):
        assert gradients == "own"
        seen.append((probe, own_N.tolist(), way, rows))
        if wrong == "error" and trainer.taken[-1] != WAYS[good]:
            raise RuntimeError("first line\nsecond")
        passed = wrong != "loss" or trainer.taken[-1] == WAYS[good]
        return [Proof(f"loss, {way}", 0.0, 1.0, passed, f"{way} loss")]

    def apart(trainer, pair, own_N, rows):
        seen.append((pair, own_N.tolist(), rows))
        return Proof(f"apart, {rows}", 0.0, 1.0, wrong != "apart" or trainer.taken[-1] == WAYS[good], "")

    monkeypatch.setattr(proving, "_own_loss", own_loss)
    monkeypatch.setattr(proving, "_apart", apart)
    found = proving._way(trainer, PROBE, {"long": 1}, torch.tensor([7.0]))
    assert trainer.taken == WAYS[: good + 1] and trainer.plain == [plain]
    assert given.kernels == ([trainer.model] if cpu else []) and given.asked == [[[4, 5]]]
    first = found[0]
    assert (first.name, first.figure, first.limit, first.passed) == ("head", head, 1e-4, plain)
    rows, loss = WAYS[good]
    assert found[-1].passed and found[-1].name == f"apart, {rows}" and found[-2].name == f"loss, {rows} · {loss}"
    assert len(found) == 1 + (good if wrong == "error" else 2 * good) + 2
    assert seen[-2:] == [(PROBE, [3.0, 2.0], f"{rows} · {loss}", rows), ([{"long": 1}, PROBE[1]], [7.0, 2.0], rows)]
    if wrong == "error" and good:
        broken = found[1]
        assert (broken.name, broken.figure, broken.limit, broken.passed) == ("loss, joined · head", None, 0.0, False)
        assert broken.said == "joined rows with head fail: first line"


@pytest.mark.parametrize("lengths", [(20, 9), (20, 8), (5, 20)])
def test_the_head_is_tried_on_the_first_tokens_of_the_shorter_row(given, monkeypatch, lengths):
    trainer = Trainer(ways=WAYS)
    monkeypatch.setattr(proving, "nats_and_gradients", lambda model, rows: ([torch.zeros(1)] * 2, {}))
    monkeypatch.setattr(proving, "_own_loss", lambda *asked: [])
    monkeypatch.setattr(proving, "_apart", lambda *asked: Proof("apart", 0.0, 0.1, True, "right"))
    proving._way(trainer, [row(length) for length in lengths], {}, torch.zeros(1))
    assert given.asked == [[list(range(min(*lengths, 8)))]]


def test_a_model_that_fails_with_a_gradient_alone_is_refused(given, monkeypatch):
    def fails(model, rows):
        raise ValueError("no gradient")

    monkeypatch.setattr(proving, "nats_and_gradients", fails)
    with pytest.raises(UserError, match=r"Model fails on a row of 3 tokens: ValueError: no gradient; take another"):
        proving._way(Trainer(), PROBE, {}, torch.zeros(1))


def test_a_model_for_which_no_way_is_its_own_is_refused(given, monkeypatch):
    trainer, mixed = Trainer(ways=WAYS[:2]), []
    monkeypatch.setattr(proving, "nats_and_gradients", lambda model, rows: ([torch.zeros(1)] * 2, {}))
    monkeypatch.setattr(proving, "_own_loss", lambda *asked: [Proof("loss", 1.0, 0.1, False, f"{asked[4]} is wrong")])
    monkeypatch.setattr(proving, "_apart", lambda *asked: Proof("apart", 0.0, 0.1, True, "right"))
    monkeypatch.setattr(proving, "_refuse_mixing", lambda trainer, pair: mixed.append(pair))
    with pytest.raises(UserError, match=r"the model's own: joined · head is wrong; joined · logits is wrong$"):
        proving._way(trainer, PROBE, {"long": 1}, torch.zeros(1))
    assert mixed == [[{"long": 1}, PROBE[1]]]
    with pytest.raises(UserError, match="no way to the loss"):
        proving._way(trainer, PROBE[:1], {"long": 1}, torch.zeros(1))
    assert mixed[1] == [{"long": 1}, PROBE[0]]  # of a split of one row


@pytest.mark.parametrize(("way", "good"), [(("joined", "logits"), True), (("padded", "head"), True),
                                           (("joined", "head"), False)])  # fmt: skip
def test_the_way_once_more_in_the_precision_of_the_run(given, monkeypatch, way, good):
    trainer, seen = Trainer(), []
    trainer.set_way(*way)
    own = [torch.tensor([1.0]), torch.tensor([2.0, 4.0])]
    beside = lambda model, rows: seen.append((rows, trainer.taken[-1])) or (own, "own")  # noqa: E731
    monkeypatch.setattr(proving, "nats_and_gradients", beside)

    def own_loss(*asked):
        assert asked[3] == "own"
        seen.append((asked[1], asked[2].tolist(), *asked[4:], trainer.taken[-1]))
        return [Proof("a", 0.0, 0.5, True, "fine"), Proof("b", 1.0, 0.5, good, "rough")]

    looked = lambda *asked: seen.append((asked[1], *asked[2:])) or Proof("b", 1.0, 0.5, False, "as rough")  # noqa: E731
    mixing = lambda trainer, pair: seen.append((pair, "apart", trainer.taken[-1]))  # noqa: E731
    monkeypatch.setattr(proving, "_own_loss", own_loss)
    monkeypatch.setattr(proving, "_as_coarse_as_its_own", looked)
    monkeypatch.setattr(proving, "_refuse_mixing", mixing)
    if good:
        assert [proof.name for proof in proving._coarsely(trainer, PROBE)] == ["a", "b"]
    else:
        with pytest.raises(
            UserError, match=r"not good enough: as rough \(limit 0.5\); set bf16: false and dtype: float32"
        ):
            proving._coarsely(trainer, PROBE)
    rows, loss = way
    again = [] if good else [(PROBE, "b", way)]  # the gradients, where they are farther apart than the limit
    whole = (PROBE, [1.0, 2.0, 4.0], f"{rows} · {loss}, as it trains", rows, way)
    first, padded = [(PROBE, ("padded", loss)), whole, *again], ("padded", loss)
    if rows == "padded" or good:
        assert seen == first
        return
    padded_too = (PROBE, [1.0, 2.0, 4.0], f"padded · {loss}, as it trains", "padded", padded)
    assert seen == [*first, (PROBE, "apart", padded), (PROBE, padded), padded_too, (PROBE, "b", padded)]


def test_joined_rows_that_round_too_much_are_padded(monkeypatch, capsys):
    trainer, apart = Trainer(), []
    trainer.set_way("joined", "head")
    rough = Proof("loss, joined · head, as it trains", 0.5, 0.1, False, "rows are rough")
    fine = Proof("loss, padded · head, as it trains", 0.0, 0.1, True, "fine")
    monkeypatch.setattr(proving, "nats_and_gradients", lambda model, rows: ([torch.zeros(1)], {}))
    monkeypatch.setattr(proving, "_own_loss", lambda trainer, *others: [rough if trainer.joins_rows else fine])
    monkeypatch.setattr(proving, "_refuse_mixing", lambda trainer, pair: apart.append(trainer.joins_rows))
    assert proving._coarsely(trainer, PROBE) == [rough, fine]
    assert apart == [False] and trainer.taken[-1] == ("padded", "head")
    assert "rows are padded: rows are rough; the limit is 1e-01" in capsys.readouterr().out


# All of it -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lengths", "long", "mixed"), [
    ([30, 10, 40, 20], 40, False), ([500, 10, 20, 7], 384, True), ([30, 385, 20, 20], 384, True),
    ([384, 30, 900, 20], 384, False),
])  # fmt: skip
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", [Model, Adapted])
@pytest.mark.parametrize("training", [True, False])
def test_what_is_proved_and_on_which_rows(given, monkeypatch, lengths, long, mixed, exact, kind, training):
    given.exact = exact
    trainer, seen = Trainer(kind()), {}
    trainer.model.training = training
    trainer.train_dataset = documents = [row(length) for length in lengths]
    monkeypatch.setattr(proving.joined, "documents_of", lambda each: [each])

    @contextmanager
    def nudged(model):
        seen["nudged"] = True
        yield
        seen["nudged"] = "over"

    def sees_no_future(model, document):
        assert model.training is False and seen.get("nudged") is (True if kind is Adapted else None)
        seen["long"] = len(document["input_ids"])
        return "unseen", "long_N"

    monkeypatch.setattr(proving, "nudged", nudged)
    monkeypatch.setattr(proving, "_sees_no_future", sees_no_future)
    monkeypatch.setattr(proving, "_way", lambda trainer, *asked: seen.update(way=asked) or ["way"])
    monkeypatch.setattr(proving, "_refuse_mixing", lambda trainer, pair: seen.update(mixed=pair))
    monkeypatch.setattr(proving, "_coarsely", lambda trainer, probe: seen.update(coarsely=probe) or ["coarse"])
    assert proving.prove(trainer) == ["unseen", "way", *([] if exact else ["coarse"])]
    probe, long_row, long_N = seen["way"]
    assert seen["long"] == len(long_row["input_ids"]) == long and long_N == "long_N"
    assert [len(each["input_ids"]) for each in probe] == [min(24, lengths[2]), min(16, lengths[3])]
    assert seen.get("mixed") == (documents[:2] if mixed else None) and seen.get("nudged") in (None, "over")
    assert seen.get("coarsely") == (None if exact else probe) and trainer.model.training is training


def test_a_models_mode_comes_back_where_it_is_refused(given, monkeypatch):
    trainer = Trainer()
    trainer.train_dataset = [row(30), row(20)]
    monkeypatch.setattr(proving.joined, "documents_of", lambda each: [each])

    def refused(model, document):
        raise UserError("it sees the future")

    monkeypatch.setattr(proving, "_sees_no_future", refused)
    with pytest.raises(UserError):
        proving.prove(trainer)
    assert trainer.model.training is True and trainer.model.modes[0] is False


@pytest.mark.parametrize(("exact", "coarse"), [(True, 1e-4), (False, 2e-2)])
@pytest.mark.parametrize(("share", "more"), [(0.0, ""), (0.25, ", with 0.25 they differ")])
@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("rounds_anew", [True, False])
def test_dropout_is_proved_on_two_rows_and_changes_nothing(given, monkeypatch, exact, coarse, share, more, adapted,
                                                           rounds_anew):  # fmt: skip
    given.exact = exact
    model = (Adapted if adapted else Model)()
    weights = [torch.nn.Parameter(torch.zeros(1), requires_grad=trains) for trains in (True, False)]
    model.parameters, model.training, entered, asked = lambda: weights, False, [], []

    @contextmanager
    def inside(what, after=lambda: None):
        entered.append(what)
        try:
            yield
        finally:
            entered.remove(what)
            after()

    def all_train():
        for weight in weights:
            weight.requires_grad_(True)

    model.disable_adapter = lambda: inside("off", all_train)
    trainer = Trainer(model)
    trainer.train_dataset = [row(30), row(5), row(40)]
    trainer.accelerator.autocast = lambda: inside("as it trains")
    monkeypatch.setattr(proving, "in_float32", lambda model: inside("float32"))
    monkeypatch.setattr(proving.joined, "documents_of", lambda each: [each])

    def of(_model, rows):
        assert [len(each["input_ids"]) for each in rows] == [8, 5]
        return None, torch.tensor([6.0, 3.0]), torch.tensor([4, 2])

    def prove_dropout(_model, wanted, loss, most):
        assert model.training and wanted == share and not torch.is_grad_enabled()
        asked.append((*entered, most))
        if rounds_anew and len(asked) == 1:
            raise StaysRandom("its losses differ")
        return loss() / 1000

    trainer._likelihood = of
    monkeypatch.setattr(proving, "prove_dropout", prove_dropout)
    proof = proving.prove_dropout_of(trainer, share)
    said = f"with a dropout of 0 two passes in training mode are within 0.002 nats a token{more}"
    assert proof == Proof("dropout", 1.5e-3, coarse if rounds_anew else 1e-4, True, said)
    off = ["off"] * adapted
    assert asked == [(*off, "as it trains", 1e-4), (*off, "float32", coarse)][: 1 + rounds_anew]
    assert model.training is False and [weight.requires_grad for weight in weights] == [True, False]


def test_dropout_that_stays_random_in_float32_too_is_refused(given, monkeypatch):
    def random(*_):
        raise StaysRandom("its losses differ")

    model = Model()
    model.parameters = lambda: [torch.nn.Parameter(torch.zeros(1))]
    trainer = Trainer(model)
    trainer.train_dataset = [row(30), row(5)]
    monkeypatch.setattr(proving.joined, "documents_of", lambda each: [each])
    monkeypatch.setattr(proving, "prove_dropout", random)
    with pytest.raises(UserError, match="its losses differ"):
        proving.prove_dropout_of(trainer, 0.0)


@pytest.mark.parametrize(("exact", "apart", "good"), [
    (True, 0.9e-4, True), (True, 1.1e-4, False), (False, 1.9e-3, True), (False, 2.1e-3, False),
    (True, float("nan"), False),
])  # fmt: skip
@pytest.mark.parametrize("way", [("joined", "head"), ("padded", "logits")])
@pytest.mark.parametrize(("kind", "quantised"), [(Model, None), (Adapted, None), (Adapted, "bitsandbytes")])
def test_what_was_saved_is_what_was_trained(given, monkeypatch, exact, apart, good, way, kind, quantised, tmp_path):
    given.exact = exact
    trained, loaded = kind("trained"), kind("loaded")
    loaded.quantization_method = quantised
    trainer, asked, bare = Trainer(trained), [], []
    trainer.set_way(*way)
    trainer.taken.clear()
    trainer.accelerator.unwrap_model = lambda model, **how: bare.append(how) or model
    trainer.eval_dataset = [row(300, 10), row(4)]
    # Positions that differ in both directions: their mean would hide it.
    nll = {"trained": torch.tensor([1.0, 1.0]), "loaded": torch.tensor([1.0 + apart, 1.0 - apart], dtype=torch.float64)}

    def nll_of(model, rows):
        asked.append((model.name, len(rows[0]["input_ids"]), len(rows), model.training, trainer.taken[-1]))
        return nll[model.name]

    monkeypatch.setattr(proving, "nll_of", nll_of)
    merged = []
    monkeypatch.setattr(proving, "merged_proof", lambda *given: merged.append(given) or "merged")
    load = lambda folder: loaded if folder == tmp_path else None  # noqa: E731
    if good:
        proof, *more = proving.prove_saved(trainer, tmp_path, load)
        assert (proof.name, proof.passed, type(proof.figure)) == (
            "saved model",
            True,
            float,
        ) and proof.figure == pytest.approx(apart, rel=1e-3)
        assert proof.limit == (1e-4 if exact else 2e-3)
        assert more == (["merged"] if kind is Adapted else [])
        for model, rows, own_N in merged:
            assert model is loaded and len(rows) == 1 and own_N is not None and own_N.tolist() == nll["loaded"].tolist()
    else:
        with pytest.raises(UserError, match=rf"saved to {tmp_path} is not the one that was trained: a validation row"):
            proving.prove_saved(trainer, tmp_path, load)
    assert asked == [(name, 64, 1, False, ("padded", way[1])) for name in ("trained", "loaded")]
    assert trainer.taken == [("padded", way[1]), way] and given.float32 == [{"beside": True}, {"used_up": True}]
    assert loaded.moved_to == ([] if quantised else ["cpu"]) and trained.moved_to == []
    assert bare == [{"keep_fp32_wrapper": False, "keep_torch_compile": False}]
