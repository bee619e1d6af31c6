"""Adapters that take something out of their base, and adapters that are merged: the model is the same by every way.

What is saved is loaded on a fresh base and must give the logits of the model that was saved; what is merged must give
those of the adapter. The models have one layer.
"""

import copy
import json
import math
from types import SimpleNamespace

import peft
import pytest
import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import corda, loraga
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from finllm.errors import UserError
from finllm.models import adapters, merge, starts
from finllm.models.merge import CannotMerge, merged, merged_proof

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


def moved(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def base(vocabulary=20):
    torch.manual_seed(1)
    tokens = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(n_positions=16, n_embd=8, n_layer=1, n_head=2, **tokens)
    return moved(GPT2LMHeadModel(config))


def llama():
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)
    return moved(LlamaForCausalLM(config))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


PATTERNS = {"rank_pattern": {"up_proj": 3}, "alpha_pattern": {"up_proj": 5}}


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, PATTERNS, {"use_rslora": True, **PATTERNS}], ids=str)
def test_what_was_taken_out_of_the_base_is_saved_as_a_plain_adapter_of_it(tmp_path, start, settings):
    targets = ["q_proj", "up_proj"]
    config = LoraConfig(r=2, lora_alpha=3, target_modules=targets, init_lora_weights=start, **settings)
    adapted = get_peft_model(llama(), config).eval()
    starts.finish(adapted, [])
    assert len(adapted.taken_out) == 4
    first = {name: tensor.clone() for name, tensor in adapted.taken_out.items()}
    assert logits(adapted) == pytest.approx(logits(llama()), abs=1e-4)  # as it begins, it is the base
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    assert all(torch.equal(adapted.taken_out[name], tensor) for name, tensor in first.items())
    adapted.save_pretrained(tmp_path)
    starts.save_as_plain_lora(adapted, tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    factor = 2**0.5 if settings.get("use_rslora") else 2
    assert (saved["init_lora_weights"], saved["r"]) == (True, 4) and saved["lora_alpha"] == pytest.approx(3 * factor)
    assert saved["rank_pattern"] == {key: 2 * rank for key, rank in settings.get("rank_pattern", {}).items()}
    again = PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert (logits(adapted) - logits(llama())).abs().max() > 0.1
    assert logits(again) == pytest.approx(logits(adapted), abs=1e-4)


def test_what_is_saved_as_a_plain_adapter_keeps_the_precision_that_it_was_saved_in(tmp_path):
    adapted = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"))
    starts.finish(adapted, [])
    adapted.bfloat16().save_pretrained(tmp_path)
    starts.save_as_plain_lora(adapted, tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.bfloat16}
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as saved:
        assert saved.metadata() == {"format": "pt"}  # by which transformers knows whose tensors they are


def test_an_adapter_that_took_nothing_out_is_saved_as_it_is(tmp_path):
    adapted = get_peft_model(base(), LoraConfig(r=2, target_modules=["attn.c_attn"], fan_in_fan_out=True))
    starts.finish(adapted, [])
    adapted.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    starts.save_as_plain_lora(adapted, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert not hasattr(adapted, "taken_out") and load_file(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize(("start", "takes"), [
    ("pissa", True), ("pissa_niter_4", True), ("PiSSA", True), ("olora", True), ("corda", True), ("lora_ga", True),
    ("eva", False), (True, False), ("gaussian", False), ("loftq", False),
])  # fmt: skip
def test_which_beginnings_take_something_out(start, takes):
    assert starts.takes_out(SimpleNamespace(init_lora_weights=start)) is takes
    assert starts.takes_out(SimpleNamespace()) is False


@pytest.mark.parametrize("half", [(), ("A",), ("B",), ("A", "B")], ids=str)
@pytest.mark.parametrize("fan", [True, False])
def test_doras_magnitudes_are_the_norms_of_its_weights_in_float32(fan, half):
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(6, 5, bias=False)) if not fan else base().transformer.h[0].attn
    name = "0" if not fan else "c_attn"
    model = get_peft_model(whole, LoraConfig(r=2, use_dora=True, target_modules=[name], fan_in_fan_out=fan))
    layer = next(module for module in model.modules() if getattr(module, "lora_magnitude_vector", {}))
    layer.get_base_layer().bfloat16()
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(std=0.5)
        layer.lora_magnitude_vector["default"].weight.zero_()
    for side in half:
        getattr(layer, f"lora_{side}")["default"].bfloat16()
    starts._measure_magnitudes(model)
    weight = layer.get_base_layer().weight.detach().float()
    weight = weight.T if fan else weight
    first, second = (getattr(layer, f"lora_{side}")["default"].weight.detach().float() for side in "AB")
    weight = weight + layer.scaling["default"] * second @ first
    found = layer.lora_magnitude_vector["default"].weight
    assert found.flatten().detach() == pytest.approx((weight**2).sum(1).sqrt().detach(), rel=1e-6)


@pytest.mark.parametrize(("start", "tried"), [
    ("eva", "True"), ("corda", "True"), ("lora_ga", "True"), ("pissa", "pissa"), ("gaussian", "gaussian"),
])  # fmt: skip
def test_a_beginning_that_reads_rows_is_tried_without_them(monkeypatch, start, tried):
    def refuses(model, config):
        raise ValueError(config.init_lora_weights)

    monkeypatch.setattr(peft, "get_peft_model", refuses)
    config = SimpleNamespace(init_lora_weights=start)
    assert (adapters._wrong_on(llama(), config), config.init_lora_weights) == (tried, start)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("start", "told"), [
    ("corda", ["corda", 1, False, False]), ("lora_ga", ["lora_ga", 1, False, True]), ("eva", []), (True, []),
])  # fmt: skip
def test_rows_go_through_the_model_before_the_adapter_is_built(monkeypatch, start, told, training):
    """Of LoRA-GA forward and back, of CorDA forward alone; without dropout, and without a trace."""
    found, forwards = [], []

    def looks(name, run):
        run()
        found.extend([name, len(forwards), model.training, model.lm_head.weight.grad is not None])

    monkeypatch.setattr(corda, "preprocess_corda", lambda model, config, run_model: looks("corda", run_model))
    monkeypatch.setattr(loraga, "preprocess_loraga", lambda model, config, run: looks("lora_ga", run))
    model = llama().train(training)
    model.register_forward_hook(lambda *given: forwards.append(given))
    config = SimpleNamespace(init_lora_weights=start, target_modules=["q_proj"])
    starts.look_at(model, config, [{"input_ids": IDS[0].tolist(), "labels": IDS[0].tolist()}])
    assert found == told and model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_eva_reads_whole_rows_without_dropout(monkeypatch, training):
    found = []

    def looks(model, batches, **given):
        whole = [{key: held.tolist() for key, held in batch.items()} for batch in batches]
        found.append((model.training, whole, given))

    monkeypatch.setattr(peft, "initialize_lora_eva_weights", looks)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="eva", eva_config=EvaConfig(rho=1))
    adapted = get_peft_model(llama(), config).train(training)
    starts.finish(adapted, [row(3), row(2)])
    read = [{"input_ids": [[0, 1, 2]], "attention_mask": [[1, 1, 1]]},
            {"input_ids": [[0, 1]], "attention_mask": [[1, 1]]}]  # fmt: skip
    assert found == [(False, read, {"show_progress_bar": False})] and adapted.training is training


def row(length, supervised=True):
    return {"input_ids": list(range(length)), "labels": [-100] + [7 if supervised else -100] * (length - 1)}


def test_the_rows_that_a_beginning_reads():
    """One a batch, up to four tokens a column of its layers, 512 of each and 256 rows; those that teach nothing not."""
    model = nn.Linear(1, 1)
    model.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=10))
    config = SimpleNamespace(init_lora_weights="eva")

    def read(rows):
        return [batch["input_ids"].shape for batch in starts._batches(model, config, rows)]

    assert read([row(30), row(9), row(1), row(20)]) == [(1, 30), (1, 9), (1, 20)]  # 39 are too few, 40 are enough
    assert read([row(31), row(9), row(20)]) == [(1, 31), (1, 9)]
    assert read([row(600), row(9)]) == [(1, 512)] and read([row(5, supervised=False), row(3)]) == [(1, 3)]
    assert len(read([row(1, False), *[row(2, False)] * 254, row(2), row(2)])) == 1
    (batch,) = starts._batches(model, config, [row(3)])
    assert batch["input_ids"].tolist() == [[0, 1, 2]] and batch["labels"].tolist() == [[-100, 7, 7]]
    lazy = type("Rows", (), {"__len__": lambda self: 3, "__getitem__": lambda self, number: row(3 + number)})()
    assert read(lazy) == [(1, 3), (1, 4), (1, 5)]
    with pytest.raises(UserError, match="init_lora_weights is 'eva', which reads training rows, and there are none"):
        read([])


def test_eva_begins_with_directions_of_the_inputs_and_is_the_base():
    torch.manual_seed(2)
    rows = [{"input_ids": IDS[number].tolist(), "labels": IDS[number].tolist()} for number in range(2)]
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights="eva", eva_config=EvaConfig(rho=1))
    adapted = get_peft_model(llama(), config).train()
    starts.finish(adapted, rows)
    firsts = [parameter for name, parameter in adapted.named_parameters() if "lora_A" in name]
    assert [first.shape for first in firsts] == [(2, 8), (2, 8)]
    for first in firsts:
        torch.testing.assert_close(first @ first.T, torch.eye(2), atol=1e-5, rtol=0)
    assert adapted.training and not hasattr(adapted, "taken_out")
    assert logits(adapted) == pytest.approx(logits(llama()), abs=1e-5)


# Merging -------------------------------------------------------------------------------------------------------------


def adapter(vocabulary=20):
    config = LoraConfig(r=2, target_modules=["attn.c_attn"], fan_in_fan_out=True)
    adapted = get_peft_model(base(vocabulary), config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return adapted


def test_a_merged_model_is_plain_and_gives_what_the_adapter_gave():
    adapted = adapter()
    before = logits(adapted)
    model = merged(adapted)
    assert type(model) is GPT2LMHeadModel and model.state_dict().keys() == base().state_dict().keys()
    assert logits(model) == pytest.approx(before, abs=1e-5)


def test_what_cannot_be_merged_says_why(monkeypatch):
    class Refuses(nn.Module):
        def __init__(self, error):
            super().__init__()
            self.error = error

        def merge_and_unload(self):
            raise self.error

    monkeypatch.setattr(merge, "virtual_tokens", lambda model: 0)
    monkeypatch.setattr(merge, "base_of", lambda model: model)
    with pytest.raises(CannotMerge, match=r"^one two$"):
        merged(Refuses(ValueError("one\n  two")))
    with pytest.raises(CannotMerge, match=r"^KeyError$"):
        merged(Refuses(KeyError()))
    with pytest.raises(CannotMerge) as found:
        merged(Refuses(ValueError("a" * 999)))
    assert len(str(found.value)) == 200
    monkeypatch.setattr(merge, "virtual_tokens", lambda model: 4)
    with pytest.raises(CannotMerge, match="its virtual tokens are no weights of the base model"):
        merged(Refuses(ValueError()))


@pytest.mark.parametrize("turned", [True, False, None])
def test_layers_that_were_turned_are_turned_back(monkeypatch, turned):
    told = []
    plain = SimpleNamespace(config="config")
    adapted = SimpleNamespace(merge_and_unload=lambda: plain)
    if turned is not None:  # of most models nothing says whether they were
        adapted.turned_conv1d = turned
    monkeypatch.setattr(merge, "virtual_tokens", lambda model: 0)
    monkeypatch.setattr(merge, "base_of", lambda model: model)
    monkeypatch.setattr(merge, "skeleton", lambda config: f"skeleton of {config}")
    monkeypatch.setattr(merge.conv1d, "to_conv1d", lambda *given: told.append(given))
    assert merged(adapted) is plain and told == ([(plain, "skeleton of config")] if turned else [])


ROWS = [{"input_ids": IDS[0].tolist(), "labels": [-100, -100, *IDS[0, 2:].tolist()]}]


@pytest.mark.parametrize(("apart", "passed"), [(0.0, True), (0.9e-4, True), (1.1e-4, False)])
def test_how_far_a_merged_model_may_be_from_its_adapter(apart, passed):
    adapted = adapter()
    own_N = merge.nll_of(copy.deepcopy(adapted), ROWS).double()
    own_N += apart * torch.tensor([1, -1]).repeat(len(own_N) // 2 + 1)[: len(own_N)]  # in both directions
    proof = merged_proof(adapted, ROWS, own_N)
    assert (proof.name, proof.limit, proof.passed) == ("merged model", 1e-4, passed)
    assert proof.figure == pytest.approx(apart, abs=2e-6)
    nothing = merged_proof(adapter(), [], torch.zeros(0))
    assert nothing.figure == 0.0 and nothing.said == "merged into the base model, a token's loss is within 0 nats"


def test_a_merged_model_may_be_as_far_as_the_limit_and_no_farther():
    """Of a vocabulary of one token every model is sure: its loss is 0 exactly. It is the mean that counts."""
    row = {"input_ids": [0] * 5, "labels": [-100, 0, 0, 0, 0]}
    for apart, passed in ((1e-4, True), (math.nextafter(1e-4, 1), False)):
        own_N = torch.tensor([0.0, 0.0, 0.0, 4 * apart], dtype=torch.float64)
        proof = merged_proof(adapter(vocabulary=1), [row], own_N)
        assert (proof.figure, proof.passed) == (apart, passed) and type(proof.figure) is float


@pytest.mark.parametrize(("of", "said"), [
    ({"virtual": 3}, "its virtual tokens are no weights"), ({"quantization_method": "x"}, "into so few bits nothing"),
    ({"base": "x"}, "into so few bits nothing"),
    ({"refuses": True}, "it stays an adapter, since it cannot be merged: no"),
])  # fmt: skip
def test_what_is_not_merged_has_no_figure(monkeypatch, of, said):
    adapted = adapter()
    if "quantization_method" in of:
        adapted.quantization_method = "bitsandbytes"
    if "base" in of:
        merge.base_of(adapted).quantization_method = "bitsandbytes"
    monkeypatch.setattr(merge, "virtual_tokens", lambda model: of.get("virtual", 0))
    if "refuses" in of:

        def refuses(model):
            raise CannotMerge("no")

        monkeypatch.setattr(merge, "merged", refuses)
    proof = merged_proof(adapted, ROWS, torch.zeros(6))
    assert proof.figure is None and proof.passed and said in proof.said
