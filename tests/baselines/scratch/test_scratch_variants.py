"""The three models under the harness: what each sees, and the leak shown by one command."""

import dataclasses
import random
import re

import numpy as np
import pytest

from baselines.scratch.config import VARIANTS, TrainConfig
from baselines.scratch.tokenizer import BOS, EOS, Tokenizer
from baselines.scratch.train import train
from eval.models.loading import open_run
from finllm.data.dataset_dir import DatasetDir
from finllm.errors import UserError
from finllm.run_dir import RunDir
from finllm.text.prompts import build_prompt
from tests.baselines.scratch.conftest import THINGS, write_dataset_dir


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Questions and answers that nothing can be guessed of: words drawn at random."""
    draw = random.Random(0)
    words = lambda count: " ".join(draw.choice(THINGS) for _ in range(count))  # noqa: E731
    rows = [(f"{words(3)}?", "", f"{words(draw.randint(5, 9))}.") for _ in range(150)]
    folder = tmp_path_factory.mktemp("data") / "dataset"
    return write_dataset_dir(folder, train=rows[:120], validation=rows[120:135], test=rows[135:])


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """A finished run of each variant, all trained alike."""
    folder = tmp_path_factory.mktemp("runs")
    config = TrainConfig(
        dataset_name=str(dataset), output_dir="", vocabulary_size=310, max_length=64, layers=2, width=32, heads=2,
        feed_forward=64, batch_tokens=512, max_steps=200, learning_rate=0.01, dropout=0.0, eval_steps=100,
    )  # fmt: skip
    for variant in VARIANTS:
        norm = "post" if variant == "as_published" else "pre"
        train(dataclasses.replace(config, variant=variant, norm=norm, output_dir=str(folder / variant)))
    return {variant: RunDir(folder / variant) for variant in VARIANTS}


def pairs_of(model, dataset):
    rows = DatasetDir(dataset).rows("test")
    return rows, [model.encode(build_prompt(row["instruction"], row["input"]), row["output"]) for row in rows]


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_learns_and_is_measured_alike(runs, dataset, variant):
    run = runs[variant]
    summary = run.summary()
    assert summary["final_validation_loss"] < 3.5 < summary["first_validation_loss"]
    assert (run.config()["variant"], summary["method"]) == (variant, "scratch")
    assert f"| variant | {variant} |" in (run.model / "README.md").read_text()
    model = open_run(run, batch_size=4)
    rows = DatasetDir(dataset).rows("validation")
    prompts = [build_prompt(row["instruction"], row["input"]) for row in rows]
    scores = model.score(prompts, [row["output"] for row in rows])
    loss = sum(score.nll for score in scores) / sum(score.tokens for score in scores)
    assert loss == pytest.approx(summary["best_validation_loss"], rel=1e-5)
    alone = open_run(run, batch_size=1)
    assert alone.generate(prompts[:3], 12) == model.generate(prompts[:3], 12)


def test_every_variant_supervises_the_same_tokens(runs):
    summaries = {variant: run.summary() for variant, run in runs.items()}
    assert summaries["as_published"]["supervised_tokens"] == summaries["causal"]["supervised_tokens"]
    reports = [(run.model / "tokenizer_report.json").read_bytes() for run in runs.values()]
    assert len(set(reports)) == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_log_probs_are_what_score_sums(runs, dataset, variant):
    model = open_run(runs[variant], batch_size=4)
    rows, pairs = pairs_of(model, dataset)
    prompt, response = pairs[0]
    assert prompt[0] == BOS and response[-1] == EOS
    assert model.tokenizer.decode(response) == rows[0]["output"]
    found = model.log_probs(pairs)
    scores = model.score(
        [build_prompt(row["instruction"], row["input"]) for row in rows], [row["output"] for row in rows]
    )
    for log_p, score, (_, response) in zip(found, scores, pairs, strict=True):
        assert log_p.dtype == np.float64 and log_p.shape == (len(response),) and (log_p < 0).all()
        assert score.nll == pytest.approx(-log_p.sum(), rel=1e-9) and score.tokens == len(response)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_published_model_sees_the_future(runs, dataset, variant):
    """Other response tokens after t: log-probabilities up to t move by much, or by no more than rounding."""
    model = open_run(runs[variant], batch_size=8)
    _, pairs = pairs_of(model, dataset)
    for t in (0, 2):
        changed = [
            (prompt, [*response[: t + 1], *[5 + id % 50 for id in response[t + 1 :]]]) for prompt, response in pairs
        ]
        moved = [
            np.abs(before[: t + 1] - after[: t + 1]).max()
            for before, after in zip(model.log_probs(pairs), model.log_probs(changed), strict=True)
        ]
        if variant == "as_published":
            assert max(moved) > 0.1
        else:
            assert max(moved) < 1e-5


def test_the_leak_in_one_command(runs, command):
    done = command("baselines/scratch/leak.py", *(run.path for run in runs.values()), "--questions", 4)
    assert done.status == 0, done.err
    lines = [re.split("[│┃]", line)[2:-1] for line in done.out.splitlines() if line.startswith("│")]
    cells = {column[0]: column[1:] for column in zip(*([cell.strip() for cell in line] for line in lines), strict=True)}
    assert {variant: cell[-1] for variant, cell in cells.items()} == {
        "as_published": "yes", "causal": "no", "seq2seq": "no",
    }  # fmt: skip
    for variant in ("causal", "seq2seq"):
        at_once, one_by_one, right_at_once, right, moved = cells[variant][:-1]
        assert float(at_once) == pytest.approx(float(one_by_one), abs=0.02) and right_at_once == right
        assert float(moved) < 1e-4
    at_once, one_by_one = (float(cell) for cell in cells["as_published"][:2])
    assert at_once < one_by_one / 3


def test_leak_says_what_it_cannot_do(runs, command, tmp_path):
    run = runs["causal"].path
    assert "must be at least 1" in command("baselines/scratch/leak.py", run, "--questions", 0).err
    assert command("baselines/scratch/leak.py", tmp_path).status == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_flags_of_generate(runs, command, variant):
    def ask(*flags):
        done = command(
            "baselines/scratch/generate.py", runs[variant].path, "What is a bond?", "--max_new_tokens", 9, *flags
        )
        assert done.status == 0, done.err
        return done.out

    drawn = ["--temperature", 2, "--top_k", 200, "--top_p", 0.99, "--min_p", 0.0001]
    assert ask(*drawn, "--seed", 1) == ask(*drawn, "--seed", 1)
    assert len({ask(*drawn, "--seed", seed) for seed in (1, 2, 3, 4)}) > 1
    assert ask("--num_beams", 3, "--no_repeat_ngram_size", 2, "--repetition_penalty", 1.2).strip()


def test_flags_of_generate_that_cannot_work(runs, command):
    run = runs["causal"].path
    done = command("baselines/scratch/generate.py", run, "What?", "--top_k", 0, "--max_new_tokens", 0)
    assert done.status == 2 and "3 problems in the flags" in done.err
    for part in ("top_k is 0 and must be at least 1", "temperature is 0, which draws nothing", "max_new_tokens is 0"):
        assert part in done.err


def test_a_tokenizer_of_another_run(runs, dataset, tmp_path):
    run = runs["causal"]
    held = (run.model / "tokenizer.model").read_bytes()
    try:
        Tokenizer.train(THINGS, 300).save(run.model)
        with pytest.raises(UserError, match=r"tokenizer.model has 300 pieces and config.json 310"):
            open_run(run, 1)
    finally:
        (run.model / "tokenizer.model").write_bytes(held)
