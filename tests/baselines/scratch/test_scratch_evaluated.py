"""Runs of the baseline under eval/run.py: what is longer than the positions they learned is known before scoring."""

import re

import pytest

from eval.results import Results

TINY = ("--vocabulary_size", 400, "--width", 16, "--layers", 1, "--heads", 2, "--feed_forward", 32, "--max_length", 200,
        "--batch_tokens", 800, "--max_steps", 2, "--logging_steps", 1)  # fmt: skip


@pytest.mark.parametrize("variant", ["causal", "seq2seq"])
def test_learned_positions_are_a_limit_and_others_are_none(command, dataset_dir, tmp_path, variant):
    runs = {}
    for positions in ("learned", "sinusoidal"):
        runs[positions] = tmp_path / positions
        done = command(
            "baselines/scratch/train.py", "--dataset_name", dataset_dir, "--output_dir", runs[positions], "--variant",
            variant, "--positions", positions, *TINY,
        )  # fmt: skip
        assert done.status == 0, done.err
    read_apart = variant == "seq2seq"  # question and answer each have 200 positions, of an encoder and a decoder
    flags = ("--max_new_tokens", 4, "--max_generated", 2)
    done = command("eval/run.py", *runs.values(), *flags)
    if read_apart:
        assert done.status == 0, done.err
        return
    assert done.status == 2 and done.err.count("has 200 positions") == 1 and f"{runs['learned']} has" in done.err
    counts = [int(tokens) for tokens in re.findall(r"\((\d+) tokens\)", done.err)]
    assert counts and min(counts) > 200
    assert not any((run / "eval").exists() for run in runs.values())
    done = command("eval/run.py", *runs.values(), *flags, "--skip_too_long")
    assert done.status == 0, done.err
    left = [Results.read(run).splits["test"].left_out for run in runs.values()]
    assert left[0] == left[1] and len(left[0]) == len(counts)
