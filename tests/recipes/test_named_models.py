"""What may stand where a model is named: a run dir or its `model/`; and what may not, each with the way out."""

import json
import re
import shlex
import shutil

import pytest
import yaml
from transformers import AutoModel, AutoTokenizer, BartConfig, T5Config, ViTConfig

from eval.results import Results
from finllm.files import write_json
from finllm.run_dir import RunDir

TINY = ("--max_length", 256, "--per_device_train_batch_size", 4, "--logging_steps", 1, "--eval_strategy", "no",
        "--save_strategy", "no", "--learning_rate", "1e-3", "--disable_tqdm", "true", "--max_eval_samples", 4,
        "--bf16", "false")  # fmt: skip
LORA = ("--use_peft", "true", "--lora_target_modules", "all-linear")
OTHERS = {
    "t5": T5Config(vocab_size=600, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
    "bart": BartConfig(vocab_size=600, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
                       decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2),
    "vit": ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32),
}  # fmt: skip


@pytest.fixture
def train(command, gpt2_dir, dataset_dir, tmp_path):
    def call(name, *more, model=gpt2_dir, steps=2):
        done = command("recipes/sft.py", "--model_name_or_path", model, "--dataset_name", dataset_dir, "--output_dir",
                       tmp_path / name, "--max_steps", steps, *TINY, *more)  # fmt: skip
        return done, RunDir(tmp_path / name)

    return call


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_causal_language_model_is_refused_by_every_command(
    command, train, tokenizer_dir, dataset_dir, tmp_path, kind
):
    folder = tmp_path / kind
    AutoModel.from_config(OTHERS[kind]).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(folder)
    data = ("--dataset_name", dataset_dir, "--output_dir", tmp_path / "out")
    for done in (
        train("out", model=folder)[0],
        command("eval/run.py", "--model_name_or_path", folder, *data),
        command("finllm/cli.py", "generate", folder, "Why?"),
        command("finllm/cli.py", "plan", "--model_name_or_path", folder, *data),
        command("finllm/cli.py", "random-weights", folder, "--output_dir", tmp_path / "out"),
    ):
        assert done.status == 2 and done.err.count("\n") == 1 and f"is of type {kind}: " in done.err, done.err
        assert "take a causal language model" in done.err and "without a hub" not in done.err
    assert not (tmp_path / "out").exists()


def test_a_full_run_is_taken_wherever_a_base_model_is(command, train, dataset_dir, tmp_path):
    done, first = train("first")
    assert done.status == 0, done.err
    for name, model in (("second", first.path), ("third", f"{first.model}/")):
        done, run = train(name, *(LORA if name == "third" else ()), model=model, steps=1)
        assert done.status == 0, done.err
        assert run.summary()["first_validation_loss"] == pytest.approx(
            first.summary()["final_validation_loss"], rel=1e-6
        )
    flags = ("--split", "validation", "--dataset_name", dataset_dir, "--max_generated", 0)
    done = command(
        "eval/run.py", first.path, "--model_name_or_path", first.path, "--output_dir", tmp_path / "b", *flags
    )
    assert done.status == 0, done.err
    own, base = (Results.read(path).splits["validation"].metrics for path in (first.path, tmp_path / "b"))
    assert own["nll_per_token"] == base["nll_per_token"] and Results.read(tmp_path / "b").model.method == "base"
    done = command("eval/run.py", RunDir(tmp_path / "third").path, *flags)  # an adapter on what a run trained
    assert done.status == 0, done.err
    done = command("finllm/cli.py", "plan", "--model_name_or_path", first.path, "--dataset_name", dataset_dir,
                   "--output_dir", tmp_path / "planned", *TINY)  # fmt: skip
    assert done.status == 0, done.err
    done = command("finllm/cli.py", "random-weights", first.path, "--output_dir", tmp_path / "random")
    assert done.status == 0 and (tmp_path / "random" / "config.json").exists(), done.err


def test_an_adapter_is_asked_by_either_name_and_is_a_base_once_it_is_merged(command, train, dataset_dir, tmp_path):
    done, run = train("lora", *LORA)
    assert done.status == 0, done.err
    answers = [command("finllm/cli.py", "generate", name, "Why?", "--max_new_tokens", 4).out
               for name in (run.path, run.model)]  # fmt: skip
    assert answers[0] == answers[1] != ""
    for name in (run.path, run.model):
        done = command("finllm/cli.py", "data", "show", dataset_dir, "--tokenizer", name)
        assert done.status == 0 and "supervised" in done.out
        data = ("--dataset_name", dataset_dir, "--output_dir", tmp_path / "out")
        refused = [
            train("out", model=name)[0],
            command("eval/run.py", "--model_name_or_path", name, *data),
            command("finllm/cli.py", "plan", "--model_name_or_path", name, *data),
        ]
        for done in refused:
            assert done.status == 2 and f"{run.model} holds an adapter, which is no base model" in done.err
            assert f"python eval/run.py {run.path}" in done.err and f"finllm generate {run.path}" in done.err
        assert not (tmp_path / "out").exists()
    merge = shlex.split(re.search(r"name that: (finllm merge .*)", done.err)[1])
    merged = tmp_path / merge[-1]
    done = command("finllm/cli.py", *merge[1:-1], merged)
    assert done.status == 0, done.err
    for name in ("generation_config.json", "tokenizer_config.json"):  # what ends an answer, and how it is asked
        assert json.loads((merged / name).read_text()) == json.loads((run.model / name).read_text())
    done, on = train("on", model=merged, steps=1)
    assert done.status == 0, done.err
    assert on.summary()["first_validation_loss"] == pytest.approx(run.summary()["final_validation_loss"], rel=1e-4)


def test_unfinished_runs_and_those_of_the_baseline_are_no_base_models(train, gpt2_dir, tmp_path):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text(yaml.safe_dump({"model_name_or_path": "gpt2"}))
    done, _ = train("out", model=unfinished)
    assert done.status == 2 and "is not a complete run dir: provenance.json" in done.err and "--resume auto" in done.err
    (unfinished / "config.yaml").write_text(
        yaml.safe_dump({"language_model": "baselines.scratch.lm", "dataset_name": "d"})
    )
    write_json(unfinished / "provenance.json", {"dataset_hash": "0"})
    write_json(unfinished / "summary.json", {"method": "scratch", "trainable_parameters": 1, "total_parameters": 1})
    (unfinished / "metrics.jsonl").write_text("")
    shutil.copytree(gpt2_dir, unfinished / "model")
    for name in (unfinished, unfinished / "model"):
        done, _ = train("out", model=name)
        assert done.status == 2 and f"{unfinished} was trained from scratch" in done.err
    assert not (tmp_path / "out").exists()


def test_a_base_model_beside_a_config_yaml_is_still_one(train, gpt2_dir, tmp_path):
    """Folders of others hold what they like: neither of these is a run dir."""
    shutil.copytree(gpt2_dir, tmp_path / "mine" / "model")
    for folder in (tmp_path / "mine", tmp_path / "mine" / "model"):
        (folder / "config.yaml").write_text("a: 1")
    done, run = train("out", model=tmp_path / "mine" / "model", steps=1)
    assert done.status == 0, done.err
    _, named = train("named", model=gpt2_dir, steps=1)  # the same weights, and nothing of the file
    assert run.provenance()["base_model_hash"] == named.provenance()["base_model_hash"]
    assert (run.model / "model.safetensors").read_bytes() == (named.model / "model.safetensors").read_bytes()
    assert run.summary()["base_model"] == str(tmp_path / "mine" / "model")


def test_nothing_is_pushed_and_the_command_that_pushes_is_named(train):
    done, run = train("run", "--push_to_hub", "true", "--hub_model_id", "me/mine")
    assert done.status == 2 and f"hf upload me/mine {run.path}/model" in done.err and not run.path.exists()


def test_what_was_not_measured_is_a_dash_and_null(train):
    done, run = train("run", "--eval_on_start", "false", "--eval_strategy", "steps", "--eval_steps", 1)
    assert done.status == 0, done.err
    summary = run.summary()
    assert summary["first_validation_loss"] is None
    assert summary["best_validation_loss"] <= summary["final_validation_loss"]
    after = f"{summary['final_validation_loss']:.4f} nats per token"
    assert re.search(r"validation loss before\W+–\W+validation loss after\W+" + re.escape(after), done.out)
    card = (run.model / "README.md").read_text()
    assert "| validation loss before | – |" in card and f"| validation loss after | {after} |" in card
