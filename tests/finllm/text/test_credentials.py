"""What looks like a credential is found at any depth, and nothing else is."""

import pytest
from evaluated_runs import make_run, report

from finllm.text.credentials import credentials, without_credentials, without_credentials_of_flags

FOUND = [
    {"token": "abc"}, {"a": {"b": [{"HF_TOKEN": "x"}]}}, {"headers": {"Authorization": "Basic dXNlcg=="}},
    {"x": "https://user:pw@host/x"}, {"x": "postgres://me@h/db"}, {"apiKey": "q"}, {"x-api-key": "1"},
    {"password": 12345}, {"n": "ghp_0123456789abcdefghij"}, {"n": "AKIAIOSFODNN7EXAMPLE"}, {"n": "xoxb-1234567890-abc"},
    {"n": "sk-proj-abcdefghijklmnop1234"}, {"n": "github_pat_11ABCDEFG0123456789"}, {"n": '{"token": "abcd1"}'},
    {"n": "--x password=hunter2"}, {"hf_0123456789abcdef0": 1}, {"secrets": {"a": "b"}}, {"clientSecret": "x"},
    {"n": ["Bearer abcdefghij"]}, {"use_auth_token": "abc"}, {"storage_options": {"aws_secret_access_key": "a"}},
    {"n": "-----BEGIN RSA PRIVATE KEY-----"}, {"wandb_key": "0a1b2c3d4e5f60718293"}, {"token2": "b"},
    {"n": "hf_ABCDEFGHIJKLMNOPqrstuvwxyzABCD"},
]  # fmt: skip
FINE = [
    {"eos_token": "</s>"}, {"pad_token": "pad"}, {"image_token": "<image>"}, {"max_tokens": 5}, {"token": True},
    {"use_auth_token": None}, {"average_tokens_across_devices": True}, {"path": "/models/hf_llama_7b"},
    {"output_dir": "runs/sk-learn-experiments-2026"}, {"lora_target_modules": ["q_proj"]}, {"tokenizer": "bpe"},
    {"text_key": "question"}, {"a": "git@github.com:x"}, {"tokens": 1000}, {"o": "hf_finance"}, {"author": "me"},
    {"revision": "84ab7fc0123456789abcdef0123456789abcdef0"}, {"n": "task-abcdefghijklmnopqrstuvwx"},
]  # fmt: skip


@pytest.mark.parametrize("content", FOUND, ids=str)
def test_a_credential_is_found_and_left_out(content):
    deep = {"kept": 1, "outer": [{"inner": content}]}
    (place,) = credentials(deep)
    assert place.startswith("outer.0.inner.")
    left = without_credentials(deep)
    assert left["kept"] == 1 and not [*credentials(left)]


@pytest.mark.parametrize("content", FINE, ids=str)
def test_what_is_none_stays(content):
    assert not [*credentials(content)] and without_credentials(content) == content


def test_flags_that_hold_one_are_masked():
    line = ["sft.py", "--hub_token", "abc", "--x=1", "--hub_token=q", "--eos_token", "</s>", "--k", '{"token":"abcde"}']
    masked = ["sft.py", "--hub_token", "…", "--x=1", "--hub_token=…", "--eos_token", "</s>", "--k", "…"]
    assert without_credentials_of_flags(line) == masked


@pytest.mark.parametrize(
    ("flags", "place"),
    [(("--model_init_kwargs", '{"token": "confidential"}'), "model_init_kwargs.token"),
     (("--dataset_kwargs", '{"storage": {"headers": [{"Authorization": "confidential"}]}}'),
      "dataset_kwargs.storage.headers.0.Authorization"),
     (("--lr_scheduler_kwargs", '{"x": "https://confidential@host"}'), "lr_scheduler_kwargs.x"),
     (("--run_name", "ghp_confidential0123456789"), "run_name"),
     (("--peft_type", "prompt_tuning", "--peft", '{"tokenizer_kwargs": {"token": "confidential"}}'),
      "peft.tokenizer_kwargs.token"),
     (("--peft_type", "lora", "--peft", '{"bias": ["hf_confidential0123456789"]}'), "peft.bias.0")],
)  # fmt: skip
def test_training_refuses_it_and_names_the_place_alone(command, gpt2_dir, dataset_dir, tmp_path, flags, place):
    done = command("recipes/sft.py", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir",
                   tmp_path / "run", *flags)  # fmt: skip
    assert done.status == 2 and f"{place} looks like a credential" in done.err, done.err
    assert "confidential" not in done.err + done.out and not (tmp_path / "run").exists()


def test_the_scratch_baseline_refuses_it(command, tmp_path):
    done = command("baselines/scratch/train.py", "--dataset_name", "https://me:confidential@host/data", "--output_dir",
                   tmp_path / "run")  # fmt: skip
    assert done.status == 2 and "dataset_name looks like a credential" in done.err and "confidential" not in done.err


def test_the_page_shows_no_credential_of_a_config_that_came_from_elsewhere(tmp_path):
    config = {"learning_rate": 0.5, "model_init_kwargs": {"a": [{"token": "confidential"}], "kept": "to be seen"},
              "dataset_name": "https://me:confidential@host"}  # fmt: skip
    run = make_run(tmp_path / "run", 1.0, config=config)
    report(run, out=tmp_path / "board")
    page = (tmp_path / "board" / "index.html").read_text()
    assert "confidential" not in page
    assert "to be seen" in page and "learning_rate" in page
