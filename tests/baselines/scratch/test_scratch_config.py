"""Settings: a file, then flags over it, and every problem named."""

import dataclasses

import pytest
import yaml

from baselines.scratch.config import VARIANTS, read_config
from finllm.errors import UserError


def test_config_file_then_flags(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("dataset_name: data\noutput_dir: runs/x\nlearning_rate: 1e-4\nlayers: 3\nbf16: false\n")
    given = ["--config", str(path), "--layers", "5", "--max_steps=7", "--resume", "auto", "--stop_at_step", "3"]
    config, *more = read_config(given, "")
    assert (config.learning_rate, config.layers, config.max_steps, config.bf16, *more) == (
        1e-4,
        5,
        7,
        False,
        True,
        3,
        False,
    )
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    assert read_config(["--config", str(tmp_path / "again.yaml")], "") == (config, False, None, False)


def test_all_problems_at_once(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("dataset_name: data\nlayer: 3\nwidth: wide\nbf16: 1\n")
    with pytest.raises(UserError) as caught:
        read_config(["--config", str(path), "--learnin_rate", "1", "--dropout", "x", "stray"], "")
    message = str(caught.value)
    assert message.startswith(f"7 problems in {path} and the flags")
    for part in (
        "unknown flag '--learnin_rate' (did you mean 'learning_rate'?)",
        "'stray' belongs to no flag",
        "unknown key 'layer' (did you mean 'layers'?)",
        "width is 'wide' and must be a whole number",
        "bf16 is 1 and must be true or false",
        "dropout is 'x' and must be a number",
        "output_dir is missing",
    ):
        assert part in message


@pytest.mark.parametrize(
    "flag, value, message",
    [
        ("heads", "3", "the heads must divide the width"),
        ("layers", "0", "layers is 0 and must be at least 1"),
        ("dropout", "1", "dropout is 1.0 and must be at least 0 and below 1"),
        ("learning_rate", "-1", "learning_rate is -1.0 and must be above 0"),
        ("positions", "sinusoid", "did you mean 'sinusoidal'?"),
        ("variant", "published", "did you mean 'as_published'?"),
        ("norm", "middle", "norm is 'middle' and must be pre or post"),
        ("label_smoothing", "1", "label_smoothing is 1.0 and must be at least 0 and below 1"),
        ("unlikelihood", "-1", "unlikelihood is -1.0 and must be at least 0"),
        ("batch_tokens", "100", r"must be at least max_length \(350\)"),
        ("save_steps", "15", r"must be a multiple of logging_steps \(10\)"),
        ("language_model", "os", "language_model is 'os' and must be baselines.scratch.lm"),
    ],
)
def test_values_that_cannot_work(flag, value, message):
    with pytest.raises(UserError, match=message):
        read_config(["--dataset_name", "d", "--output_dir", "r", f"--{flag}", value], "")


def test_keys_that_do_not_go_together():
    given = ["--dataset_name", "d", "--output_dir", "r"]
    with pytest.raises(
        UserError, match=r"loss_on_prompt is true and variant is seq2seq, whose encoder reads the prompt"
    ):
        read_config([*given, "--variant", "seq2seq", "--loss_on_prompt", "true"], "")
    with pytest.raises(UserError, match=r"width / heads is 5 and must be even for rotary positions"):
        read_config([*given, "--positions", "rotary", "--width", "20"], "")


def test_the_published_model_has_its_norms_after_each_part():
    given = ["--dataset_name", "d", "--output_dir", "r", "--variant"]
    assert {variant: read_config([*given, variant], "")[0].norm for variant in VARIANTS} == {
        "as_published": "post", "causal": "pre", "seq2seq": "pre",
    }  # fmt: skip
    config, *_ = read_config([*given, "as_published", "--norm", "pre"], "")
    assert config.norm == "pre"
