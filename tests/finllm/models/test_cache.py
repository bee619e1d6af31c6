"""The cache and the head of answering change no number: held against transformers' own ways."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)
from transformers.cache_utils import DynamicLayer

from finllm.models import cache
from finllm.models.cache import RoomyLayer, head_of_last_positions, roomy_cache
from finllm.models.find import load_tokenizer
from finllm.models.generate import answer_all, decoding


def steps(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 2, length, 4, generator=generator).unbind() for length in lengths]


def test_keys_and_values_are_those_of_transformers_own_layer():
    ours, own = RoomyLayer(), DynamicLayer()
    for keys, values in steps(5, *[1] * 90, 7, 1):
        found, wanted = ours.update(keys, values), own.update(keys, values)
        assert all(map(torch.equal, found, wanted)) and ours.get_seq_length() == own.get_seq_length()


@pytest.mark.parametrize("change", [
    lambda layer: layer.reorder_cache(torch.tensor([1, 0])),
    lambda layer: layer.batch_repeat_interleave(2),
    lambda layer: layer.batch_select_indices(torch.tensor([1])),
    lambda layer: layer.crop(-2),
    lambda layer: layer.reset(),
])  # fmt: skip
def test_what_others_change_of_it_stays_changed(change):
    ours, own = RoomyLayer(), DynamicLayer()
    first, *more = steps(5, 1, 1)
    for layer in (ours, own):
        layer.update(*(each.clone() for each in first))
        change(layer)
    rows = 2 if own.keys is None else len(own.keys)
    for keys, values in more:
        keys, values = (each[:1].expand(rows, -1, -1, -1) for each in (keys, values))
        assert all(map(torch.equal, ours.update(keys, values), own.update(keys, values)))


def test_a_token_is_copied_once_while_there_is_room(monkeypatch):
    layer = RoomyLayer()
    places = set()
    for keys, values in steps(5, *[1] * (cache.LEAST_ROOM - 1)):
        layer.update(keys, values)
        places.add(layer.keys.data_ptr())
    assert len(places) == 1
    layer.update(*steps(2)[0])
    assert layer.keys.data_ptr() not in places


SMALL = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
SMALL |= {"num_key_value_heads": 2, "head_dim": 4}


@pytest.mark.parametrize(("make", "roomy"), [
    (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2)), True),
    (lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)), True),
    (lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)), False),  # it forgets what is too far back
    (lambda: MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=8, num_hidden_layers=2)), False),
    (lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=50, n_embd=8, n_layer=2, n_head=2)), False),  # it has none
])  # fmt: skip
def test_models_with_another_cache_or_none_keep_theirs(monkeypatch, make, roomy):
    torch.manual_seed(0)
    model, ids, layers = make().eval(), torch.arange(1, 13).view(2, 6), []
    update = RoomyLayer.update
    monkeypatch.setattr(
        RoomyLayer, "update", lambda layer, *given, **more: layers.append(layer) or update(layer, *given)
    )
    config = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=49)
    wanted = model.generate(ids, generation_config=config)
    assert not layers
    with roomy_cache(model):
        found = model.generate(ids, generation_config=config)
    assert torch.equal(found, wanted)
    assert (len({*map(id, layers)}), "_prepare_cache_for_generation" in vars(model)) == (2 * roomy, False)


def test_what_virtual_tokens_filled_stays_in_the_cache(gpt2_dir, monkeypatch):
    from peft import PrefixTuningConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(gpt2_dir)
    model = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    ids = torch.arange(1, 7)[None]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    wanted = model.generate(**given)
    monkeypatch.setattr(RoomyLayer, "update", lambda *_, **__: pytest.fail("its cache was taken away"))
    with roomy_cache(model):
        assert torch.equal(model.generate(**given), wanted)


def test_a_cache_that_holds_something_is_left_as_it_is(gpt2_dir):
    model = AutoModelForCausalLM.from_pretrained(gpt2_dir).eval()
    ids = torch.arange(1, 11)[None]
    config = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=599)
    wanted = model.generate(ids, generation_config=config)
    held = DynamicCache(config=model.config)
    model(ids[:, :6], past_key_values=held)
    layers = list(held.layers)
    with roomy_cache(model):
        assert torch.equal(model.generate(ids, past_key_values=held, generation_config=config), wanted)
    assert held.layers == layers


@pytest.mark.parametrize("family", ["gpt2_dir", "llama_dir"])
def test_answers_are_those_of_a_cache_that_is_joined_anew(request, monkeypatch, family):
    folder = request.getfixturevalue(family)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), load_tokenizer(str(folder))
    config = decoding(tokenizer, 60, num_return_sequences=2, temperature=1.0)
    prompts = ["What is a bond?", "Explain, at some length, what a share of a company is, and what it is not.", "Why?"]
    seen = []
    update = RoomyLayer.update
    monkeypatch.setattr(RoomyLayer, "update", lambda layer, *given, **more: seen.append(1) or update(layer, *given))
    texts = []
    for layer in (RoomyLayer, DynamicLayer):
        monkeypatch.setattr(cache, "RoomyLayer", layer)  # as it is made for each batch
        torch.manual_seed(0)
        texts.append([answer.text for answer in answer_all(model, tokenizer, prompts, config)])
    assert texts[0] == texts[1] and seen
    assert len({*texts[0]}) > 3


def test_the_head_is_given_last_positions_in_a_tensor_of_their_own(gpt2_dir):
    model = AutoModelForCausalLM.from_pretrained(gpt2_dir).eval()
    given = []
    ids = torch.arange(12).view(3, 4)
    with torch.inference_mode():
        wanted = model(ids, logits_to_keep=1, past_key_values=DynamicCache(config=model.config)).logits
        with pytest.raises(KeyError), head_of_last_positions(model):
            seen = model.lm_head.register_forward_pre_hook(lambda _, states: given.append(states[0]))
            found = model(ids, logits_to_keep=1).logits
            seen.remove()
            raise KeyError
    assert [states.is_contiguous() and states.shape == (3, 1, 32) for states in given] == [True]
    assert torch.allclose(found, wanted, atol=1e-6) and not model.lm_head._forward_pre_hooks
