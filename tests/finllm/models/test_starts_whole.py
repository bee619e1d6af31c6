"""Beginnings of adapters: which rows are asked and how, what is kept of them, and the whole config that is saved."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import corda, loraga
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from finllm.models import starts

ROWS = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4, 5], "labels": [4, -100]},
        {"input_ids": [6, 7, 8, 9], "labels": [-100, -100, 8, 9]}]  # fmt: skip


def llama():
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(("start", "preprocess", "gradient"), [
    ("corda", (corda, "preprocess_corda"), False), ("lora_ga", (loraga, "preprocess_loraga"), True),
])  # fmt: skip
def test_which_rows_are_asked_before_an_adapter_is_built_and_how(monkeypatch, start, preprocess, gradient):
    """A label of a first token is predicted of nothing, so the second row teaches nothing. No key is kept."""
    model, config, asked, found = llama(), LoraConfig(init_lora_weights=start, target_modules="all-linear"), [], []

    def looks(given, settings, run=None, run_model=None):
        assert (given, settings) == (model, config) and torch.is_grad_enabled() is gradient and not model.training
        for _ in range(2):  # as CorDA may, which reads some of them again
            (run or run_model)()
            found.append(model.lm_head.weight.grad is not None)

    def noted(module, positional, named):
        asked.append({name: held.tolist() if torch.is_tensor(held) else held for name, held in named.items()})

    monkeypatch.setattr(*preprocess, looks)
    model.train().register_forward_pre_hook(noted, with_kwargs=True)
    starts.look_at(model, config, ROWS)
    read = [{name: [held] for name, held in row.items() if gradient or name == "input_ids"} for row in ROWS[::2]]
    assert asked == [{**row, "use_cache": False} for row in read] * 2 and found == [gradient] * 2
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.split(".")[-1] for name in config.target_modules} == names and "lm_head" not in config.target_modules
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("start", ["eva", "pissa", "gaussian", True])
def test_other_beginnings_ask_nothing_before(start):
    model, config = llama(), LoraConfig(init_lora_weights=start, target_modules="all-linear")
    model.register_forward_pre_hook(lambda *given: pytest.fail("it is asked"))
    starts.look_at(model, config, [])
    assert config.target_modules == "all-linear"


def test_rows_that_are_no_list_are_read_one_by_one_up_to_256():
    read = []

    class Rows:
        def __len__(self):
            return 300

        def __getitem__(self, number):
            read.append(number)
            return {"input_ids": [number], "labels": [5]}  # which teaches nothing

    model, config = nn.Linear(1, 1), SimpleNamespace(init_lora_weights="eva")
    model.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=1000))
    assert [*starts._batches(model, config, Rows())] == [] and read == list(range(256))
    long = {"input_ids": list(range(600)), "labels": [-100] * 511 + [7] * 89}
    (batch,) = starts._batches(model, config, [long])
    assert batch["input_ids"].tolist() == [[*range(512)]] and batch["labels"].tolist() == [[-100] * 511 + [7]]
    beyond = {"input_ids": list(range(600)), "labels": [-100] * 512 + [7] * 88}
    assert [*starts._batches(model, config, [beyond])] == []


def test_what_is_taken_out_is_kept_by_name_and_trains_no_more():
    """The head's is the last of a model's tensors."""
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights="pissa")
    adapted = get_peft_model(llama(), config)
    starts.finish(adapted, [])
    places = ("base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.lm_head")
    parameters = dict(adapted.named_parameters())
    assert [*adapted.taken_out] == [f"{place}.lora_{side}.default.weight" for place in places for side in "AB"]
    for name, held in adapted.taken_out.items():
        assert torch.equal(held, parameters[name]) and not held.requires_grad
        assert held.data_ptr() != parameters[name].data_ptr()


def test_dora_of_an_embedding_and_of_a_coarse_layer_begins_as_the_base():
    """What an embedding begins with is peft's; a layer's magnitudes are norms in float32."""
    names = ["embed_tokens", "q_proj", "down_proj"]
    model = llama().bfloat16()
    weights = {name: module.weight.detach().clone() for name, module in model.named_modules()
               if name.split(".")[-1] in names}  # fmt: skip
    adapted = get_peft_model(model, LoraConfig(r=2, use_dora=True, target_modules=names))
    before = {name: held.clone() for name, held in adapted.named_parameters() if "magnitude" in name}
    starts.finish(adapted, [])
    assert not hasattr(adapted, "taken_out")
    for name, held in adapted.named_parameters():
        if "magnitude" in name and "embed" in name:
            assert torch.equal(held, before[name])
        elif "magnitude" in name:
            weight = weights[name.removeprefix("base_model.model.").split(".lora_")[0]].float()
            assert held.dtype == torch.float32 and held.detach() == pytest.approx(weight.norm(dim=1), rel=1e-6)
    assert len(before) == 3 and len(weights) == 3


@pytest.mark.parametrize(("patterns", "rslora", "factor"), [
    (({"q_proj": 3}, {"q_proj": 5}), False, 2), (({"q_proj": 3}, {"q_proj": 5}), True, 2**0.5),
    ((None, None), False, 2),
])  # fmt: skip
def test_the_whole_config_of_what_becomes_a_plain_adapter(tmp_path, patterns, rslora, factor):
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"], init_lora_weights="pissa", use_rslora=rslora,
                        rank_pattern=patterns[0] or {}, alpha_pattern=patterns[1] or {})  # fmt: skip
    adapted = get_peft_model(llama(), config)
    starts.finish(adapted, [])
    adapted.save_pretrained(tmp_path)
    place = tmp_path / "adapter_config.json"
    before = json.loads(place.read_text())
    before |= {"corda_config": {"cache_file": "x"}, "lora_ga_config": {"direction": "y"}}
    before |= dict(zip(("rank_pattern", "alpha_pattern"), patterns, strict=True))
    place.write_text(json.dumps(before))
    held = load_file(tmp_path / "adapter_model.safetensors")
    starts.save_as_plain_lora(adapted, tmp_path)
    ranks, alphas = ({"q_proj": 6}, {"q_proj": factor * 5}) if patterns[0] else ({}, {})
    assert json.loads(place.read_text()) == before | {
        "init_lora_weights": True, "r": 4, "lora_alpha": factor * 3, "rank_pattern": ranks, "alpha_pattern": alphas,
        "corda_config": None, "lora_ga_config": None,
    }  # fmt: skip
    saved = load_file(tmp_path / "adapter_model.safetensors")
    rank = 3 if patterns[0] else 2
    assert {*saved} == {*held} and len(held) == 2
    for name, now in saved.items():  # as nothing has trained, the two halves cancel
        side = 0 if "lora_A" in name else 1
        first, second = now.split(rank, side)
        assert torch.equal(first, held[name]) and torch.equal(second, first if side == 0 else -first)
