"""What recipes/sft.py answers to mistakes, and to a run that goes wrong."""

import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora_rnk", 8, "--max_lengt", 3], "2 problems in the command line: unknown flag --lora_rnk (did you mean"),
        (["--load_in_4bit", "true"], "need use_peft: true"),
        (["--max_length", 4096], "has 512 positions; set max_length to 512 or less"),
        (["--use_peft", "true", "--lora_target_modules", "q_proj"], "linear layers are c_attn, c_fc, c_proj"),
        (["--trust_remote_code", "true"], "no code of a model repository is run here"),
        (["--early_stopping_patience", 1], "needs eval_strategy: steps or epoch"),
        (["--early_stopping_patience", 1, "--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps",
          "--save_steps", 2], "early_stopping_patience is set, save_steps is 2 and eval_steps 1: the best model may"),
        (["--load_best_model_at_end", "true", "--eval_strategy", "steps", "--eval_steps", 3, "--save_strategy", "steps",
          "--save_steps", 6], "one that was never saved; set save_steps to 3"),
        (["--max_train_samples", 0], "max_train_samples is 0; it must be at least 1"),
        (["--max_tokens_per_batch", 50], "max_tokens_per_batch is 50 and the longest row has"),
        (["--max_tokens_per_batch", 900, "--packing", "true"], "two ways to the same; set one of them"),
        (["--base_dropout", 1], "base_dropout is 1.0; it must be at least 0 and below 1"),
        (["--join_rows", "true", "--attn_implementation", "eager"], "join_rows is true and GPT2LMHeadModel on 'cpu'"),
        (["--max_length", 20], "nothing left to learn; raise max_length"),
        (["--dataset_train_split", "trian"], "no split 'trian'"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_with_the_fix_and_leave_nothing(sft, arguments, message):
    done, run = sft(*arguments)
    assert done.status == 2
    assert message in done.err
    assert not run.path.exists()


def test_compiling_without_a_compiler_is_refused_before_anything_is_loaded(sft, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    done, run = sft("--torch_compile", "true")
    assert done.status == 2 and not run.path.exists()
    assert "torch_compile is true and there is no C++ compiler (c++, g++ or $CXX); install it or remove" in done.err


def test_a_loss_that_is_no_number_ends_the_run_before_it_reaches_the_weights(sft):
    done, run = sft(
        "--learning_rate", "1e30", "--lr_scheduler_type", "constant", "--save_strategy", "steps", "--save_steps", 1,
        "--eval_on_start", "false", steps=20,
    )  # fmt: skip
    assert done.status == 2
    assert "the training loss is nan in step" in done.err and "lower learning_rate (now 1e+30)" in done.err
    assert not run.complete and not run.model.exists()
    newest = max(run.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    weights = load_file(newest / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


def test_unknown_keys_of_a_yaml_are_named_all_at_once(command, tmp_path):
    config = tmp_path / "lora.yaml"
    config.write_text(yaml.safe_dump({"lora_rnk": 8, "learning_rat": 1e-4, "max_steps": 1}, sort_keys=False))
    done = command("recipes/sft.py", "--config", config)
    assert done.status == 2
    assert (
        f"2 problems in {config}: unknown key 'lora_rnk' (did you mean 'lora_r'?); "
        "unknown key 'learning_rat' (did you mean 'learning_rate'?)" in done.err
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "does not exist; give a folder, a .gguf file, a hub id or smollm2-135m"),
        ("no-such-model-anywhere", "was not loaded"),
    ],
)
def test_an_unknown_base_model_is_named(sft, model, message):
    done, run = sft(model=model)
    assert done.status == 2
    assert model in done.err and message in done.err
    assert not run.path.exists()


def test_weights_are_read_from_safetensors_only(sft, gpt2_dir, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(gpt2_dir, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(gpt2_dir / "model.safetensors"), folder / "pytorch_model.bin")
    done, _ = sft(model=folder)
    assert done.status == 2
    assert "holds no .safetensors file" in done.err


def test_a_folder_that_holds_another_run_is_refused(sft):
    sft(steps=1)
    done, run = sft(steps=1)
    assert done.status == 2 and "already holds a run; pass --resume auto" in done.err
    (run.path / "summary.json").unlink()
    done, _ = sft("--resume", "auto", steps=2)
    assert done.status == 2 and "max_steps was 1 and is now 2" in done.err
