"""SIGTERM and SIGINT end the step, leave a checkpoint and the command that goes on; two runs never share a folder."""

import re
import shlex
import signal

import psutil
import pytest
from fine_runs import assert_same, state_of
from processes import LIMIT, Moment, run, start, wait_for

from finllm.training import checkpoints


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(fine, number, status):
    # Sent while checkpoint-4 is written: the next step is the one that it ends.
    assert fine.train("stopped", moment=Moment("rename", 2, ".writing", number)) == status
    stopped = fine.run("stopped")
    newest = checkpoints.newest(stopped.checkpoints)
    assert newest.name == "checkpoint-5" and state_of(newest)["global_step"] == 5
    assert not stopped.complete and not stopped.model.exists()

    said = re.search(r"stopped at step 5; go on with:\s+python (.+)", fine.printed("stopped"))
    script, *arguments = shlex.split(said[1])
    assert run(script, arguments, fine.log("resumed")) == 0, fine.printed("resumed")
    assert_same(stopped, fine.whole())


def test_a_signal_in_an_epochs_middle_validates_nothing_that_is_not_due(fine):
    settings = ("--eval_strategy", "epoch", "--save_strategy", "epoch")
    # The first checkpoint is that of epoch 1, step 5; the signal ends step 6.
    assert fine.train("stopped", *settings, moment=Moment("rename", 1, ".writing", signal.SIGTERM)) == 143
    assert checkpoints.newest(fine.run("stopped").checkpoints).name == "checkpoint-6"
    assert_same(fine.resumed("stopped", *settings), fine.whole(*settings))


def test_a_second_signal_ends_at_once(fine):
    moment = Moment("rename", 2, ".writing", signal.SIGINT, times=2)
    assert fine.train("stopped", moment=moment) == -signal.SIGINT
    assert [path.name for path in checkpoints.by_step(fine.run("stopped").checkpoints)] == ["checkpoint-2"]
    assert_same(fine.resumed("stopped"), fine.whole())


def test_a_second_run_into_one_folder_is_refused_while_the_first_lives(fine):
    first = start(
        "recipes/sft.py", fine.command("run"), fine.log("first"), moment=Moment("rename", 2, ".writing", signal.SIGSTOP)
    )
    try:
        wait_for(lambda: psutil.Process(first.pid).status() == psutil.STATUS_STOPPED)
        assert (fine.run("run").checkpoints / ".writing" / "checkpoint-4" / "checksums.json").exists()
        before = sorted(fine.run("run").path.rglob("*"))
        assert fine.train("run", "--resume", "auto") == 2
        assert f"is in use by another run (process {first.pid} on " in fine.printed("run")
        assert sorted(fine.run("run").path.rglob("*")) == before
    finally:
        first.kill()
        first.join(LIMIT)
    assert_same(fine.resumed("run"), fine.whole())  # the lock of the dead process holds nobody back
