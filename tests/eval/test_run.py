"""eval/run.py by its command line, on small random models."""

import functools
import json
import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel

from eval.models.transformers_lm import load_base
from eval.results import Results, predictions
from finllm.data.dataset_dir import DatasetDir
from finllm.run_dir import RunDir
from finllm.text.prompts import build_prompt


@pytest.fixture
def evaluate(command, gpt2_dir, dataset_dir, tmp_path):
    def call(*arguments, output_dir=tmp_path / "base"):
        done = command(
            "eval/run.py", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir", output_dir,
            "--max_new_tokens", 8, *arguments,
        )  # fmt: skip
        return done, output_dir

    return call


def test_a_base_model_gets_results_and_a_line_an_example(evaluate, dataset_dir):
    done, path = evaluate()
    assert done.status == 0, done.err
    results, rows = Results.read(path), predictions(path)
    test = DatasetDir(dataset_dir).rows("test")
    assert {row["id"] for row in rows} == {row["id"] for row in test}
    split = results.splits["test"]
    assert split.examples == split.generated == len(test)
    nll, tokens = sum(row["nll"] for row in rows), sum(row["tokens"] for row in rows)
    size = sum(len(row["output"].encode()) for row in test)
    assert split.metrics["nll_per_token"].value == pytest.approx(nll / tokens)
    assert split.metrics["perplexity"].value == pytest.approx(math.exp(nll / tokens))
    assert split.metrics["bits_per_byte"].value == pytest.approx(nll / math.log(2) / size)
    for interval in split.metrics.values():
        assert interval.low <= interval.value <= interval.high
    assert results.model.method == "base" and results.model.trainable_parameters == 0
    assert "rouge_score" in results.signatures["rouge"] and "version:" in results.signatures["bleu"]
    assert "bits_per_byte" in done.out and "eval/leaderboard.py" in done.out
    assert (path / "provenance.json").exists()


def test_likelihood_is_of_the_response_and_its_eos_only(gpt2_dir):
    """Against the model's own logits over one whole row, without any of our batching."""
    lm = load_base(str(gpt2_dir), batch_size=4)
    prompt, response = build_prompt("What is tax?"), "Money."
    prompt_ids = lm.tokenizer(prompt).input_ids
    response_ids = [*lm.tokenizer(response).input_ids, lm.tokenizer.eos_token_id]
    with torch.no_grad():
        logits = lm.model(torch.tensor([prompt_ids + response_ids])).logits[0, len(prompt_ids) - 1 : -1]
    expected = cross_entropy(logits, torch.tensor(response_ids), reduction="sum").item()
    (score,) = lm.score([prompt], [response])
    assert score.nll == pytest.approx(expected, rel=1e-6)
    assert score.tokens == len(response_ids)


def test_the_numbers_do_not_depend_on_the_batch_size(evaluate, tmp_path):
    found = []
    for batch_size in (1, 2, 16):
        done, path = evaluate("--batch_size", batch_size, output_dir=tmp_path / str(batch_size))
        assert done.status == 0, done.err
        found.append((Results.read(path).splits["test"].metrics, predictions(path)))
    for metrics, rows in found[1:]:
        for name, interval in found[0][0].items():
            assert metrics[name].value == pytest.approx(interval.value, rel=1e-6), name
        assert [row["prediction"] for row in rows] == [row["prediction"] for row in found[0][1]]
        assert [row["nll"] for row in rows] == pytest.approx([row["nll"] for row in found[0][1]], rel=1e-5)


def test_only_some_are_answered_and_the_rest_is_scored_all_the_same(evaluate):
    done, path = evaluate("--max_generated", 2)
    assert done.status == 0, done.err
    rows = predictions(path)
    assert sum(row["prediction"] is not None for row in rows) == Results.read(path).splits["test"].generated == 2
    assert all(row["nll"] > 0 for row in rows)


def test_nothing_is_answered_when_asked_so(evaluate):
    done, path = evaluate("--max_generated", 0)
    assert done.status == 0, done.err
    assert set(Results.read(path).splits["test"].metrics) == {
        "nll_per_token", "perplexity", "bits_per_byte", "token_accuracy"
    }  # fmt: skip


def test_a_second_time_nothing_is_done_and_other_settings_are_refused(evaluate):
    _, path = evaluate()
    before = (path / "eval" / "results.json").read_bytes()
    done, _ = evaluate()
    assert done.status == 0 and "nothing to do" in done.out
    done, _ = evaluate("--max_examples", 2)
    assert done.status == 2 and "pass --overwrite to replace it" in done.err
    assert (path / "eval" / "results.json").read_bytes() == before
    done, _ = evaluate("--max_examples", 2, "--overwrite")
    assert done.status == 0 and Results.read(path).splits["test"].examples == 2


def test_full_and_adapter_runs_go_the_same_way_and_score_as_training_did(command, gpt2_dir, dataset_dir, tmp_path):
    """The validation loss that training ended with is the one that evaluation finds in the saved model."""
    paths = []
    for name, adapter in (("full", ()), ("lora", ("--use_peft", "true", "--lora_target_modules", "all-linear"))):
        path = tmp_path / name
        done = command(
            "recipes/sft.py", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir", path,
            "--max_steps", 3, "--max_length", 512, "--learning_rate", "1e-3", "--save_strategy", "no",
            "--disable_tqdm", "true", "--bf16", "false", *adapter,
        )  # fmt: skip
        assert done.status == 0, done.err
        paths.append(path)
    base = ("--model_name_or_path", gpt2_dir, "--output_dir", tmp_path / "base")
    done = command("eval/run.py", *paths, *base, "--split", "validation", "--max_generated", 0)
    assert done.status == 0, done.err
    untrained = RunDir(paths[0]).summary()["first_validation_loss"]
    found = Results.read(tmp_path / "base").splits["validation"].metrics["nll_per_token"].value
    assert found == pytest.approx(untrained, rel=1e-5)
    for path, method in zip(paths, ("full", "lora"), strict=True):
        results = Results.read(path)
        trained = RunDir(path).summary()["final_validation_loss"]
        assert results.splits["validation"].metrics["nll_per_token"].value == pytest.approx(trained, rel=1e-5)
        assert results.model.method == method
    done = command("eval/leaderboard.py", *paths, "--split", "validation", "--output_dir", tmp_path / "board")
    assert done.status == 0, done.err
    board = json.loads((tmp_path / "board" / "leaderboard.json").read_text())
    assert {"full", "lora"} <= set(json.dumps(board).replace('"', " ").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give run dirs, or --model_name_or_path with --dataset_name and --output_dir, or both"),
        (["nowhere"], "nowhere is not a folder; a run dir is what recipes/sft.py writes"),
        (["finllm"], "config.yaml, provenance.json, metrics.jsonl, summary.json, model missing"),
        (["--model_name_or_path", "gpt2"], "needs both --model_name_or_path and --output_dir"),
        (["a", "--output_dir", "b"], "needs both"),
        (["a", "--batch_size", 0], "--batch_size is 0; it must be at least 1"),
        (["a", "--max_generated", -1], "--max_generated is -1; it must be at least 0, which answers none"),
    ],
)
def test_mistakes_are_named(command, arguments, message):
    done = command("eval/run.py", *arguments)
    assert done.status == 2 and message in done.err


def test_the_folder_of_a_training_run_is_not_taken_for_a_base_model(evaluate, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.yaml").write_text("{}")
    done, _ = evaluate()
    assert done.status == 2 and "holds a training run" in done.err


def test_scoring_computes_little_padding(gpt2_dir):
    """A long row among short ones would make each of them as long."""
    model, computed = load_base(str(gpt2_dir), 16), []
    model.score(["Why?"], ["So."])  # the head is tried once, on the first text
    model.model.transformer.register_forward_pre_hook(
        lambda _, __, given: computed.append(given["input_ids"].numel()), with_kwargs=True
    )
    prompts = ["What is a bond?", "What does a fund hold, and why is that?" * 5, "Why?", "What is a fund?"] * 4
    responses = ["A loan.", "Stocks, and bonds, and some cash. " * 10, "Because it is.", "A basket of stocks."] * 4
    tokens = sum(sum(map(len, model.encode(*pair))) for pair in zip(prompts, responses, strict=True))
    model.score(prompts, responses)
    assert sum(computed) < 1.25 * tokens and len(computed) < 6


def test_a_head_that_changes_its_logits_is_asked_for_them_where_responses_stand(gpt2_dir, monkeypatch):
    """Such a model goes through its own forward, since the short way would score another function."""
    model, forward = load_base(str(gpt2_dir), 4), GPT2LMHeadModel.forward
    prompts, responses = (
        ["What is a bond?", "What is a fund?", "What is a loan?"],
        ["A loan."] * 3,  # rows of like length, so one batch
    )
    asked, pairs = [], [model.encode(*pair) for pair in zip(prompts, responses, strict=True)]

    @functools.wraps(forward)
    def capped(self, *args, **kwargs):
        asked.append(len(kwargs["logits_to_keep"]) if "logits_to_keep" in kwargs else None)
        output = forward(self, *args, **kwargs)
        output.logits = 0.05 * torch.tanh(output.logits / 0.05)
        return output

    monkeypatch.setattr(GPT2LMHeadModel, "forward", capped)
    found = model.score(prompts, responses)
    assert [count for count in asked if count is not None and count < max(len(p) + len(r) for p, r in pairs)]
    assert len(asked) == 2 and asked[-1] is not None  # once for the proof, on a few tokens, and once for all scores
    for score, (prompt, response) in zip(found, pairs, strict=True):
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        expected = cross_entropy(logits, torch.tensor(response), reduction="sum").item()
        assert score.nll == pytest.approx(expected, rel=1e-5)
