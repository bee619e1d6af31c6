"""Flags and adapters that would hang or fail late are refused before anything is read."""

import json
import os
import sys

import pytest
import torch

from finllm.errors import UserError
from finllm.models import patterns
from finllm.models.patterns import check_patterns
from finllm.training.config import parse

FOREVER = "(([a-z._]+)*)*!"


@pytest.mark.parametrize(
    ("name", "said"),
    [("wandb", "'finllm[wandb]'"), ("comet_ml", "comet-ml"), ("mlflow", "mlflow"), ("wanbd", "did you mean 'wandb'")],
)
def test_a_reporter_that_cannot_be_used_is_refused_before_training(command, monkeypatch, tmp_path, name, said):
    for package in ("wandb", "comet_ml", "mlflow"):
        monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    done = command(
        "recipes/sft.py", "--model_name_or_path", "nowhere", "--dataset_name", "nowhere",
        "--output_dir", tmp_path / "r", "--report_to", name,
    )  # fmt: skip
    assert done.status == 2 and f"report_to is '{name}'" in done.err and said in done.err
    assert done.err.count("\n") == 1 and not (tmp_path / "r").exists()


def test_a_pattern_that_backtracks_for_ever_is_refused_in_training(
    command, gpt2_dir, dataset_dir, monkeypatch, tmp_path
):
    monkeypatch.setattr(patterns, "SECONDS", 2.0)
    done = command(
        "recipes/sft.py", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir,
        "--output_dir", tmp_path / "r", "--use_peft", "true",
        "--max_length", 256, "--lora_target_modules", FOREVER,
    )  # fmt: skip
    assert done.status == 2 and "backtracks for more than 2 s" in done.err and FOREVER in done.err


def test_a_config_is_read_once_and_a_date_is_text(monkeypatch, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "model_name_or_path: a\ndataset_name: b\noutput_dir: 2026-01-01\nenv: {FINLLM_TEST_ENV: 1}\nseed: 7"
    )
    monkeypatch.delenv("FINLLM_TEST_ENV", raising=False)
    _, training, _ = parse(["--seed", "8", "--config", str(path), "--max_steps", "3"])
    assert (training.output_dir, training.seed, training.max_steps) == ("2026-01-01", 8, 3)
    assert os.environ.pop("FINLLM_TEST_ENV") == "1"


class Named(torch.nn.Module):
    """Modules with the names of a Llama's."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.ModuleDict({"self_attn": torch.nn.ModuleDict({"q_proj": torch.nn.Linear(2, 2)})})


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": FOREVER},
        {"target_modules": ["q_proj"], "exclude_modules": FOREVER},
        {"target_modules": ["q_proj"], "rank_pattern": {FOREVER: 8}},
        {"target_modules": ["q_proj"], "alpha_pattern": {f"(q|{FOREVER}": 8, FOREVER: 1}},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", FOREVER]},
        {"target_modules": ["q_proj"], "layers_pattern": ["(a+)+" * 300]},
        {"target_modules": "(unclosed"},
        {"target_modules": "(?P<a>x)(?P<a>y)"},
    ],
)
def test_every_setting_of_an_adapter_that_holds_patterns(monkeypatch, settings):
    monkeypatch.setattr(patterns, "SECONDS", 2.0)
    with pytest.raises(UserError, match=r"^adapter_config\.json: .*(backtracks|no regular expression|characters)"):
        check_patterns(settings, Named(), "adapter_config.json")


def test_sane_patterns_pass():
    settings = {"target_modules": r".*\.(q|v)_proj", "rank_pattern": {"^model.*q_proj$": 4}, "base_model": FOREVER}
    check_patterns(json.loads(json.dumps(settings)), Named(), "adapter_config.json")
