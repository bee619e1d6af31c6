"""Scaling and forgetting: whole figures as they are written, coarse weights, every weight, texts that are drawn."""

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

# Scaling -------------------------------------------------------------------------------------------------------------


class Weights(nn.Module):
    def __init__(self, first, middle, last):
        super().__init__()
        for name, value in (("first", first), ("middle", middle), ("last", last)):
            self.register_parameter(name, nn.Parameter(torch.tensor([value])))


class Adapter(Weights):
    """What peft made."""


class Language:
    """Every token costs the sum of the weights."""

    def __init__(self, model, tokenizer=None, description=None, batch_size=0, template=None):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.description = SimpleNamespace(base_model="gpt2")
        self.template = SimpleNamespace(prompts=lambda rows: [row["id"] for row in rows])

    def encode(self, prompt, response):
        return [1], list(response.encode())

    def log_probs(self, pairs):
        assert not self.model.training
        cost = sum(float(weight) for weight in self.model.parameters())
        return [np.full(len(response), -cost) for _, response in pairs]


@pytest.fixture
def curve(monkeypatch, tmp_path):
    """The curve of `tuned`, made from `base`, on rows of two and three bytes."""

    def call(tuned, base, scales=(0.0, 1.0), merges=None):
        monkeypatch.setattr(scaling, "PeftModel", Adapter)
        monkeypatch.setattr(scaling, "TransformersLM", Language)
        monkeypatch.setattr(scaling, "open_run", lambda run, size: Language(tuned))
        monkeypatch.setattr(scaling, "load_base", lambda name, size: Language(base))
        monkeypatch.setattr(scaling, "weights_hash", lambda folder: f"hash of {folder}")
        monkeypatch.setattr(scaling, "cache_dir", lambda: tmp_path)
        monkeypatch.setattr(scaling, "resolve", lambda name, cache: name)
        monkeypatch.setattr(scaling, "merged", merges)
        rows = [{"id": "a", "output": "ab"}, {"id": "b", "output": "abc"}]
        monkeypatch.setattr(scaling, "examples_of", lambda data, arguments: rows)
        run = SimpleNamespace(model="model", config=lambda: {"dataset_name": "data"})
        return scaling._curve(run, SimpleNamespace(batch_size=7), list(scales))

    return call


def test_what_is_written_of_a_curve(curve):
    """Of a base at 1 + 0 + 0 and a run at 1 + 2 + 4 nats a token."""
    found = curve(Weights(1.0, 2.0, 4.0), Weights(1.0, 0.0, 0.0), (0.0, 0.5, 1.0))
    assert found == {
        "weights": "hash of model", "reason": None, "nats_per_token": [1.0, 4.0, 7.0], "best": 0.0,
        "gain": {"nats_per_token": 6.0, "low": 6.0, "high": 6.0}, "examples": 2,  # as much better in every token
    }  # fmt: skip
    numbers = [*found["nats_per_token"], found["best"], *found["gain"].values()]
    assert {type(number) for number in numbers} == {float}


@pytest.mark.parametrize("changed", range(3))
def test_a_change_is_scaled_whichever_weight_it_is_of(curve, changed):
    of_run = [1.0, 1.0, 1.0]
    of_run[changed] = 3.0
    assert curve(Weights(*of_run), Weights(1.0, 1.0, 1.0))["nats_per_token"] == [3.0, 5.0]


@pytest.mark.parametrize("merges", [None, lambda adapted: Weights(3.0, 0.0, 0.0).bfloat16()])
@pytest.mark.parametrize("coarse", ["neither", "run", "base", "both"])
def test_weights_are_scaled_in_float32_however_coarse_they_were_kept(curve, coarse, merges):
    tuned, base = (Adapter if merges else Weights)(3.0, 0.0, 0.0), Weights(1.0, 0.0, 0.0)
    tuned = tuned.bfloat16() if coarse in ("run", "both") else tuned
    base = base.bfloat16() if coarse in ("base", "both") else base
    found = curve(tuned, base, (0.0, 0.1, 1.0), merges)
    assert found["nats_per_token"] == pytest.approx([1.0, 1.2, 3.0], rel=1e-6)  # bfloat16 has 1.203


def test_why_a_run_is_not_scaled_stands_beside_its_hash(curve):
    base = Weights(1.0, 1.0, 1.0)

    def refuses(model):
        raise CannotMerge("no weights")

    quantised = Weights(1.0, 1.0, 1.0)
    quantised.is_quantized = True
    other = Weights(1.0, 1.0, 1.0)
    other.register_parameter("more", nn.Parameter(torch.zeros(1)))
    for found, reason in (
        (curve(quantised, base), "its base model's weights are quantised, and nothing is merged into them"),
        (curve(Adapter(1.0, 1.0, 1.0), base, merges=refuses), "it cannot be merged: no weights"),
        (curve(other, base), "it has other weights than its base model"),
    ):
        assert found == {"weights": "hash of model", "reason": reason}


@pytest.mark.parametrize("scales", [("-0.1",), ("4.1", "1"), ("1", "4.1")])
def test_a_scale_beyond_the_ends_is_refused_wherever_it_stands(monkeypatch, tmp_path, scales):
    monkeypatch.setattr("sys.argv", ["scaling.py", str(tmp_path), "--scales", *scales])
    with pytest.raises(UserError, match=r"--scales has (-0\.1|4\.1); a scale is 0 to 4"):
        scaling.main()


def test_the_curve_of_each_run_is_asked_for_with_what_the_command_was_given(monkeypatch, tmp_path):
    runs = {name: SimpleNamespace(path=tmp_path / name, eval=tmp_path / name, model=name) for name in "ab"}
    seen = []

    def curve_of(run, arguments, scales):
        seen.append((run, arguments.split, arguments.max_examples, arguments.batch_size, scales))
        return {"reason": "none"}

    monkeypatch.setattr(scaling, "RunDir", lambda path: SimpleNamespace(require_complete=lambda: runs[path.name]))
    monkeypatch.setattr(scaling, "weights_hash", lambda folder: folder)
    monkeypatch.setattr(scaling, "_curve", curve_of)
    monkeypatch.setattr(scaling, "_print", lambda of: seen.append(of))
    monkeypatch.setattr("sys.argv", ["scaling.py", *runs, "--scales", "0.5", "--split", "test", "--max_examples", "3",
                                     "--batch_size", "2"])  # fmt: skip
    scaling.main()
    assert seen == [(runs[name], "test", 3, 2, [0.5, 1.0]) for name in "ab"] + [[*runs.values()]]


# Forgetting ----------------------------------------------------------------------------------------------------------


def test_what_is_written_of_forgetting():
    """Of two texts of two tokens each, one of them 1 nat more likely to the base, the other 3 nats: 1 nat a token."""
    own = [np.array([-1.0, -2.0]), np.array([-1.0, -1.0])]
    found = forgetting.divergence(own, [np.array([-1.5, -2.5]), np.array([-1.0, -4.0])])
    reach = 0.5 * stats.t.ppf(0.975, 1)  # no skew in two values: their standard error is half their distance, of 2 nats
    assert found == pytest.approx({"nats_per_token": 1.0, "low": 1 - reach, "high": 1 + reach, "scored_tokens": 4})
    assert [type(number) for number in found.values()] == [float, float, float, int]
    assert forgetting.divergence(own, own) == {"nats_per_token": 0.0, "low": 0.0, "high": 0.0, "scored_tokens": 4}


WANTED = {"base": "w", "texts": 45, "tokens": 48, "seed": 0}


def drawing(asked):
    """A base model whose texts are drawn by torch; `asked` holds the openings that its tokenizer was given."""

    def generate(input_ids, attention_mask, generation_config):
        return torch.cat([input_ids, torch.randint(10, 10**6, (len(input_ids), 4))], 1)

    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id = 9, 0, 3

        def __call__(self, text):
            asked.append(text)
            return SimpleNamespace(input_ids=[len(word) for word in text.split()])

    return SimpleNamespace(model=SimpleNamespace(device="cpu", generate=generate), tokenizer=Tokenizer())


def test_texts_are_the_same_whatever_was_drawn_before(monkeypatch, tmp_path):
    monkeypatch.setattr(forgetting, "nothing_of_its_own", lambda model: torch.no_grad())
    asked, found = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(forgetting._texts(drawing(asked), tmp_path / str(seed), WANTED))
    assert found[0] == found[1] and len({tuple(text) for _, text in found[0]}) == 45
    torch.manual_seed(0)
    (first,) = torch.randint(10, 10**6, (16, 4))[:1].tolist()
    assert found[0][1] == ([9], first)  # the shortest openings come first, which are none


def test_what_the_base_model_is_given_to_go_on_with(monkeypatch, tmp_path):
    """Figures of other openings are of other texts."""
    monkeypatch.setattr(forgetting, "nothing_of_its_own", lambda model: torch.no_grad())
    asked = []
    forgetting._texts(drawing(asked), tmp_path, WANTED)
    assert asked[:20] == [*forgetting.OPENINGS] and asked[20:] == asked[:3]
    assert [text for text in asked[:20] if " " not in text] == ["The", "Yesterday", "Music"]


@pytest.mark.parametrize("key", [*WANTED, "weights"])
def test_figures_of_other_texts_are_measured_anew(monkeypatch, tmp_path, key):
    monkeypatch.setattr(forgetting, "weights_hash", lambda folder: "now")
    run = SimpleNamespace(eval=tmp_path, model="model")
    held = {"schema_version": 1, **WANTED, "weights": "now", "nats_per_token": 0.5}
    (tmp_path / "forgetting.json").write_text(json.dumps(held))
    assert forgetting._is_done(run, WANTED) is True
    (tmp_path / "forgetting.json").write_text(json.dumps({**held, key: "other"}))
    assert forgetting._is_done(run, WANTED) is False
    del held[key]
    (tmp_path / "forgetting.json").write_text(json.dumps(held))
    assert forgetting._is_done(run, WANTED) is False


def test_of_a_base_model_without_a_hash_every_run_is_measured(monkeypatch, tmp_path):
    """Whether a run was made from it cannot be told."""
    run = SimpleNamespace(path=tmp_path, eval=tmp_path, model="m", provenance=lambda: {"base_model_hash": "x"})
    results = SimpleNamespace(model=SimpleNamespace(method="base", base_model="gpt2"), hashes={})
    model = SimpleNamespace(log_probs=lambda pairs: [np.array([-math.log(2)])])
    for name, value in {
        "RunDir": lambda path: SimpleNamespace(require_complete=lambda: run), "weights_hash": lambda folder: "h",
        "load_base": lambda name, size: model, "open_run": lambda run, size: model, "_print": lambda runs: None,
        "_texts": lambda base, folder, wanted: [([9], [1])],
    }.items():  # fmt: skip
        monkeypatch.setattr(forgetting, name, value)
    monkeypatch.setattr(forgetting.Results, "read", lambda path: results)
    monkeypatch.setattr("sys.argv", ["forgetting.py", "run", "--base", "base", "--texts", "2"])
    forgetting.main()
    held = json.loads((tmp_path / "forgetting.json").read_text())
    assert held == {"schema_version": 1, **WANTED, "base": "", "texts": 2, "weights": "h", "nats_per_token": 0.0,
                    "low": 0.0, "high": 0.0, "scored_tokens": 1}  # fmt: skip
