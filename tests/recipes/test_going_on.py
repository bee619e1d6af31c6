"""`--resume auto` goes on with the very run that the folder holds, finished or not, wherever it lies, or refuses."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from finllm.data.prepare import prepare
from finllm.files import read_jsonl
from finllm.run_dir import RunDir
from finllm.training import checkpoints

SAVING = ("--save_strategy", "steps", "--save_steps", 2)
RESUME = ("--resume", "auto")
ROOT = Path(__file__).resolve().parents[2]


def held(run: RunDir) -> dict[str, bytes]:
    """All that a run dir holds."""
    return {str(path.relative_to(run.path)): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def halted(run: RunDir) -> RunDir:
    """The run as it was when it had taken two of its four steps and was killed."""
    (run.path / "summary.json").unlink()
    shutil.rmtree(run.model)
    shutil.rmtree(run.checkpoints / "checkpoint-4")
    return run


def weights(run: RunDir) -> bytes:
    return (run.model / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def made() -> dict[tuple, Path]:
    """Copies of the runs that `saved` has trained, by what was given beside its settings."""
    return {}


@pytest.fixture
def saved(sft, made, tmp_path, tmp_path_factory):
    """`saved(*flags)`: a run of four steps and two checkpoints in the place of `sft`, trained once for all tests."""

    def call(*more) -> RunDir:
        if more not in made:
            done, run = sft(*SAVING, *more, steps=4)
            assert done.status == 0, done.err
            made[more] = Path(shutil.copytree(run.path, tmp_path_factory.mktemp("made") / "run"))
            return run
        return RunDir(shutil.copytree(made[more], tmp_path / "run"))  # a run is the same wherever it lies (below)

    return call


@pytest.fixture
def own_base(gpt2_dir, tmp_path) -> Path:
    return Path(shutil.copytree(gpt2_dir, tmp_path / "base"))


@pytest.fixture
def own_data(dataset_dir, tmp_path) -> Path:
    return Path(shutil.copytree(dataset_dir, tmp_path / "data"))


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_by_name_all_at_once_and_nothing_is_touched(sft, saved, finished):
    run = saved()
    if not finished:
        halted(run)
    before = held(run)
    for flags, named in (
        (("--learning_rate", "2e-3"), ["learning_rate was 0.001 and is now 0.002"]),
        (("--seed", 7, "--max_grad_norm", 2), ["seed was 42 and is now 7", "max_grad_norm was 1.0 and is now 2.0"]),
        (("--max_train_samples", 9), ["max_train_samples was None and is now 9"]),
        (("--use_peft", "true"), ["use_peft was False and is now True"]),
        (("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2), ["per_device_train_batch_size was"]),
        (("--num_train_epochs", 9), ["num_train_epochs was 3.0 and is now 9.0"]),  # max_steps is what counts
    ):
        done, _ = sft(*SAVING, *flags, *RESUME, steps=4)
        assert done.status == 2 and "nothing to do" not in done.out, flags
        assert all(name in done.err for name in named), done.err
    done, _ = sft(*SAVING, *RESUME, steps=3)
    assert done.status == 2 and "max_steps was 4 and is now 3" in done.err
    assert held(run) == before


@pytest.mark.parametrize("finished", [True, False])
def test_another_base_model_dataset_or_tokenizer_is_refused_under_the_same_name_too(
    sft, own_base, own_data, llama_dir, tmp_path, finished
):
    arguments = (*SAVING, "--dataset_name", own_data)
    _, run = sft(*arguments, model=own_base, steps=4)
    if not finished:
        halted(run)
    before, origin = held(run), run.provenance()

    def refused(*more, model=own_base):
        done, _ = sft(*arguments, *RESUME, *more, model=model, steps=4)
        assert done.status == 2 and held(run) == before
        return done.err

    assert f"base_model_hash was {origin['base_model_hash'][:16]} and is now " in refused(model=llama_dir)

    tensors = load_file(own_base / "model.safetensors")
    original = (own_base / "model.safetensors").read_bytes()
    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first] + 1e-3}, own_base / "model.safetensors", {"format": "pt"})
    assert "base_model_hash was" in refused() and "put the old base model back" in refused()
    (own_base / "model.safetensors").write_bytes(original)

    tokenizer = json.loads((own_base / "tokenizer.json").read_text())
    merges = tokenizer["model"]["merges"]
    (own_base / "tokenizer.json").write_text(
        json.dumps(tokenizer | {"model": tokenizer["model"] | {"merges": merges[:-1]}})
    )
    assert "1 problem in resuming" in (said := refused()) and "tokenizer_hash was" in said
    (own_base / "tokenizer.json").write_text(json.dumps(tokenizer))

    source = ROOT / "finllm/data/sample/tax.jsonl"
    prepare(source, own_data, validation_fraction=0.15, test_fraction=0.15, seed=1, overwrite=True)
    said = refused(model=llama_dir)
    assert "2 problems in resuming" in said and "base_model_hash was" in said
    assert f"dataset_hash was {origin['dataset_hash'][:16]} and is now" in said and "put the old dataset back" in said
    prepare(source, own_data, validation_fraction=0.15, test_fraction=0.15, overwrite=True)

    done, _ = sft(*arguments, *RESUME, model=own_base, steps=4)  # all as it was
    assert done.status == 0 and ("nothing to do" in done.out) is finished


def test_a_run_is_the_same_wherever_it_its_data_and_its_base_model_lie(
    sft, gpt2_dir, dataset_dir, tmp_path, monkeypatch
):
    _, whole = sft(*SAVING, "--eval_strategy", "steps", "--eval_steps", 2, "--load_best_model_at_end", "true", steps=4)
    copied = RunDir(shutil.copytree(whole.path, tmp_path / "elsewhere" / "copy"))
    for place in (whole.path, f"{whole.path}/", os.path.relpath(whole.path, ROOT), copied.path):
        for base, data in (
            (gpt2_dir, dataset_dir),
            (f"{gpt2_dir}/", os.path.relpath(dataset_dir, ROOT)),
            (shutil.copytree(gpt2_dir, tmp_path / "b", dirs_exist_ok=True), dataset_dir),
            (gpt2_dir, shutil.copytree(dataset_dir, tmp_path / "d", dirs_exist_ok=True)),
        ):
            flags = ("--eval_strategy", "steps", "--eval_steps", 2, "--load_best_model_at_end", "true")
            done, _ = sft(*SAVING, *flags, "--dataset_name", data, *RESUME, model=base, output_dir=place, steps=4)
            assert done.status == 0 and "nothing to do" in done.out, (place, base, data, done.err)
    halted(copied)
    shutil.rmtree(tmp_path / "d")  # the data that the run was trained on has moved as well
    moved = RunDir(shutil.move(copied.path, tmp_path / "moved"))
    done, _ = sft(*SAVING, *flags, *RESUME, output_dir=f"{moved.path}/", steps=4)
    assert done.status == 0, done.err
    assert weights(moved) == weights(whole) and moved.config()["output_dir"].rstrip("/") == str(moved.path)
    assert moved.summary()["name"] == "moved"


@pytest.mark.parametrize("length", [("--max_steps",), ("--max_steps", "-1", "--num_train_epochs")])
def test_more_steps_for_a_finished_run_go_on_from_its_last_checkpoint(sft, tmp_path, length):
    """With a learning rate that no schedule moves it ends, bit for bit, where a run as long from the beginning ends."""
    short, long = ("1", "2") if "--num_train_epochs" in length else ("4", "6")
    flags = (*SAVING, "--max_train_samples", 14, "--lr_scheduler_type", "constant")
    _, whole = sft(*flags, *length, long, output_dir=tmp_path / "whole")
    _, run = sft(*flags, *length, short)
    done, _ = sft(*flags, *length, long, *RESUME)
    assert done.status == 0, done.err
    assert "goes on from step 4: " in done.out and "schedule of the longer run" in done.out
    assert weights(run) == weights(whole)
    steps = [line["step"] for line in read_jsonl(run.metrics) if "loss" in line]
    assert (
        steps == list(range(1, whole.summary()["steps"] + 1)) and run.summary()["epochs"] == whole.summary()["epochs"]
    )
    (extended,) = run.provenance()["extended"]
    assert extended["step"] == 4 and float(extended[length[-1].removeprefix("--")]) == float(short)
    done, _ = sft(*flags, *length, long, *RESUME)
    assert done.status == 0 and "nothing to do" in done.out
    done, _ = sft(*flags, *length, short, *RESUME)
    assert done.status == 2 and f"{length[-1].removeprefix('--')} was" in done.err


def test_more_steps_follow_the_schedule_of_the_longer_run(sft, saved):
    saved()
    done, run = sft(*SAVING, *RESUME, steps=8)
    assert done.status == 0, done.err
    rates = [line["learning_rate"] for line in read_jsonl(run.metrics) if "loss" in line]
    assert rates == pytest.approx([1e-3 * (1 - step / steps) for step, steps in
                                   [(0, 4), (1, 4), (2, 4), (3, 4), (4, 8), (5, 8), (6, 8), (7, 8)]])  # fmt: skip


def test_more_steps_are_refused_where_they_cannot_follow(sft, tmp_path):
    _, run = sft(steps=2)  # saves no checkpoint
    before = held(run)
    done, _ = sft(*RESUME, steps=4)
    assert done.status == 2 and "max_steps was 2 and is now 4 and there is no checkpoint to go on from" in done.err
    assert held(run) == before
    stopping = ("--early_stopping_patience", 1, "--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy",
                "steps", "--save_steps", 1, "--learning_rate", 5.0)  # fmt: skip
    done, run = sft(*stopping, output_dir=tmp_path / "stopped", steps=30)
    assert run.summary()["steps"] < 30
    done, _ = sft(*stopping, *RESUME, output_dir=tmp_path / "stopped", steps=40)
    assert done.status == 2 and "early_stopping_patience (1) had ended the run" in done.err and run.complete
    _, run = sft(*SAVING, output_dir=tmp_path / "halted", steps=4)
    halted(run)
    done, _ = sft(*SAVING, *RESUME, output_dir=tmp_path / "halted", steps=8)
    assert done.status == 2 and "max_steps was 4 and is now 8 in a run that is not finished" in done.err


def test_checkpoints_whose_origin_is_lost_are_not_gone_on_with(sft, saved):
    run = halted(saved())
    (run.path / "provenance.json").unlink()
    done, _ = sft(*SAVING, *RESUME, steps=4)
    assert (
        done.status == 2 and "provenance.json, which says what its checkpoints were trained on, is missing" in done.err
    )


def test_what_changed_on_the_way_is_kept_in_provenance(sft, saved):
    run = halted(saved())
    origin = run.provenance()
    (run.path / "provenance.json").write_text(json.dumps({**origin, "python": "3.9.1"}))
    done, _ = sft(*SAVING, *RESUME, steps=4)
    assert done.status == 0, done.err
    found = run.provenance()
    assert found.pop("resumed") == [{"python": "3.9.1"}] and found == origin


def test_a_checkpoint_that_would_be_in_another_epoch_now_is_refused(sft, saved):
    """As of a run from before the number of processes was recorded, or of batches that more epochs cut otherwise."""
    run = halted(saved())
    origin = run.provenance()
    del origin["processes"]
    (run.path / "provenance.json").write_text(json.dumps(origin))
    place = run.checkpoints / "checkpoint-2"
    state = json.loads((place / "trainer_state.json").read_text())
    (place / "trainer_state.json").write_text(json.dumps({**state, "epoch": 2 * state["epoch"]}))
    checkpoints.seal(place.rename(place.with_name("changed")), place)
    done, _ = sft(*SAVING, *RESUME, steps=4)
    assert done.status == 2 and "rows are shared out otherwise than when it was written" in done.err


def test_another_number_of_processes_is_refused_with_the_settings_that_train_the_same_and_those_do(
    command, forked, llama_dir, dataset_dir, tmp_path
):
    """One process that accumulates two batches, gone on with in two processes: the rows of each step are the same."""

    def flags(name, accumulated, *more):
        return (
            "recipes/sft.py", "--model_name_or_path", llama_dir, "--dataset_name", dataset_dir, "--output_dir",
            tmp_path / name, "--per_device_train_batch_size", 4, "--gradient_accumulation_steps", accumulated,
            "--num_train_epochs", 2, "--max_train_samples", 16, "--max_length", 256, "--logging_steps", 1,
            "--eval_strategy", "no", "--learning_rate", "1e-3", "--bf16", "false", "--use_cpu", "true",
            "--disable_tqdm", "true", *SAVING, *more,
        )  # fmt: skip

    done = command(*flags("whole", 2))
    assert done.status == 0, done.err
    whole = RunDir(tmp_path / "whole")
    run = halted(RunDir(shutil.copytree(whole.path, tmp_path / "run")))
    assert run.provenance()["processes"] == 1 and whole.summary()["steps"] == 4
    before = held(run)
    done = forked(*flags("run", 2, *RESUME), count=2)
    assert done.status != 0 and held(run) == before
    assert "processes was 1 and is now 2; a step had 8 rows and would have 16: start 1" in done.err
    assert "set gradient_accumulation_steps to 1, which trains the same" in done.err
    done = forked(*flags("run", 1, *RESUME), count=2)
    assert done.status == 0, done.err
    assert "goes on in 2 processes" in done.out
    assert run.summary()["epochs"] == whole.summary()["epochs"] == 2.0 and run.summary()["steps"] == 4
    losses = [[line["loss"] for line in read_jsonl(each.metrics) if "loss" in line] for each in (run, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    found, expected = (load_file(each.model / "model.safetensors") for each in (run, whole))
    for name in expected:
        assert torch.dist(found[name], expected[name]) <= 1e-4 * expected[name].norm(), name
    assert run.provenance()["processes"] == 2 and run.provenance()["resumed"][-1]["processes"] == 1


@pytest.mark.parametrize(
    ("had", "more", "fix"),
    [
        (2, (), "start 2, or set gradient_accumulation_steps to 2, which trains the same"),
        (4, ("--gradient_accumulation_steps", 3), "start 4, or set gradient_accumulation_steps to 12"),
        (2, ("--max_tokens_per_batch", 700), "a step had 2 batches and would have 1: start 2, or set"),
        (
            2,
            ("--train_sampling_strategy", "group_by_length"),
            "rows grouped by length come in another order then: start",
        ),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_fewer_processes_are_refused_too(sft, saved, had, more, fix, finished):
    run = saved(*more)
    if not finished:
        halted(run)
    (run.path / "provenance.json").write_text(json.dumps({**run.provenance(), "processes": had}))
    done, _ = sft(*SAVING, *more, *RESUME, steps=4)
    assert done.status == 2 and f"processes was {had} and is now 1" in done.err and fix in done.err


def test_the_hash_of_a_tokenizer_is_of_what_it_does(gpt2_dir, tmp_path):
    from finllm.text.tokens import tokenizer_hash

    first, again = (
        AutoTokenizer.from_pretrained(place) for place in (gpt2_dir, shutil.copytree(gpt2_dir, tmp_path / "b"))
    )
    expected = tokenizer_hash(first)
    again("a long text", truncation=True, max_length=2)  # leaves its mark in the tokenizer's state
    again.pad({"input_ids": [[1], [1, 2]]}, padding_side="left") if again.pad_token else None
    assert tokenizer_hash(again) == expected
    again.eos_token = "!"
    assert tokenizer_hash(again) != expected
    first.add_tokens(["<new>"])
    assert tokenizer_hash(first) != expected
