"""Loading and counting base models."""

import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from finllm.cpu import machine
from finllm.errors import UserError
from finllm.models.adapters import add_adapter
from finllm.models.base import Parameters, base_model_hash, count_parameters, load_base_model
from finllm.models.settings import MethodConfig
from finllm.models.skeletons import skeleton


def test_random_weights_are_made_by_the_command_and_follow_the_seed(command, gpt2_dir, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = command("finllm/cli.py", "random-weights", gpt2_dir, "--output_dir", tmp_path / name, "--seed", seed)
        assert done.status == 0, done.err
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    done = command("finllm/cli.py", "random-weights", gpt2_dir, "--output_dir", tmp_path / "a")
    assert done.status == 2 and "is not empty" in done.err
    done = command("finllm/cli.py", "random-weights", tmp_path, "--output_dir", tmp_path / "d")
    assert done.status == 2 and "holds no config.json" in done.err


def test_no_model_is_loaded_with_an_attention_that_wants_a_graph_for_every_length(gpt2_dir, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", asked := [].append)
    load_base_model(str(gpt2_dir), MethodConfig())
    assert asked.__self__ == [False]


def test_parameters_are_counted_with_tied_weights_once(gpt2_dir):
    model = AutoModelForCausalLM.from_pretrained(gpt2_dir)
    saved = sum(tensor.numel() for tensor in load_file(gpt2_dir / "model.safetensors").values())
    assert count_parameters(model) == Parameters(saved, saved)
    adapted = add_adapter(model, ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["c_attn"]))
    counted = count_parameters(adapted)
    assert counted.trainable == 2 * 4 * (32 + 96)  # two layers, r = 4, c_attn from 32 to 96
    assert counted.total == saved + counted.trainable
    assert counted.share == counted.trainable / counted.total


def test_four_bit_weights_count_as_what_they_stand_for(gpt2_dir):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra qlora)")
    whole = count_parameters(AutoModelForCausalLM.from_pretrained(gpt2_dir)).total
    arguments = ModelConfig(load_in_4bit=True, use_peft=True)
    assert count_parameters(load_base_model(str(gpt2_dir), arguments)).total == whole


def test_four_bits_without_bitsandbytes_says_what_to_install(gpt2_dir, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'finllm\[qlora\]'"):
        load_base_model(str(gpt2_dir), ModelConfig(load_in_4bit=True, use_peft=True))


def test_the_hash_of_a_base_model_follows_its_weights(gpt2_dir, llama_dir):
    model = AutoModelForCausalLM.from_pretrained(gpt2_dir)
    assert base_model_hash(str(gpt2_dir), model) == base_model_hash(str(gpt2_dir), model)
    assert base_model_hash(str(gpt2_dir), model) != base_model_hash(str(llama_dir), model)


def test_accelerate_launch_does_not_leave_cores_idle(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("threads are set where the CPU computes, and here is a GPU")
    cores = len(os.sched_getaffinity(0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        for name in list(os.environ):
            if name.startswith("ACCELERATE_"):
                monkeypatch.delenv(name)
        machine.use_all_cores()
        assert torch.get_num_threads() == 1  # the user's own word
        monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
        machine.use_all_cores()
        assert torch.get_num_threads() == cores
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
        machine.use_all_cores()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("folder", ["gpt2_dir", "llama_dir"])
def test_a_model_without_memory_has_the_tensors_of_the_loaded_one_ties_included_and_draws_nothing(folder, request):
    loaded = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(folder))
    before = torch.get_rng_state()
    empty = skeleton(loaded.config)
    assert torch.equal(torch.get_rng_state(), before)
    shapes = [{name: tuple(tensor.shape) for name, tensor in model.named_parameters()} for model in (empty, loaded)]
    assert shapes[0] == shapes[1] and {tensor.device.type for tensor in empty.parameters()} == {"meta"}
