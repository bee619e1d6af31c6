"""Optimizers that look for layers, or for A and B of LoRA: they find them, on GPT-2 too, and resume exactly."""

import json

import pytest
import torch
from safetensors.torch import load_file

from finllm.training.config import parse
from finllm.training.trainer import SupervisedTrainer

PACKAGES = {"galore_adamw": "galore_torch", "apollo_adamw": "apollo_torch"}
LORA = ("--peft_type", "lora", "--peft", '{"r": 4}')


@pytest.fixture
def made(monkeypatch):
    """The optimizers that trainers made."""
    found, create = [], SupervisedTrainer.create_optimizer

    def watched(self, model=None):
        found.append(create(self, model))
        return found[-1]

    monkeypatch.setattr(SupervisedTrainer, "create_optimizer", watched)
    return found


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("optim", PACKAGES)
def test_gradients_of_every_linear_layer_are_projected_and_a_resumed_run_is_the_same(
    optim, model, train, made, halved, tmp_path
):
    pytest.importorskip(PACKAGES[optim], reason=f"needs finllm[{optim.partition('_')[0]}]")
    flags = (
        "--optim",
        optim,
        "--optim_args",
        "rank=4,update_proj_gap=2",
        "--save_strategy",
        "steps",
        "--save_steps",
        2,
    )
    whole = train(model, *flags, name="whole", steps=4)
    assert whole[0].status == 0, whole[0].err
    projected = next(group for group in made[0].param_groups if group.get("rank") == 4)
    # Two layers: GPT-2 has four matrices in each, Llama seven; none is the head or the embedding
    assert len(projected["params"]) == 2 * {"gpt2": 4, "llama": 7}[model]
    assert all(made[0].state[weight]["projector"].rank == 4 for weight in projected["params"])
    halved(whole[1], tmp_path / "stopped")
    done, run = train(model, *flags, "--resume", "auto", name="stopped", steps=4)
    assert done.status == 0, done.err
    first, second = (load_file(each.model / "model.safetensors") for each in (whole[1], run))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optim", ["lion_32bit", "adamw_8bit"])
def test_optimizers_of_bitsandbytes_train_on_a_cpu(optim, train, gpt2_dir):
    pytest.importorskip("bitsandbytes")
    done, run = train("gpt2", "--optim", optim)
    assert done.status == 0, done.err
    proofs = {proof["name"]: proof for proof in run.proofs()}
    assert proofs["has learned"]["passed"] and proofs["has learned"]["figure"] == 0


def test_lora_plus_lets_b_learn_faster(train, made):
    done, run = train("gpt2", *LORA, "--loraplus_lr_ratio", 16, "--learning_rate", 1e-3)
    assert done.status == 0, done.err
    rates = sorted({group["initial_lr"] for group in made[0].param_groups if group["params"]})
    assert rates == pytest.approx([1e-3, 1.6e-2])
    assert all(proof["passed"] for proof in run.proofs() if proof["name"] in ("has learned", "saved model"))


def test_lora_fa_leaves_a_as_it_was_drawn(train):
    (done, plain), (other, run) = (
        train("gpt2", *LORA, *flags, name=name, steps=3)
        for name, flags in (("plain", ()), ("fa", ("--lora_fa", "true", "--save_strategy", "steps", "--save_steps", 2)))
    )
    assert done.status == other.status == 0, other.err
    drawn, trained = (load_file(each.model / "adapter_model.safetensors") for each in (plain, run))
    again, still = train("gpt2", *LORA, "--lora_fa", "true", name="zero", steps=1)
    assert again.status == 0, again.err
    first = load_file(still.model / "adapter_model.safetensors")
    of_a = [name for name in first if ".lora_A." in name]
    assert of_a and all(torch.equal(first[name], trained[name]) for name in of_a)
    assert any(not torch.equal(drawn[name], trained[name]) for name in of_a)
    of_b = [name for name in first if ".lora_B." in name]
    assert all(trained[name].any() for name in of_b)
    assert run.summary()["trainable_parameters"] == sum(trained[name].numel() for name in of_b)
    (run.path / "summary.json").unlink()
    resumed, run = train("gpt2", *LORA, "--lora_fa", "true", "--save_strategy", "steps", "--save_steps", 2,
                         "--resume", "auto", name="fa", steps=3)  # fmt: skip
    assert resumed.status == 0, resumed.err
    second = load_file(run.model / "adapter_model.safetensors")
    assert all(torch.equal(trained[name], second[name]) for name in second)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--optim", "galore_adamw_layerwise"), "no gradient can be clipped"),
        (("--optim", "lomo"), "no gradient can be clipped"),
        (("--optim", "galore_adamw", *LORA), "under an adapter none trains"),
        (("--lora_fa", "true"), "lora_fa is True and is LoRA's own"),
        (("--loraplus_lr_ratio", 16, "--peft_type", "ia3"), "loraplus_lr_ratio is 16.0 and is LoRA's own"),
        (("--loraplus_lr_ratio", 0, *LORA), "must be above 0"),
        (("--loraplus_lr_ratio", 16, "--lora_fa", "true", *LORA), "two optimizers"),
        (("--lora_fa", "true", "--optim", "sgd", *LORA), "an optimizer of its own"),
        (("--optim", "schedule_free_adamw"), "schedulefree"),
    ],
)
def test_an_optimizer_that_would_not_do_what_it_says_is_refused(flags, said, command):
    done = command("recipes/sft.py", "--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o", *flags)
    assert done.status == 2 and said in done.err and "Traceback" not in done.err, done.err


def test_lora_fa_refuses_what_it_would_take_for_a_and_b(train):
    done, run = train(
        "gpt2", "--peft_type", "lora", "--peft", json.dumps({"r": 4, "use_dora": True}), "--lora_fa", "true"
    )
    assert done.status == 2 and "lora_magnitude_vector" in done.err and not (run.path / "model").exists()


@pytest.mark.parametrize("optim", PACKAGES)
def test_a_package_that_is_missing_is_named_by_its_extra(optim, monkeypatch):
    family = optim.partition("_")[0]
    monkeypatch.setattr(f"transformers.trainer_optimizer.is_{family}_torch_available", lambda: False)
    with pytest.raises(ValueError, match=rf"pip install 'finllm\[{family}\]'"):
        parse(["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o", "--optim", optim])
