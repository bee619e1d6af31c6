"""A run that stops where it was told to, as those of a study's search do, and what its validation says of each row."""

import dataclasses

import pytest

from baselines.scratch.config import VARIANTS, read_config
from baselines.scratch.train import train
from eval.models.loading import open_run
from finllm.data.dataset_dir import DatasetDir
from finllm.errors import UserError
from finllm.files import read_jsonl
from finllm.run_dir import RunDir
from finllm.text.prompts import build_prompt
from finllm.training import checkpoints


def losses_of(run: RunDir) -> dict[int, float]:
    return {line["step"]: line["validation_loss"] for line in read_jsonl(run.metrics) if "validation_loss" in line}


@pytest.mark.parametrize("stop_at", [2, 6])  # between two evaluations, and at one
def test_a_run_stopped_at_a_step_ends_like_one_that_never_was(config, tmp_path, stop_at):
    """After two steps it is better than ever later, so an evaluation that counts where none is due would be kept."""
    config = dataclasses.replace(config, max_steps=12, save_steps=100, logging_steps=1, eval_steps=6, dropout=0.2,
                                 learning_rate=1.0, warmup_ratio=0.9)  # fmt: skip
    train(config)
    whole = RunDir(config.output_dir)
    stopped = RunDir(tmp_path / "stopped")
    same = dataclasses.replace(config, output_dir=str(stopped.path))
    with pytest.raises(SystemExit) as ended:
        train(same, stop_at_step=stop_at)
    assert ended.value.code == 0 and not stopped.complete
    assert checkpoints.newest(stopped.checkpoints).name == f"checkpoint-{stop_at}"
    assert [*losses_of(stopped)] == sorted({0, stop_at})
    train(same, resume=True, stop_at_step=12)  # its last step is its end
    assert (stopped.model / "model.safetensors").read_bytes() == (whole.model / "model.safetensors").read_bytes()
    assert {step: loss for step, loss in losses_of(stopped).items() if step != 2} == losses_of(whole)
    assert losses_of(stopped).get(2, 0.0) < min(losses_of(whole).values())
    for key in ("first_validation_loss", "best_validation_loss", "final_validation_loss", "supervised_tokens"):
        assert stopped.summary()[key] == whole.summary()[key]


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_each_row_has_of_the_validation_loss(config, variant):
    """In the order of the split, and as the harness scores each row by the same weights."""
    config = dataclasses.replace(config, variant=variant, max_steps=4, eval_steps=4, batch_tokens=256)
    train(config)
    run = RunDir(config.output_dir)
    lines = read_jsonl(run.validation)
    rows = DatasetDir(config.dataset_name).rows("validation")
    assert [(line["step"], line["row"]) for line in lines] == [(4, row) for row in range(len(rows))]
    prompts = [build_prompt(row["instruction"], row["input"]) for row in rows]
    scores = open_run(run, batch_size=3).score(prompts, [row["output"] for row in rows])
    for line, score in zip(lines, scores, strict=True):
        assert line["nll"] == pytest.approx(score.nll, abs=2e-3) and line["tokens"] == score.tokens
    loss = sum(line["nll"] for line in lines) / sum(line["tokens"] for line in lines)
    assert losses_of(run)[4] == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1.5", ""])
def test_a_step_that_is_none_is_refused(value):
    with pytest.raises(UserError, match=f"stop_at_step is '{value}' and must be a whole number, at least 1"):
        read_config(["--dataset_name", "d", "--output_dir", "r", f"--stop_at_step={value}"], "")
    assert read_config(["--dataset_name", "d", "--output_dir", "r", "--stop_at_step", "1"], "")[2] == 1
