"""Rows longer than a model's positions: named before anything is scored, or left out of all models and counted."""

import json
import re
import shutil

import pytest
from test_run_faults import changed
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from eval.models.transformers_lm import TransformersLM
from eval.results import Results, predictions
from finllm.data.dataset_dir import DatasetDir
from finllm.files import read_jsonl
from finllm.provenance import provenance
from finllm.run_dir import RunDir
from finllm.text.prompts import TEMPLATE_HASH

ROW = {"id": "zzzz", "question_id": "zzzz", "instruction": "What is a bond?", "input": "", "output": "A loan. " * 150}


@pytest.fixture(scope="module")
def data(dataset_dir, tmp_path_factory):
    """The test split with three rows: one has a long answer, one a long question."""
    rows = read_jsonl(dataset_dir / "test.jsonl")[:2]
    long_question = {**ROW, "id": "yyyy", "question_id": "yyyy", "instruction": "Why? " * 100, "output": "So."}
    return changed(dataset_dir, tmp_path_factory.mktemp("long") / "data", lambda _: [*rows, long_question, ROW])


@pytest.fixture(scope="module")
def longer(gpt2_dir, tmp_path_factory):
    """A tiny GPT-2 with 1,024 positions; that of gpt2_dir has 512."""
    folder = tmp_path_factory.mktemp("longer")
    config = GPT2Config.from_pretrained(gpt2_dir, n_positions=1024)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gpt2_dir).save_pretrained(folder)
    return folder


@pytest.fixture
def run_of(longer, dataset_dir, tmp_path):
    """A run dir of the longer model, as if full training had made it."""
    run = RunDir(tmp_path / "longer")
    config = {"model_name_or_path": str(longer), "dataset_name": str(dataset_dir), "max_length": 512}
    run.start(config, provenance(dataset_hash=DatasetDir(dataset_dir).hash, template_hash=TEMPLATE_HASH), resume=False)
    shutil.copytree(longer, run.model)
    run.metrics.touch()
    parameters = {"trainable_parameters": 1000, "total_parameters": 1000}
    run.finish({"name": "longer", "method": "full", "base_model": str(longer), **parameters})
    return run.path


@pytest.fixture
def evaluate(command, gpt2_dir, data, tmp_path):
    def call(*arguments, model=gpt2_dir, name="base"):
        base = ("--model_name_or_path", model, "--output_dir", tmp_path / name) if model else ()
        return command("eval/run.py", "--max_new_tokens", 4, *arguments, "--dataset_name", data, *base)

    return call


@pytest.fixture
def never_scored(monkeypatch):
    for name in ("score", "generate", "log_probs"):
        monkeypatch.setattr(TransformersLM, name, lambda *_: pytest.fail("the model was asked"))


def tokens(message, id):
    return int(re.search(rf"{id} \(([\d,]+) tokens\)", message)[1].replace(",", ""))


def test_a_row_longer_than_the_model_is_named_before_anything_is_scored(evaluate, gpt2_dir, never_scored, tmp_path):
    done = evaluate()
    assert done.status == 2 and "Traceback" not in done.err
    tokenizer = AutoTokenizer.from_pretrained(gpt2_dir)
    assert tokens(done.err, "zzzz") > len(tokenizer(ROW["output"]).input_ids) > 512
    assert "512 positions" in done.err and "yyyy" not in done.err and "--skip_too_long" in done.err
    assert not (tmp_path / "base").exists()


def test_a_model_that_comes_second_stops_the_first_before_it_is_scored(
    evaluate, run_of, longer, never_scored, tmp_path
):
    """The base model reads all of it, the run reads all of it, and the other way round one does not."""
    done = evaluate(run_of)
    assert done.status == 2 and f"{tmp_path}/base has 512 positions" in done.err and str(run_of) not in done.err


def test_no_room_for_an_answer_is_found_before_anything_is_scored_and_the_limit_named_works(
    evaluate, monkeypatch, tmp_path
):
    fits = ("--max_examples", 3)  # all but the long answer
    with monkeypatch.context() as patched:
        for name in ("score", "generate"):
            patched.setattr(TransformersLM, name, lambda *_: pytest.fail("the model was asked"))
        done = evaluate(*fits, "--max_new_tokens", 300)
        assert done.status == 2 and "--max_new_tokens 300 leaves no room for" in done.err
        assert re.search(r"yyyy \(a prompt of [\d,]+ tokens\)", done.err) and not (tmp_path / "base").exists()
        most = int(re.search(r"lower it to (\d+) or less", done.err)[1])
        assert f"lower it to {most} or less" in evaluate(*fits, "--max_new_tokens", most + 1).err
    done = evaluate(*fits, "--max_new_tokens", 300, "--max_generated", 0, name="none")  # then nothing needs room
    assert done.status == 0, done.err
    done = evaluate(*fits, "--max_new_tokens", most, name="lower")
    assert done.status == 0, done.err
    assert Results.read(tmp_path / "lower").splits["test"].generated == 3


def test_left_out_of_one_is_left_out_of_all_and_counted(evaluate, command, run_of, tmp_path):
    done = evaluate(run_of, "--skip_too_long")
    assert done.status == 0, done.err
    assert " ".join(done.out.split()).count("3 examples, 3 answers, 1 left out as too long") == 2
    for path in (run_of, tmp_path / "base"):
        split = Results.read(path).splits["test"]
        assert split.left_out == ["zzzz"] and split.examples == split.generated == 3
        assert "zzzz" not in {row["id"] for row in predictions(path)}
    done = command("eval/leaderboard.py", tmp_path / "base", run_of, "--output_dir", tmp_path / "board")
    assert done.status == 0, done.err
    said = "1 of 4 examples are not counted, of any model"
    board = json.loads((tmp_path / "board" / "leaderboard.json").read_text())
    assert all(model["left_out"] == ["zzzz"] for model in board["models"])
    assert said in " ".join(board["caveats"]) and said in " ".join(done.out.split())
    assert (
        said in (tmp_path / "board/leaderboard.md").read_text() and said in (tmp_path / "board/index.html").read_text()
    )

    assert evaluate(run_of, "--skip_too_long").out.count("nothing to do") == 2
    done = evaluate(run_of)
    assert done.status == 2 and "left out ['zzzz'], now []; pass --overwrite" in done.err


def test_two_commands_that_leave_out_different_rows_are_not_compared_and_the_hint_helps(
    evaluate, command, run_of, tmp_path
):
    assert evaluate("--skip_too_long").status == 0
    assert evaluate(run_of, "--skip_too_long", model=None).status == 0
    assert Results.read(run_of).splits["test"].left_out == []
    board = ("eval/leaderboard.py", tmp_path / "base", run_of, "--output_dir", tmp_path / "board")
    done = command(*board)
    assert done.status == 2 and "0 and 1 were left out as too long" in done.err.replace("1 and 0", "0 and 1")
    assert "--skip_too_long --overwrite" in done.err
    assert evaluate(run_of, "--skip_too_long", "--overwrite").status == 0
    assert command(*board).status == 0


def test_where_nothing_is_left_it_says_so(evaluate, never_scored, tmp_path):
    done = evaluate("--max_new_tokens", 600, "--skip_too_long")
    assert done.status == 2 and "leaves none of 4 examples" in done.err and not (tmp_path / "base").exists()
