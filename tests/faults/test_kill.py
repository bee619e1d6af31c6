"""A run that is killed at any moment and resumed ends bit for bit where the run that was never killed ends."""

import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fine_runs import STEPS, assert_same
from processes import Moment

from finllm.run_dir import RunDir

VARIANTS = {
    "plain": (),
    "grouped by length": ("--train_sampling_strategy", "group_by_length"),
    "token budget": ("--max_tokens_per_batch", 700),
    "padded, accumulated": ("--join_rows", "false", "--gradient_accumulation_steps", 2),
    "LoRA, validated at epochs' ends": (
        *("--use_peft", "true", "--lora_target_modules", "all-linear", "--lora_dropout", 0.1),
        *("--eval_strategy", "epoch", "--save_steps", 5),
    ),
    "best kept": (
        *("--early_stopping_patience", 2, "--eval_steps", 1, "--save_steps", 1),
        *("--learning_rate", "3e-2", "--save_total_limit", 1),
    ),
}


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.soak)])
def test_runs_killed_at_random_moments_and_resumed_are_the_same(fine, kills):
    whole, begin = fine.whole(), time.monotonic()
    assert fine.train("timed", picture=True) == 0, fine.printed("timed")
    seconds = time.monotonic() - begin
    moments = random.Random(kills)

    def kill_and_resume(number: int, moment: float) -> RunDir:
        fine.train(f"killed_{number}", kill_after=moment * seconds, picture=True)
        return fine.resumed(f"killed_{number}")

    with ThreadPoolExecutor(2) as pool:
        for resumed in pool.map(kill_and_resume, range(kills), [moments.uniform(0.2, 1.2) for _ in range(kills)]):
            assert_same(resumed, whole)
            shutil.rmtree(resumed.path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_resumes_exactly(fine, variant):
    settings = VARIANTS[variant]
    # A checkpoint is written and has no name yet: the second, or the one after which early stopping ends the run.
    count = 6 if "--early_stopping_patience" in settings else 2
    assert fine.train("killed", *settings, moment=Moment("rename", count, ".writing")) == -9
    resumed = fine.resumed("killed", *settings)
    assert_same(resumed, fine.whole(*settings))
    assert (resumed.summary()["steps"] < STEPS) == ("--early_stopping_patience" in settings)


@pytest.mark.parametrize(
    "moment",
    [
        Moment("rename", 1, ".writing"),  # no checkpoint has a name yet
        Moment("replace", 3, "checksums.json"),  # the third checkpoint has no hashes yet
        Moment("fsync", 40, ""),  # in the middle of having one written to the disk
        Moment("rename", 1, ".model"),  # trained; the weights have no name yet
        Moment("replace", 1, "summary.json"),  # all is there but the summary
    ],
    ids=str,
)
def test_a_run_killed_while_it_writes_resumes_exactly(fine, moment):
    assert fine.train("killed", moment=moment) == -9
    assert not fine.run("killed").complete
    assert_same(fine.resumed("killed"), fine.whole())
