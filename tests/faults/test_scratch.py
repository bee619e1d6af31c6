"""The scratch baseline under the same faults: killed, stopped, its checkpoint damaged, its loss no number."""

import os
import re
import signal

import pytest
from fine_runs import assert_same
from processes import Moment, run

from finllm.run_dir import RunDir
from finllm.training import checkpoints

SETTINGS = (
    *("--vocabulary_size", 400, "--width", 16, "--layers", 1, "--heads", 2, "--feed_forward", 32, "--dropout", 0.2),
    *("--max_length", 256, "--batch_tokens", 800, "--max_steps", 12),
    *("--save_steps", 3, "--eval_steps", 4, "--logging_steps", 1),
)


@pytest.fixture
def scratch(dataset_dir, tmp_path):
    def call(name, *more, **how):
        arguments = ["--dataset_name", dataset_dir, "--output_dir", tmp_path / name, *SETTINGS, *more]
        status = run("baselines/scratch/train.py", arguments, tmp_path / f"{name}.log", **how)
        return status, RunDir(tmp_path / name), (tmp_path / f"{name}.log").read_text(encoding="utf-8")

    return call


def test_killed_and_resumed_it_is_the_same(scratch):
    whole = scratch("whole")[1]
    for moment in (Moment("rename", 2, ".writing"), Moment("replace", 2, "checksums.json"), Moment("fsync", 25, "")):
        assert scratch(str(moment), moment=moment)[0] == -signal.SIGKILL
        status, resumed, printed = scratch(str(moment), "--resume", "auto")
        assert status == 0, printed
        assert_same(resumed, whole)


def test_stopped_it_says_how_to_go_on_and_a_damaged_checkpoint_is_passed_over(scratch):
    status, stopped, printed = scratch("stopped", moment=Moment("rename", 2, ".writing", signal.SIGTERM))
    assert status == 143
    assert re.search(r"go on with:\s+python \S*baselines/scratch/train.py --dataset_name .* --resume auto", printed)
    newest = checkpoints.newest(stopped.checkpoints)
    os.truncate(newest / "optimizer.safetensors", 100)
    status, resumed, printed = scratch("stopped", "--resume", "auto")
    assert status == 0 and f"{newest} is damaged: optimizer.safetensors" in printed
    assert_same(resumed, scratch("whole")[1])


def test_a_loss_that_is_no_number_never_reaches_the_weights(scratch):
    status, run, printed = scratch("wild", "--learning_rate", "1e30", "--save_steps", 1, "--weight_decay", 0)
    assert status == 2 and "is no number" in printed and "was not applied" in printed
    assert not run.complete


def test_a_validation_loss_that_is_no_number_ends_the_training_and_says_why(scratch):
    wild = ("--max_steps", 1, "--learning_rate", "1e30", "--warmup_ratio", 0, "--weight_decay", 0)
    status, run, printed = scratch("wild", *wild)
    assert status == 2 and "the validation loss is nan after step 1; lower learning_rate (now 1e+30)" in printed
    assert not run.complete
