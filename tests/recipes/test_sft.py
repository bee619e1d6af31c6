"""recipes/sft.py by its command line, on a small random GPT-2."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Model

from finllm.files import read_jsonl
from finllm.models.base import load_run_model
from finllm.models.find import load_tokenizer
from finllm.run_dir import RunDir

# Two computations are held against each other by float32's rounding, on processors too that would take bfloat16.
FLOAT32 = ("--bf16", "false")


@pytest.mark.usefixtures("picture")
def test_full_training_leaves_a_complete_run_dir_and_changes_every_tensor(sft, gpt2_dir):
    done, run = sft()
    assert done.status == 0, done.err
    run.require_complete()
    before, after = load_file(gpt2_dir / "model.safetensors"), load_file(run.model / "model.safetensors")
    assert before.keys() == after.keys()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    summary = run.summary()
    assert summary["method"] == "full" and summary["trainable_parameters"] == summary["total_parameters"]
    assert summary["final_validation_loss"] < summary["first_validation_loss"]
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 3]
    assert (run.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.suffix for path in run.path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")) == []
    assert f"eval/run.py {run.path}" in done.out
    for shown in (
        "validation loss before",
        "validation loss after",
        "tokens/s",
        "peak memory",
        "trainable",
        "rows dropped",
    ):
        assert shown in done.out


def test_no_token_stands_in_a_run_dir(sft, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_confidential_environment")
    done, run = sft("--hub_token", "hf_confidential_flag", "--save_strategy", "steps", "--save_steps", 2)
    assert done.status == 0, done.err
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert any(path.name == "trainer_state.json" for path in files)
    assert not [path for path in files if b"hf_confidential" in path.read_bytes()]


def test_lora_leaves_the_base_bit_identical_and_changes_every_adapter_tensor(sft, gpt2_dir):
    before = (gpt2_dir / "model.safetensors").read_bytes()
    done, run = sft("--use_peft", "true", "--lora_target_modules", "all-linear")
    assert done.status == 0, done.err
    adapter = load_file(run.model / "adapter_model.safetensors")
    layers = {name.split(".")[-3] for name in adapter}
    assert layers == {"c_attn", "c_fc", "c_proj"}
    assert [name for name, tensor in adapter.items() if "lora_B" in name and not tensor.any()] == []
    assert (gpt2_dir / "model.safetensors").read_bytes() == before

    model, _ = load_run_model(run)
    saved = load_file(gpt2_dir / "model.safetensors")
    base = {name.replace(".base_layer", ""): tensor for name, tensor in model.get_base_model().state_dict().items()}
    # Where the machine multiplies bfloat16 fast, the frozen base is held in it.
    assert [name for name in saved if not torch.equal(saved[name].to(base[name].dtype), base[name])] == []
    summary = run.summary()
    assert summary["method"] == "lora"
    assert summary["trainable_parameters"] == sum(tensor.numel() for tensor in adapter.values())
    assert summary["final_validation_loss"] < summary["first_validation_loss"]


@pytest.mark.parametrize("flag", ["--use_dora", "--use_rslora"])
def test_variants_of_lora_go_through_pefts_flags(sft, flag):
    done, run = sft("--use_peft", "true", "--lora_target_modules", "c_attn", flag, "true", steps=1)
    assert done.status == 0, done.err
    assert json.loads((run.model / "adapter_config.json").read_text())[flag.lstrip("-")] is True


def test_qlora_trains_on_a_base_in_four_bits(sft):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra qlora)")
    done, run = sft("--use_peft", "true", "--lora_target_modules", "all-linear", "--load_in_4bit", "true")
    assert done.status == 0, done.err
    summary = run.summary()
    assert summary["method"] == "qlora"
    assert summary["final_validation_loss"] < summary["first_validation_loss"]
    assert {tensor.dtype for tensor in load_file(run.model / "adapter_model.safetensors").values()} == {torch.float32}


def test_same_seed_same_run_other_seed_other_adapter(sft, tmp_path):
    lora = ("--use_peft", "true", "--lora_target_modules", "all-linear")
    runs = [sft(*lora, "--seed", seed, output_dir=tmp_path / f"run{n}")[1] for n, seed in enumerate((1, 1, 2))]
    first, same, other = ((run.model / "adapter_model.safetensors").read_bytes() for run in runs)
    assert first == same
    assert first != other


def test_config_yaml_of_a_run_runs_again_and_gives_the_same_weights(sft, command, tmp_path):
    _, run = sft("--seed", 7)
    done = command("recipes/sft.py", "--config", run.path / "config.yaml", "--output_dir", tmp_path / "again")
    assert done.status == 0, done.err
    again = RunDir(tmp_path / "again")
    assert (again.model / "model.safetensors").read_bytes() == (run.model / "model.safetensors").read_bytes()
    differing = {key for key, value in again.config().items() if run.config()[key] != value}
    assert differing == {"output_dir"}


def test_the_loss_does_not_depend_on_batch_size_or_packing_of_validation(sft, tmp_path):
    losses = []
    for batch_size in (1, 3, 8):
        _, run = sft(
            *FLOAT32, "--per_device_eval_batch_size", batch_size, output_dir=tmp_path / str(batch_size), steps=1
        )
        losses.append(run.summary()["first_validation_loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_packing_keeps_documents_apart(sft, tmp_path):
    """The validation loss of packed rows is that of rows alone: no document sees its neighbour."""
    losses = []
    for packing in ("false", "true"):
        done, run = sft(*FLOAT32, "--packing", packing, "--max_length", 384, output_dir=tmp_path / packing)
        assert done.status == 0, done.err
        losses.append(run.summary()["first_validation_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_rows_end_to_end_train_as_padded_ones_do(sft, llama_dir, tmp_path):
    """Losses and weights are the same; on a Llama, which has no dropout, whose draws would differ."""
    weights, losses = [], []
    for joins in ("true", "false"):
        done, run = sft(*FLOAT32, "--join_rows", joins, "--optim", "sgd", output_dir=tmp_path / joins, model=llama_dir)
        assert done.status == 0, done.err
        weights.append(load_file(run.model / "model.safetensors"))
        losses.append([line["loss"] for line in map(json.loads, run.metrics.open()) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 3
    for name in weights[0]:
        assert torch.allclose(weights[0][name], weights[1][name], rtol=1e-5, atol=1e-6), name


@pytest.fixture
def mixing(monkeypatch):
    """Let GPT-2 carry something from each position to all after it, in sequences of more than so many tokens."""

    def call(tokens):
        def mix(module, args, output):
            if output.last_hidden_state.shape[1] > tokens:
                output.last_hidden_state = output.last_hidden_state.cumsum(1)
            return output

        before = GPT2Model.__init__

        def init(self, *args, **kwargs):
            before(self, *args, **kwargs)
            self.register_forward_hook(mix)

        monkeypatch.setattr(GPT2Model, "__init__", init)

    return call


def test_a_model_that_mixes_neighbours_is_found_out_before_training(sft, mixing):
    """Joined rows become padded ones where something else than attention carries from row to row."""
    mixing(0)
    done, _ = sft(steps=1)
    assert done.status == 0 and "rows are padded: with joined rows a token's loss is" in done.out
    done, _ = sft("--packing", "true", output_dir=_.path.with_name("packed"), steps=1)
    assert done.status == 2 and "does not keep the rows of a batch apart" in done.err and "packing: false" in done.err


def test_so_is_one_that_mixes_them_in_long_sequences_alone(sft, mixing):
    mixing(256)  # TINY's max_length: the longest row alone is not mixed, and with another after it it is
    done, _ = sft(*FLOAT32, steps=1)
    assert done.status == 0 and "rows are padded: a row's loss moves by" in done.out


def test_rows_longer_than_the_proof_of_the_way_looks_at_are_tried_whole(sft, mixing, monkeypatch):
    monkeypatch.setattr("finllm.training.proving.LONGEST", 64)
    mixing(256)
    done, run = sft(*FLOAT32, steps=1)
    assert done.status == 2 and "does not keep the rows of a batch apart" in done.err and not run.complete


def test_a_token_budget_makes_the_batches(sft):
    done, run = sft("--max_tokens_per_batch", 700, "--num_train_epochs", 1, steps=-1)
    assert done.status == 0, done.err
    summary = run.summary()
    assert summary["epochs"] == 1.0
    rows = len((RunDir(run.config()["dataset_name"]).path / "train.jsonl").read_text().splitlines())
    assert rows / 7 < summary["steps"] < rows  # some 2 to 6 rows a batch


def test_a_frozen_base_has_no_dropout_and_full_training_its_own(sft, tmp_path):
    adapter = ("--use_peft", "true", "--lora_target_modules", "c_attn")
    _, run = sft(*adapter, output_dir=tmp_path / "lora", steps=1)
    assert run.config()["base_dropout"] == 0.0
    first = {}
    for share in (0.0, 0.5):
        done, run = sft("--base_dropout", share, "--seed", 1, output_dir=tmp_path / str(share), steps=1)
        assert done.status == 0, done.err
        first[share] = next(line["loss"] for line in map(json.loads, run.metrics.open()) if "loss" in line)
    assert abs(first[0.0] - first[0.5]) > 1e-4
    assert sft(output_dir=tmp_path / "full", steps=1)[1].config()["base_dropout"] is None


def test_another_eos_is_the_one_that_is_learned(sft, tmp_path):
    done, run = sft("--eos_token", "!", steps=1)
    assert done.status == 0, done.err
    assert load_tokenizer(str(run.model)).eos_token == "!"
    done, run = sft("--eos_token", "<|im_end|>", output_dir=tmp_path / "unknown")
    assert done.status == 2 and "eos_token '<|im_end|>' is not in its vocabulary" in done.err


def test_a_yaml_of_trl_sft_works(command, gpt2_dir, dataset_dir, tmp_path):
    """TRL's own example of LoRA, with its keys; only the names of model, data and folder are ours."""
    config = tmp_path / "trl.yaml"
    config.write_text(
        f"""
model_name_or_path: {gpt2_dir}
dataset_name: {dataset_dir}
dataset_test_split: test
output_dir: {tmp_path / "run"}
learning_rate: 2.0e-4
num_train_epochs: 1
max_steps: 2
max_length: 384
packing: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
gradient_checkpointing: true
eval_strategy: steps
eval_steps: 1
logging_steps: 1
use_peft: true
lora_r: 32
lora_alpha: 16
lora_target_modules: [c_attn, c_proj]
warmup_steps: 1
report_to: none
env:
  FINLLM_TEST_VARIABLE: "1"
"""
    )
    done = command("recipes/sft.py", "--config", config)
    assert done.status == 0, done.err
    assert RunDir(tmp_path / "run").summary()["steps"] == 2


def test_gradient_accumulation_is_the_larger_batch(sft, llama_dir, tmp_path):
    """The same eight rows in one piece and in four give the same weights: each supervised token weighs the same.

    On a Llama, which has no dropout, whose draws would differ.
    """
    whole, parts = (
        sft(*FLOAT32, "--per_device_train_batch_size", size, "--gradient_accumulation_steps", 8 // size,
            "--optim", "sgd", output_dir=tmp_path / str(size), steps=1, model=llama_dir)[1]
        for size in (8, 2)
    )  # fmt: skip
    one, two = (load_file(run.model / "model.safetensors") for run in (whole, parts))
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=1e-5, atol=1e-7), name


def test_resume_auto_goes_on_and_ends_where_an_uninterrupted_run_ends(sft, halved, tmp_path):
    saving = ("--save_strategy", "steps", "--save_steps", 2)
    _, whole = sft(*saving, output_dir=tmp_path / "whole", steps=4)
    halted = halved(whole, tmp_path / "halted")
    done, _ = sft(*saving, "--resume", "auto", output_dir=tmp_path / "halted", steps=4)
    assert done.status == 0, done.err
    assert (whole.model / "model.safetensors").read_bytes() == (halted.model / "model.safetensors").read_bytes()
    lines = [json.loads(line) for line in halted.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 4]
    done, _ = sft(*saving, "--resume", "auto", output_dir=tmp_path / "halted", steps=4)
    assert done.status == 0 and "finished" in done.out


def test_early_stopping_keeps_the_best(sft):
    done, run = sft("--early_stopping_patience", 1, "--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy",
                    "steps", "--save_steps", 1, "--learning_rate", 5.0, steps=30)  # fmt: skip
    assert done.status == 0, done.err
    summary = run.summary()
    losses = {line["validation_loss"]: line["step"] for line in read_jsonl(run.metrics)
              if "validation_loss" in line and line["step"]}  # fmt: skip
    assert losses[min(losses)] == summary["saved_step"] < summary["steps"] < 30
    assert summary["best_validation_loss"] == summary["final_validation_loss"] == min(losses)
    told = f"{min(losses):.4f} nats per token (step {summary['saved_step']}, the best saved)"
    assert f"| validation loss after | {told} |" in (run.model / "README.md").read_text()
    best = load_file(run.checkpoints / f"checkpoint-{losses[min(losses)]}" / "model.safetensors")
    saved = load_file(run.model / "model.safetensors")
    assert [name for name in best if not torch.equal(best[name], saved[name])] == []


def test_a_model_of_an_earlier_step_is_told_with_its_own_loss(sft):
    done, run = sft(
        "--load_best_model_at_end", "true", "--eval_strategy", "steps", "--eval_steps", 2, "--save_strategy", "steps",
        "--save_steps", 2, "--learning_rate", 5.0, "--lr_scheduler_type", "constant", steps=5,
    )  # fmt: skip
    assert done.status == 0, done.err
    summary, losses = run.summary(), {line["step"]: line["validation_loss"] for line in read_jsonl(run.metrics)
                                      if "validation_loss" in line}  # fmt: skip
    assert {*losses} == {0, 2, 4, 5} and (summary["saved_step"], summary["steps"]) == (2, 5)
    assert summary["final_validation_loss"] == losses[summary["saved_step"]]
    saved, kept = (load_file(folder / "model.safetensors")
                   for folder in (run.model, run.checkpoints / f"checkpoint-{summary['saved_step']}"))  # fmt: skip
    assert [name for name in kept if not torch.equal(kept[name], saved[name])] == []
    assert f"nats per token (step {summary['saved_step']}, the best saved)" in done.out


def test_the_recipe_runs_under_accelerate_launch(shell, gpt2_dir, dataset_dir, tmp_path):
    done = shell(
        "accelerate", "launch", "--config_file", "accelerate_config.yaml", "recipes/sft.py", "--config",
        "recipes/configs/demo_lora.yaml", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir,
        "--output_dir", tmp_path / "run", "--max_steps", 2,
    )  # fmt: skip
    assert done.status == 0, done.err
    RunDir(tmp_path / "run").require_complete()


def test_a_compiled_model_trains_as_the_plain_one_does(sft, tmp_path):
    # The fewest shapes and functions to compile: numbers of dropout are drawn by one that breaks the graph.
    settings = (*FLOAT32, "--max_eval_samples", 1, "--eval_on_start", "false", "--base_dropout", 0)
    plain = sft(*settings, "--join_rows", "false", output_dir=tmp_path / "plain", steps=2)[1]
    done, compiled = sft(*settings, "--torch_compile", "true", "--torch_compile_backend", "eager", steps=2)
    assert done.status == 0, done.err
    losses = [[line["loss"] for line in read_jsonl(run.metrics) if "loss" in line] for run in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
