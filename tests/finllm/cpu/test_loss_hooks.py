"""What hangs on a model's embedding and head takes part in the loss, as in the model's own forward."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig

from finllm.cpu import loss
from finllm.cpu.loss import add_supervised_head

IDS = torch.arange(3, 43).view(2, 20)


def llama(tied: bool):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def hook_embedding(model):
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output * 1.5)


def hook_what_the_embedding_reads(model):
    model.get_input_embeddings().register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


def hook_head(model):
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: output * 2)


def hook_what_the_head_reads(model):
    model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3,))


def replace_forward(model):
    """As accelerate hangs its hooks on a module."""
    head = model.get_output_embeddings()
    forward = head.forward
    head.forward = lambda hidden: forward(hidden).tanh()


def double_gradient(model):
    model.get_input_embeddings().register_full_backward_hook(lambda module, grad_in, grad_out: None)


def limit_norm(model):
    model.get_input_embeddings().max_norm = 0.1


def scale_by_frequency(model):
    model.get_input_embeddings().scale_grad_by_freq = True


def nothing(model):
    """As it is."""


CHANGES = (nothing, hook_embedding, hook_what_the_embedding_reads, hook_head, hook_what_the_head_reads,
           replace_forward, double_gradient, limit_norm, scale_by_frequency)  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_loss_and_gradients_are_the_models_own(change, tied):
    model, own = llama(tied), llama(tied)
    change(model)
    change(own)
    _same_as_own(model, own)


@pytest.mark.parametrize(
    "adapter",
    [{"target_modules": ["embed_tokens"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
     {"target_modules": ["lm_head"]}],
)  # fmt: skip
def test_adapted_and_trained_embeddings_and_heads_take_part(adapter):
    model, own = (get_peft_model(llama(False), LoraConfig(r=2, init_lora_weights=False, **adapter)) for _ in "ab")
    own.load_state_dict(model.state_dict())
    _same_as_own(model.get_base_model(), own.get_base_model())


def _same_as_own(model, own):
    labels = IDS.clone()
    labels[:, :7] = -100
    logits = own(input_ids=IDS).logits[:, :-1]
    expected = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    add_supervised_head(model)
    found = model(input_ids=IDS, labels=labels, supervised_head=True).nll
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    found.backward()
    for (name, parameter), reference in zip(model.named_parameters(), own.parameters(), strict=True):
        assert (parameter.grad is None) == (reference.grad is None), name
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, reference.grad, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize(("settings", "plain"), [
    ({}, True), ({"padding_idx": 0}, False), ({"padding_idx": 3}, False), ({"max_norm": 1.0}, False),
    ({"scale_grad_by_freq": True}, False), ({"sparse": True}, False),
])  # fmt: skip
def test_an_embedding_that_does_more_than_look_up_is_none_that_is_stood_in_for(settings, plain):
    embedding = nn.Embedding(5, 4, **settings)
    assert loss._is_plain_lookup(embedding) is plain
    assert not loss._is_plain_lookup(nn.Linear(5, 4))
    handle = embedding.register_forward_hook(lambda *given: None)
    assert not loss._is_plain_lookup(embedding)
    handle.remove()
    assert loss._is_plain_lookup(embedding) is plain
