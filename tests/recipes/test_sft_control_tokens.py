"""Answers that spell the end of text, from raw rows to what the trained model writes, by the command line."""

import json

import pytest

from eval.results import predictions

ANSWER = "Yes <|endoftext|> no."


@pytest.fixture(scope="module")
def spelled(tmp_path_factory):
    """A dataset dir whose every answer goes on after the characters of EOS."""
    from finllm.data.prepare import prepare

    folder = tmp_path_factory.mktemp("spelled")
    topics = ("bonds", "tax", "funds", "loans", "banks", "gold", "rent", "risk", "debt", "cash", "wages", "fees")
    rows = [{"instruction": f"Is it about {topic}?", "output": ANSWER} for topic in topics]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(folder / "rows.jsonl", folder / "dataset", validation_fraction=0.17, test_fraction=0.17)
    return folder / "dataset"


def test_an_answer_that_spells_eos_is_learned_to_its_end(command, gpt2_dir, spelled, tmp_path):
    run = tmp_path / "run"
    done = command(
        "recipes/sft.py", "--model_name_or_path", gpt2_dir, "--dataset_name", spelled, "--output_dir", run,
        "--max_steps", 60, "--learning_rate", "1e-2", "--per_device_train_batch_size", 8, "--save_strategy", "no",
        "--max_length", 256, "--base_dropout", 0, "--disable_tqdm", "true", "--seed", 1,
    )  # fmt: skip
    assert done.status == 0, done.err
    (line,) = [line for line in done.out.splitlines() if "spell a control token" in line]
    assert line.split()[-4:] == ["8", "│", "2", "│"]

    done = command("finllm/cli.py", "generate", run, "Is it about bonds?", "--max_new_tokens", 40)
    assert done.status == 0, done.err
    assert done.out.strip() == ANSWER
    done = command("eval/run.py", run, "--max_new_tokens", 40)
    assert done.status == 0, done.err
    for row in predictions(run):
        assert row["prediction"] == ANSWER and row["stopped"]
        assert row["tokens"] == row["prediction_tokens"] > len("<|endoftext|>")


def test_data_show_shows_it_as_text(command, gpt2_dir, spelled, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = command("finllm/cli.py", "data", "show", spelled, "--tokenizer", gpt2_dir)
    assert done.status == 0, done.err
    assert f"{ANSWER} EOS" in done.out
    assert "its text spells a control token, and stays text" in done.out
