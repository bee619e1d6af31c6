"""Damaged checkpoints are named and passed over, the last good one is never removed, and no code comes out of one."""

import os
import pickle
import shutil

import pytest
from fine_runs import assert_same, state_of
from processes import Moment

from finllm.training import checkpoints

THIRD_HAS_NO_NAME = Moment("rename", 3, ".writing")


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def alter(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "how", "what"),
    [
        ("model.safetensors", truncate, "model.safetensors is not as it was written"),
        ("optimizer.pt", alter, "optimizer.pt is not as it was written"),
        ("trainer_state.json", os.remove, "trainer_state.json is missing"),
        ("checksums.json", truncate, "checksums.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(fine, name, how, what):
    fine.killed("killed")
    damaged = fine.run("killed").checkpoints / "checkpoint-4"
    how(damaged / name)
    resumed = fine.resumed("killed")
    assert f"{damaged} is damaged" in fine.printed("killed") and what in fine.printed("killed")
    assert_same(resumed, fine.whole())
    assert (resumed.checkpoints / "damaged-checkpoint-4").is_dir()


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_again_in_silence(fine):
    fine.killed("killed")
    for checkpoint in fine.run("killed").checkpoints.glob("checkpoint-*"):
        truncate(checkpoint / "model.safetensors")
    assert fine.train("killed", "--resume", "auto") == 2
    assert "none of the 2 checkpoints" in fine.printed("killed")
    assert len(list(fine.run("killed").checkpoints.glob("checkpoint-*"))) == 2


def test_a_state_that_would_run_code_is_refused(fine, tmp_path):
    """Even where the hashes are right, as they are when someone sends a whole checkpoint."""

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was here"),)

    fine.killed("killed")
    place = fine.run("killed").checkpoints / "checkpoint-4"
    for state in ("optimizer.pt", "rng_state.pth"):
        (place / state).write_bytes(pickle.dumps(Payload()))
    work = place.with_name("again")
    place.rename(work)
    checkpoints.seal(work, place)
    assert fine.train("killed", "--resume", "auto") == 2
    assert "holds something other than numbers and was not read" in fine.printed("killed")
    assert not (tmp_path / "was here").exists()


def test_checkpoints_hold_no_pickle_of_arguments_and_the_best_is_named_where_it_lies(fine):
    run = fine.whole("--early_stopping_patience", 20, "--save_steps", 3)
    for checkpoint in run.checkpoints.iterdir():
        assert checkpoints.damage(checkpoint) is None
        assert not (checkpoint / "training_args.bin").exists()
        best = state_of(checkpoint)
        assert best["best_model_checkpoint"] == str(run.checkpoints / f"checkpoint-{best['best_global_step']}")


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [2, 4, 8, 10, 100]),
        (2, None, [10, 100]),
        (1, None, [100]),
        (1, 2, [2, 100]),  # the best and the newest, whatever the limit
        (3, 2, [2, 10, 100]),
        (9, 4, [2, 4, 8, 10, 100]),
    ],
)
def test_old_checkpoints_go_and_neither_the_newest_nor_the_best(tmp_path, limit, best, kept):
    for step in (8, 100, 2, 10, 4):  # in an order of time that is not that of the steps
        (tmp_path / f"checkpoint-{step}").mkdir()
    checkpoints.rotate(tmp_path, limit, best and f"elsewhere/checkpoint-{best}")
    assert [int(path.name.split("-")[1]) for path in checkpoints.by_step(tmp_path)] == kept


def test_a_run_dir_that_was_moved_is_resumed_where_it_lies(fine, tmp_path):
    settings = ("--early_stopping_patience", 20, "--save_steps", 3)
    assert fine.train("killed", *settings, moment=THIRD_HAS_NO_NAME) == -9
    shutil.move(fine.run("killed").path, tmp_path / "elsewhere")
    shutil.move(tmp_path / "elsewhere", fine.run("killed").path)
    moved = fine.run("killed").checkpoints / "checkpoint-6"
    state = moved / "trainer_state.json"
    state.write_text(state.read_text().replace(str(moved.parent), "/gone/checkpoints"))
    work = moved.with_name("again")
    moved.rename(work)
    checkpoints.seal(work, moved)
    assert_same(fine.resumed("killed", *settings), fine.whole(*settings))
