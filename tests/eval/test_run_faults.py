"""eval/run.py on data and models that are no good: nothing is written."""

import hashlib
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.models.language_model import Generation, Score
from eval.results import AUDITS, Results
from finllm.data.dataset_dir import dataset_hash
from finllm.files import read_jsonl, write_json, write_jsonl


def changed(dataset_dir, place, rows_of_test):
    """A copy of a dataset dir with another test split, sound but for that."""
    shutil.copytree(dataset_dir, place)
    rows = rows_of_test(read_jsonl(place / "test.jsonl"))
    write_jsonl(place / "test.jsonl", rows)
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["splits"]["test"]["sha256"] = hashlib.sha256((place / "test.jsonl").read_bytes()).hexdigest()
    manifest["sha256"] = dataset_hash({name: split["sha256"] for name, split in manifest["splits"].items()})
    write_json(place / "manifest.json", manifest)
    return place


@pytest.fixture
def evaluate(command, gpt2_dir, dataset_dir, tmp_path):
    def call(*arguments, model=gpt2_dir, data=dataset_dir):
        return command(
            "eval/run.py", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", tmp_path / "base",
            "--max_new_tokens", 8, "--max_examples", 5, *arguments,
        )  # fmt: skip

    return call


def test_every_audit_is_in_the_results_and_the_clean_part_beside_the_whole(evaluate, dataset_dir, tmp_path):
    def with_a_copy(rows):
        copied = read_jsonl(dataset_dir / "train.jsonl")[0]
        return [*rows[:4], {**rows[4], "instruction": copied["instruction"], "input": copied["input"]}]

    done = evaluate(data=changed(dataset_dir, tmp_path / "data", with_a_copy))
    assert done.status == 0, done.err
    results = Results.read(tmp_path / "base")
    assert tuple(results.audits) == AUDITS
    assert results.audits["causality"]["passed"] and "causality passed" in done.out
    contaminated = results.audits["contamination"]["contaminated"]
    assert len(contaminated) == 1 and "contamination FAILED: 1 of 5 examples" in done.out
    split = results.splits["test"]
    assert (split.examples, split.clean.examples, split.clean.generated) == (5, 4, 4)
    kept = [row for row in read_jsonl(tmp_path / "base/eval/predictions.jsonl") if row["id"] not in contaminated]
    expected = sum(row["nll"] for row in kept) / sum(row["tokens"] for row in kept)
    assert split.clean.metrics["nll_per_token"].value == pytest.approx(expected)
    assert split.clean.metrics["rougeL"].value == pytest.approx(sum(row["rougeL"] for row in kept) / 4)
    assert set(results.audits["memorisation"]["baselines"]) == {"copy the question", "nearest training answer"}


@pytest.mark.parametrize(
    ("rows_of_test", "said"),
    [(lambda rows: [], "the test split of"), (lambda rows: [{**rows[0], "output": ""}, *rows[1:]], "0 bytes")],
)
def test_an_empty_split_and_an_empty_answer_are_refused(evaluate, dataset_dir, tmp_path, rows_of_test, said):
    done = evaluate("--max_examples", 100, data=changed(dataset_dir, tmp_path / "data", rows_of_test))
    assert done.status == 2 and said in done.err and "prepare the dataset" in done.err
    assert not (tmp_path / "base").exists()


def test_a_diverged_model_is_refused_and_the_results_before_it_stay(evaluate, gpt2_dir, tmp_path):
    assert evaluate().status == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "base" / "eval").iterdir()}
    model = AutoModelForCausalLM.from_pretrained(gpt2_dir)
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(gpt2_dir).save_pretrained(tmp_path / "nan")
    done = evaluate("--overwrite", model=tmp_path / "nan")
    assert done.status == 2 and "the likelihood of 5 of 5 examples is not finite" in done.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "base" / "eval").iterdir()} == before


def test_a_tokenizer_that_cannot_write_the_references_is_refused(evaluate, gpt2_dir, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shutil.copytree(gpt2_dir, tmp_path / "words")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "Below": 2, "the": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>")
    fast.save_pretrained(tmp_path / "words")
    done = evaluate(model=tmp_path / "words")
    assert done.status == 2 and "problems in the references: example " in done.err and "becomes <unk>" in done.err
    assert "and 2 more" in done.err and not (tmp_path / "base").exists()


@pytest.mark.parametrize("method", ["score", "generate"])
def test_fewer_results_than_examples_are_refused(evaluate, monkeypatch, tmp_path, method):
    from eval.models.transformers_lm import TransformersLM

    short = {"score": lambda self, *_: [Score(1.0, 1, 1)], "generate": lambda self, *_: [Generation("a", 1, True)]}
    monkeypatch.setattr(TransformersLM, method, short[method])
    done = evaluate()
    assert done.status == 2 and "the model gave 1 results for 5 examples" in done.err
    left = [path for path in (tmp_path / "base").rglob("*") if path.is_file()]
    assert [path for path in left if ".partial" not in path.parts] == [] and len(left) == (method == "generate")
