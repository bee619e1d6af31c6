"""Scaling and forgetting on models of one weight and on set texts: literals, and figures by a second computation."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from eval import forgetting, scaling
from finllm.errors import UserError
from finllm.models.merge import CannotMerge

DRAW = np.random.default_rng(5)
SIZES = DRAW.integers(1, 30, 12).astype(float)
LOSSES = DRAW.gamma(3, 4, (4, 12))


def ratio(amounts, sizes):
    """Σ amounts / Σ sizes with its ends, in plain loops: the docstrings of eval/statistics/uncertainty.py."""
    value, whole = sum(amounts) / sum(sizes), sum(sizes)
    v = [value - (sum(amounts) - a) / (whole - s) for a, s in zip(amounts, sizes, strict=True)]
    n, squares = len(v), sum(each**2 for each in v)
    skew = sum(each**3 for each in v) / squares**1.5
    bend = skew / 3 - sum(each * s / whole for each, s in zip(v, sizes, strict=True)) / math.sqrt(squares)
    t = stats.t.ppf(0.975, max(1 / sum((s / whole) ** 2 for s in sizes) - 1, 1))

    def untransformed(q):
        return (float(np.cbrt(1 + 3 * bend * (q - skew / 6))) - 1) / bend

    error = math.sqrt(squares * (n - 1) / n)
    return value, value - error * max(t, untransformed(t)), value + error * max(t, -untransformed(-t))


# Scaling -------------------------------------------------------------------------------------------------------------


def test_the_gain_of_the_best_scale_is_that_of_its_rows():
    scales = [0.0, 0.5, 1.0, 1.2]
    for order in itertools.permutations(range(4)):
        losses = LOSSES[list(order)]
        found = scaling.best_of(scales, losses, SIZES)
        means = [sum(row) / sum(SIZES) for row in losses]
        best = means.index(min(means))
        assert found["nats_per_token"] == pytest.approx(means) and found["best"] == scales[best]
        gain = [found["gain"][key] for key in ("nats_per_token", "low", "high")]
        expected = (0.0, 0.0, 0.0) if best == 2 else ratio(losses[2] - losses[best], SIZES)
        assert gain == pytest.approx(expected)


def test_a_gain_has_a_width_where_one_of_its_rows_gains_nothing():
    losses, sizes = np.array([[1.0, 2.0, 5.0], [3.0, 2.0, 8.0]]), [4.0, 2.0, 6.0]
    gain = scaling.best_of([0.0, 1.0], losses, np.array(sizes))["gain"]
    assert [gain[key] for key in ("nats_per_token", "low", "high")] == pytest.approx(ratio([2.0, 0.0, 3.0], sizes))
    assert gain["low"] < gain["nats_per_token"] < gain["high"]
    two = scaling.best_of([0.0, 1.0], np.array([[1.0, 2.0], [3.0, 9.0]]), np.array([4.0, 3.0]))["gain"]
    assert two["low"] < 9 / 7 < two["high"]


def test_of_one_row_a_gain_has_no_width():
    found = scaling.best_of([0.0, 1.0], np.array([[1.0], [3.0]]), np.array([4.0]))
    assert found["gain"] == {"nats_per_token": 0.5, "low": 0.5, "high": 0.5} and found["best"] == 0.0


class Weights(nn.Module):
    def __init__(self, moved, still=5.0):
        super().__init__()
        self.moved, self.still = nn.Parameter(torch.tensor([moved])), nn.Parameter(torch.tensor([still]))
        self.register_parameter("frozen", nn.Parameter(torch.zeros(1), requires_grad=False))


class Language:
    """A text's log-probability is minus the moved weight times its length, in every token."""

    def __init__(self, model, tokenizer="bytes", description=None, batch_size=0, template=None):
        self.model, self.tokenizer, self.description, self.batch_size = model, tokenizer, description, batch_size
        self.template = template or SimpleNamespace(prompts=lambda rows: [f"prompt {row['id']}" for row in rows])
        self.read = []

    def encode(self, prompt, response):
        return [1], list(response.encode())

    def log_probs(self, pairs):
        assert not self.model.training
        assert (self.tokenizer, self.description.base_model, self.batch_size) == ("bytes", "gpt2", 7)
        return [np.full(len(response), -float(self.model.moved) * len(response)) for _, response in pairs]


@pytest.fixture
def curve(monkeypatch, tmp_path):
    """The curve of a model whose weight was 1 and is 3, on rows of two and three bytes."""

    def call(tuned=None, scales=(0.0, 0.5, 1.0), merges=None, base=None):
        tuned = tuned or Language(Weights(3.0).train(), description=SimpleNamespace(base_model="gpt2"))
        asked = []
        monkeypatch.setattr(scaling, "TransformersLM", Language)
        monkeypatch.setattr(scaling, "open_run", lambda run, size: asked.append((run, size)) or tuned)
        monkeypatch.setattr(scaling, "load_base", lambda *of: asked.append(of) or Language(base or Weights(1.0)))
        monkeypatch.setattr(scaling, "weights_hash", lambda folder: f"hash of {folder}")
        monkeypatch.setattr(scaling, "cache_dir", lambda: tmp_path)
        monkeypatch.setattr(scaling, "resolve", lambda name, cache: asked.append((name, cache)))
        monkeypatch.setattr(scaling, "merged", merges)
        monkeypatch.setattr(scaling, "examples_of", lambda data, arguments: [{"id": 1, "output": "ab"},
                                                                           {"id": 2, "output": "abc"}])  # fmt: skip
        run = SimpleNamespace(model="model", config=lambda: {"dataset_name": "data"})
        return scaling._curve(run, SimpleNamespace(batch_size=7), list(scales)), asked, run

    return call


def test_a_weight_is_the_bases_and_so_much_of_its_change(curve, tmp_path):
    found, asked, run = curve()
    # Two bytes cost 2 · 2 · w, three 3 · 3 · w: 13 w over 5 tokens, and w is 1, 2 and 3.
    assert found["nats_per_token"] == pytest.approx([13 / 5, 26 / 5, 39 / 5])
    assert (found["best"], found["reason"], found["examples"]) == (0.0, None, 2)
    assert found["gain"]["nats_per_token"] == pytest.approx(26 / 5) and found["weights"] == "hash of model"
    assert asked == [(run, 7), ("gpt2", 1), ("data", tmp_path / "datasets")]
    assert curve(scales=(1.0, 4.0))[0]["nats_per_token"] == pytest.approx([39 / 5, 13 * 9 / 5])


def test_what_cannot_be_scaled_says_why(curve, monkeypatch):
    assert curve(SimpleNamespace())[0] == {"weights": "hash of model", "reason": "it was not made from a base model"}
    for quantised in ({"quantization_method": "bitsandbytes"}, {"is_quantized": True}):
        model = Weights(3.0)
        vars(model).update(quantised)
        found, *_ = curve(Language(model, description=SimpleNamespace(base_model="gpt2")))
        assert found["reason"] == "its base model's weights are quantised, and nothing is merged into them"

    class Adapter(Weights):
        pass

    def refuses(model):
        raise CannotMerge("no weights")

    monkeypatch.setattr(scaling, "PeftModel", Adapter)
    adapted = Language(Adapter(9.0), description=SimpleNamespace(base_model="gpt2"))
    assert curve(adapted, merges=refuses)[0]["reason"] == "it cannot be merged: no weights"
    found, *_ = curve(adapted, merges=lambda model: Weights(3.0).bfloat16())
    assert found["nats_per_token"] == pytest.approx([13 / 5, 26 / 5, 39 / 5])
    larger = Weights(1.0)
    larger.register_parameter("more", nn.Parameter(torch.zeros(1)))
    assert curve(base=larger)[0]["reason"] == "it has other weights than its base model"
    longer = Weights(1.0)
    longer.still = nn.Parameter(torch.zeros(2))
    assert curve(base=longer)[0]["reason"] == "it has other weights than its base model"


@pytest.mark.parametrize("part", [scaling, forgetting])
@pytest.mark.parametrize(("change", "done"), [
    ({}, True), ({"split": "test"}, False), ({"weights": "other"}, False), ({"more": 1}, True), (None, False),
])  # fmt: skip
def test_what_was_measured_is_known_by_what_it_is_of(monkeypatch, tmp_path, part, change, done):
    monkeypatch.setattr(part, "weights_hash", lambda folder: "now")
    asked = {"split": "validation", "texts": 5}
    if change is not None:
        name = f"{part.__name__.rpartition('.')[2]}.json"
        (tmp_path / name).write_text(json.dumps({"schema_version": 1, **asked, "weights": "now", **change}))
    assert part._is_done(SimpleNamespace(eval=tmp_path, model="model"), asked) is done


@pytest.mark.parametrize(("flags", "said"), [
    (("--max_examples", 0), "--max_examples is 0"), (("--batch_size", 0), "--batch_size is 0"),
    (("--scales", 0.5, -0.1, 4.1), "--scales has -0.1, 4.1"), (("--max_examples", 1, "--scales", 0, 4), None),
])  # fmt: skip
def test_what_scaling_is_asked(monkeypatch, tmp_path, flags, said):
    run, written = SimpleNamespace(path=tmp_path, eval=tmp_path, name="a"), []
    monkeypatch.setattr(scaling, "RunDir", lambda path: SimpleNamespace(require_complete=lambda: run))
    monkeypatch.setattr(scaling, "_is_done", lambda run, asked: asked["split"] == "test")
    monkeypatch.setattr(scaling, "_curve", lambda run, arguments, scales: {"of": scales})
    monkeypatch.setattr(scaling, "write_json", lambda *given: written.append(given))
    monkeypatch.setattr(scaling, "_print", lambda runs: written.append(runs))
    monkeypatch.setattr("sys.argv", ["scaling.py", str(tmp_path), *map(str, flags)])
    if said:
        with pytest.raises(UserError, match=said):
            scaling.main()
        return
    scaling.main()
    asked = {"split": "validation", "max_examples": 1, "scales": [0.0, 1.0, 4.0], "of": [0.0, 1.0, 4.0]}
    assert written == [(tmp_path / "scaling.json", asked), [run]]
    monkeypatch.setattr("sys.argv", ["scaling.py", str(tmp_path), "--split", "test"])
    written.clear()
    scaling.main()
    assert written == [[run]]
    assert repr(scaling.SCALES) == "(0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)"


# Forgetting ----------------------------------------------------------------------------------------------------------


def test_forgetting_is_a_ratio_over_texts():
    generator = np.random.default_rng(9)
    own = [generator.normal(-2, 1, int(size)) for size in SIZES]
    tuned = [each - generator.gamma(1, 0.3, len(each)) for each in own]
    found = forgetting.divergence(own, tuned)
    amounts = [float(sum(a - b)) for a, b in zip(own, tuned, strict=True)]
    expected = ratio(amounts, [float(len(each)) for each in own])
    assert [found[key] for key in ("nats_per_token", "low", "high")] == pytest.approx(expected)
    assert found["scored_tokens"] == sum(map(len, own)) and found["low"] < found["nats_per_token"] < found["high"]
    back = forgetting.divergence(tuned, own)
    assert [back[key] for key in ("nats_per_token", "high", "low")] == pytest.approx([-each for each in expected])


class Writes:
    """After an opening it writes the opening's last id, counted down to EOS, and then what is no text any more."""

    device, generation_config = "cpu", None

    def __init__(self):
        self.asked = []

    def generate(self, input_ids, attention_mask, generation_config):
        self.asked.append(input_ids.tolist())
        assert attention_mask.shape == input_ids.shape and attention_mask.all()
        self.config = generation_config
        written = [[*range(row[-1] % 5, -1, -1), 7, 7, 7, 7, 7, 7][:6] for row in input_ids.tolist()]
        return torch.cat([input_ids, torch.tensor(written)], 1)


class Lengths:
    """A tokenizer that knows how long words are."""

    eos_token_id, pad_token_id = 0, 3

    def __call__(self, text):
        return SimpleNamespace(input_ids=[len(word) for word in text.split()])


@pytest.fixture
def base(monkeypatch):
    monkeypatch.setattr(forgetting, "nothing_of_its_own", lambda model: torch.no_grad())

    def make(bos=9):
        tokenizer = lambda text: SimpleNamespace(input_ids=[len(word) for word in text.split()])  # noqa: E731
        of = {"bos_token_id": bos, "eos_token_id": 0, "pad_token_id": 3}
        return SimpleNamespace(
            model=Writes(), tokenizer=type("T", (), {"__call__": lambda self, text: tokenizer(text), **of})()
        )

    return make


@pytest.mark.parametrize(("bos", "start"), [(9, 9), (None, 0), (0, 0)])
def test_the_texts_of_a_base_model(base, tmp_path, bos, start):
    wanted = {"base": "w", "texts": 45, "tokens": 48, "seed": 0}
    model = base(bos)
    found = forgetting._texts(model, tmp_path, wanted)
    assert len(found) == 45
    for number, (opening, written) in enumerate(found):
        words = forgetting.OPENINGS[number // 2 % 20].split() if number % 2 == 0 else []
        assert opening == [start, *map(len, words)]
        assert written == [*range(opening[-1] % 5, -1, -1)]  # up to EOS and with it, and no further
    batches = model.model.asked
    assert all(len({len(row) for row in batch}) == 1 and len(batch) <= 16 for batch in batches)
    assert sum(map(len, batches)) == 45 and [len(batch[0]) for batch in batches] == sorted(len(b[0]) for b in batches)
    config = model.model.config
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 1.0, 0, 1.0)
    assert (config.max_new_tokens, config.min_new_tokens, config.eos_token_id, config.pad_token_id) == (48, 1, 0, 3)


def test_texts_are_written_once_for_what_is_wanted(base, tmp_path):
    wanted = {"base": "w", "texts": 4, "tokens": 48, "seed": 0}
    first = forgetting._texts(base(), tmp_path, wanted)
    again = base()
    assert forgetting._texts(again, tmp_path, wanted) == first and not again.model.asked
    assert json.loads((tmp_path / "eval/own_texts.json").read_text())["wanted"] == wanted
    other = base()
    assert len(forgetting._texts(other, tmp_path, {**wanted, "texts": 2})) == 2 and other.model.asked
    assert forgetting.TOKENS == 48 and forgetting.SEED == 0 and len({*forgetting.OPENINGS}) == 20


def test_a_text_that_does_not_end_is_as_long_as_it_may_be(base, tmp_path):
    model = base()
    model.model.generate = lambda input_ids, **how: torch.cat([input_ids, torch.full((len(input_ids), 6), 7)], 1)
    assert forgetting._texts(model, tmp_path, {"texts": 2})[1] == ([9], [7] * 6)


@pytest.mark.parametrize("texts", [1, 2])
def test_what_forgetting_is_measured_of(monkeypatch, tmp_path, capsys, texts):
    """Runs that were made from these very weights, and that are not measured already."""
    done, told = {"done": True}, []
    runs = {
        name: SimpleNamespace(path=name, eval=tmp_path / name, model=name, name=name,
                              provenance=lambda name=name: {"base_model_hash": "w" if name != "foreign" else "x"})
        for name in ("a", "done", "foreign", "b")
    }  # fmt: skip
    results = SimpleNamespace(model=SimpleNamespace(method="base", base_model="gpt2"), hashes={"weights": "w"})
    monkeypatch.setattr(forgetting.Results, "read", lambda path: results)
    monkeypatch.setattr(forgetting, "RunDir", lambda path: SimpleNamespace(require_complete=lambda: runs[path.name]))
    monkeypatch.setattr(forgetting, "_is_done", lambda run, wanted: done.get(run.name, False))
    language = lambda name: SimpleNamespace(log_probs=lambda pairs: (name, pairs))  # noqa: E731
    monkeypatch.setattr(forgetting, "load_base", lambda name, size: language((name, size)))
    monkeypatch.setattr(forgetting, "open_run", lambda run, size: language((run.name, size)))
    monkeypatch.setattr(forgetting, "_texts", lambda base, folder, wanted: (str(folder), wanted["texts"]))
    monkeypatch.setattr(forgetting, "divergence", lambda own, tuned: {"of": (own, tuned)})
    monkeypatch.setattr(forgetting, "weights_hash", lambda folder: f"hash of {folder}")
    monkeypatch.setattr(forgetting, "write_json", lambda *given: told.append(given))
    monkeypatch.setattr(forgetting, "_print", lambda runs: told.append([run.name for run in runs]))
    monkeypatch.setattr("sys.argv", ["forgetting.py", *runs, "--base", "base", "--texts", str(texts)])
    if texts < 2:
        with pytest.raises(UserError, match="--texts is 1; it must be at least 2"):
            forgetting.main()
        return
    forgetting.main()
    wanted = {"base": "w", "texts": 2, "tokens": 48, "seed": 0}
    expected = [
        (tmp_path / name / "forgetting.json", {**wanted, "weights": f"hash of {name}", "of": (
            (("gpt2", 16), ("base", 2)), ((name, 16), ("base", 2)))})
        for name in ("a", "b")
    ]  # fmt: skip
    assert told == [*expected, ["a", "done", "b"]]
    assert "foreign was not made from base: its forgetting is not measured" in capsys.readouterr().out
    told.clear()
    done |= {"a": True, "b": True}
    monkeypatch.setattr(forgetting, "load_base", None)  # nothing is loaded where nothing is to be done
    forgetting.main()
    assert told == [["a", "done", "b"]]
    results.model.method = "lora"
    with pytest.raises(UserError, match="base is a lora run; --base names an evaluated base model's dir"):
        forgetting.main()
