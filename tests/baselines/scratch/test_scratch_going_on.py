"""The scratch baseline, too, goes on with the very run that its folder holds, finished or not, or refuses."""

import dataclasses
import json
import os
import shutil

import pytest

from baselines.scratch.config import TrainConfig
from baselines.scratch.loop import learning_rate_at
from baselines.scratch.train import train
from finllm.errors import UserError
from finllm.files import read_jsonl
from finllm.run_dir import RunDir
from tests.baselines.scratch.conftest import rows_of, write_dataset_dir


def held(run: RunDir) -> dict[str, bytes]:
    return {str(path.relative_to(run.path)): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


@pytest.fixture
def own(config, tmp_path) -> TrainConfig:
    """With a dataset of its own, which may be prepared anew in its folder."""
    data = write_dataset_dir(tmp_path / "data", train=rows_of(1, 60), validation=rows_of(2, 10), test=rows_of(3, 10))
    return dataclasses.replace(config, dataset_name=str(data), max_steps=4, eval_steps=2)


def halted(run: RunDir) -> None:
    """As if it had been killed between its last checkpoint and its summary."""
    (run.path / "summary.json").unlink()
    (run.model / "model.safetensors").unlink()


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_and_other_data_in_the_same_folder_are_refused(own, tmp_path, finished):
    train(own)
    run = RunDir(own.output_dir)
    if not finished:
        halted(run)
    before = held(run)
    for changes, named in (
        ({"learning_rate": 0.02}, "learning_rate was 0.01 and is now 0.02"),
        (
            {"max_steps": 3, "dropout": 0.3},
            r"2 problems .*dropout was 0\.1 and is now 0\.3; max_steps was 4 and is now 3",
        ),
        ({"seed": 4}, "seed was 0 and is now 4"),
        ({"num_train_epochs": 99}, "num_train_epochs was 10 and is now 99"),  # max_steps is what counts
    ):
        with pytest.raises(UserError, match=named):
            train(dataclasses.replace(own, **changes), resume=True)
    shutil.move(own.dataset_name, tmp_path / "before")
    write_dataset_dir(tmp_path / "data", train=rows_of(1, 60), validation=rows_of(2, 10), test=rows_of(9, 10))
    with pytest.raises(UserError, match=r"dataset_hash was .* and is now .*; put the old dataset back"):
        train(own, resume=True)
    assert held(run) == before


def test_a_run_is_the_same_wherever_it_and_its_data_lie(own, tmp_path, capsys, monkeypatch):
    train(own)
    data = shutil.copytree(own.dataset_name, tmp_path / "elsewhere")
    moved = shutil.move(own.output_dir, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for place, name in ((str(moved), str(data)), (f"{moved}/", "data/"), (os.path.relpath(moved), "elsewhere")):
        capsys.readouterr()
        train(dataclasses.replace(own, output_dir=place, dataset_name=name), resume=True)
        assert "nothing to do" in capsys.readouterr().out
    weights = (moved / "model" / "model.safetensors").read_bytes()
    halted(RunDir(moved))
    train(dataclasses.replace(own, output_dir="moved", dataset_name="elsewhere"), resume=True)
    assert (moved / "model" / "model.safetensors").read_bytes() == weights and RunDir(moved).complete


@pytest.mark.parametrize("epochs", [False, True])
def test_more_steps_for_a_finished_run_go_on_from_its_last_checkpoint(own, capsys, epochs):
    if epochs:
        own = dataclasses.replace(own, max_steps=None, num_train_epochs=1)
        longer = dataclasses.replace(own, num_train_epochs=2)
    else:
        longer = dataclasses.replace(own, max_steps=8)
    train(own)
    run = RunDir(own.output_dir)
    first, before = run.summary()["steps"], read_jsonl(run.metrics)
    capsys.readouterr()
    train(longer, resume=True)
    assert f"goes on from step {first}: " in capsys.readouterr().out
    steps, lines = run.summary()["steps"], read_jsonl(run.metrics)
    assert lines[: len(before)] == before and steps > first
    whole = dataclasses.replace(longer, output_dir=f"{own.output_dir}-whole")
    train(whole)
    assert steps == RunDir(whole.output_dir).summary()["steps"]
    for line in lines:
        if "loss" in line:
            total = steps if line["step"] > first else first
            assert line["learning_rate"] == pytest.approx(learning_rate_at(line["step"], total, own))
    assert run.provenance()["extended"] == [
        {"step": first, **({"num_train_epochs": 1} if epochs else {"max_steps": 4})}
    ]
    capsys.readouterr()
    train(longer, resume=True)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"was .* and is now"):
        train(own, resume=True)


def test_more_steps_are_refused_without_a_last_checkpoint_or_after_an_early_end(own):
    train(own)
    run = RunDir(own.output_dir)
    shutil.rmtree(run.checkpoints)  # as finished runs of older versions have none
    with pytest.raises(UserError, match="max_steps was 4 and is now 8 and there is no checkpoint to go on from"):
        train(dataclasses.replace(own, max_steps=8), resume=True)
    assert run.complete
    wild = dataclasses.replace(
        own, output_dir=f"{own.output_dir}-wild", max_steps=100, learning_rate=3.0, early_stopping_patience=2,
        logging_steps=1, eval_steps=1, save_steps=1, weight_decay=0,
    )  # fmt: skip
    train(wild)
    assert RunDir(wild.output_dir).summary()["steps"] < 100
    with pytest.raises(UserError, match=r"early_stopping_patience \(2\) had ended the run"):
        train(dataclasses.replace(wild, max_steps=200), resume=True)


def test_the_number_of_processes_changes_nothing_and_is_recorded(own):
    """Its steps are the same on any number of them (test_scratch_commands)."""
    train(own)
    run = RunDir(own.output_dir)
    halted(run)
    (run.path / "provenance.json").write_text(json.dumps({**run.provenance(), "processes": 2}))
    train(own, resume=True)
    assert run.complete and run.provenance()["processes"] == 1
    assert run.provenance()["resumed"] == [{"processes": 2}]
