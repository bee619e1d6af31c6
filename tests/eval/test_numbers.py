"""From rows to leaderboard.json, every figure a literal: the bits of set_models.py's models can be counted.

numbers.json holds the figures. Whoever changes one on purpose writes the new one there, and why into the commit.
"""

import json
import math
from pathlib import Path

import pytest
from set_models import chain, nats, save

from eval.results import Results, predictions
from finllm.data.prepare import prepare
from finllm.text.prompts import build_prompt

NUMBERS = json.loads(Path(__file__).with_name("numbers.json").read_text(encoding="utf-8"))
FIRST = chain("\nBonds pay.", "the", "in", "a ")
MODELS = {  # successors, share, and where it tires
    "first": (FIRST, 0.5, 165),
    "second": (chain("\nA loan.", "the", "on", "ey", of=" "), 0.5, 10**9),
    "third": ({**chain("\na ", of="q"), ord(" ") + 1: ord("a") + 1}, 0.25, 10**9),
}
ANSWERS = {
    "What is a bond?": ["A loan to a state.", "Bonds pay.", "A loan to a firm or to a state, paid back in the end."],
    "What is a fund?": ["Money of many, in one hand.", "Then ask the bank."],
    "How is rent paid?": ["In the month before, and in one go."],
    "Is gold an asset?": ["Yes, and then one that pays nothing."],
    "What is £1 in pence?": ["It is 100 pence — not 240."],
    "Who sets the rate?": ["The bank at the centre, on a day it names."],
    "When is tax due in the United Kingdom for those who work for themselves?": ["In January, and then in the summer."],
    "Should I save or repay the money that I owe to the bank on my card?": ["Repay."],
    "What is inflation?": ["Then money buys less than in the year before."],
    "What does a broker do?": ["He buys and sells in the name of others."],
    "What is a dividend?": ["What a firm pays to its owners."],
    "Name a currency.": ["The euro."],
    "What is a share?": ["A part of a firm."],
    "What is a pension?": ["Money in old age."],
    "What is a budget?": ["A plan of what comes in and goes out."],
    "What is debt?": ["What one owes."],
    "What is a bond for?": ["A loan to a firm or to a state, paid back in the end!"],
    "What is £2 in pence?": ["It is 200 pence."],
    "Explain what a budget is.": ["A plan of what comes in and goes out, month by month."],
    "Say what a broker does for his customers.": ["He buys and he sells."],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The dataset dir, and a folder for each model."""
    folder = tmp_path_factory.mktemp("numbers")
    rows = [{"instruction": q, "input": "", "output": a} for q, answers in ANSWERS.items() for a in answers]
    rows.append({"instruction": "Add it up.", "input": "£2 and £3", "output": "£5 in all."})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = prepare(folder / "rows.jsonl", folder / "data", seed=20, validation_fraction=0.1, test_fraction=0.6)
    models = {name: save(folder / "models" / name, *settings) for name, settings in MODELS.items()}
    return dataset, models, folder


@pytest.fixture
def evaluate(command, places):
    def call(name, *arguments, folder="runs"):
        dataset, models, place = places
        path = place / folder / name
        done = command(
            "eval/run.py", "--model_name_or_path", models[name], "--dataset_name", dataset.path, "--output_dir", path,
            "--max_new_tokens", 9, "--batch_size", 4, *arguments,
        )  # fmt: skip
        return done, path

    return call


@pytest.fixture
def board(evaluate, command, places):
    """The three models evaluated and compared: their results.json, and leaderboard.json."""
    place = places[2]
    if not (place / "board").exists():
        for name in MODELS:
            done, _ = evaluate(name)
            assert done.status == 0, done.err
        paths = [place / "runs" / name for name in ("third", "first", "second")]
        done = command("eval/leaderboard.py", *paths, "--output_dir", place / "board")
        assert done.status == 0, done.err
    results = {name: Results.read(place / "runs" / name) for name in MODELS}
    return results, json.loads((place / "board/leaderboard.json").read_text(encoding="utf-8"))


def close(expected):
    """The same numbers, but for the rounding of float32; all else just so."""
    if isinstance(expected, dict):
        return {key: close(value) for key, value in expected.items()}
    if isinstance(expected, (list, tuple)):
        return [close(value) for value in expected]
    return pytest.approx(expected, rel=1e-5, abs=1e-5) if isinstance(expected, float) else expected


def metrics_of(split):
    return {
        name: interval and [interval.value, interval.low, interval.high] for name, interval in split.metrics.items()
    }


def of(audits):
    """What an audit found, without its words and without what is rounding alone."""
    return {
        name: {
            key: value
            for key, value in found.items()
            if key not in ("summary", "unnormalised") and (not key.endswith("_difference") or value > 1e-5)
        }
        for name, found in audits.items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_every_example_costs_what_its_bytes_cost(board, places, name):
    dataset, _, place = places
    rows = predictions(place / "runs" / name)
    test = {row["id"]: row for row in dataset.rows("test")}
    assert [row["id"] for row in rows] == sorted(test) and len(rows) == 11
    for row in rows:
        example = test[row["id"]]
        prompt = build_prompt(example["instruction"], example["input"])
        expected = nats(*MODELS[name], prompt, example["output"])
        assert row["nll"] == pytest.approx(math.fsum(expected), rel=1e-6)
        assert row["tokens"] == len(expected) and row["bytes"] == len(expected) - 1
        kept = ("question_id", "instruction", "input")
        assert [row[key] for key in kept] == [example[key] for key in kept]
        assert (row["prompt"], row["reference"], row["split"]) == (prompt, example["output"], "test")
    found = [{key: row[key] for key in expected} for row, expected in zip(rows, NUMBERS["answers"][name], strict=True)]
    assert found == close(NUMBERS["answers"][name])
    assert {row["id"] for row in rows if row["stopped"]} == {row["id"] for row in rows if row["prediction_tokens"] < 9}


@pytest.mark.parametrize("name", MODELS)
def test_results(board, places, name):
    results = board[0][name]
    split = results.splits["test"]
    assert (split.examples, split.questions, split.tokens, split.bytes, split.generated) == (11, 8, 275, 264, 11)
    clean = split.clean
    assert (clean.examples, clean.questions, clean.tokens, clean.bytes, clean.generated) == (8, 7, 191, 183, 8)
    assert metrics_of(split) == close(NUMBERS["metrics"][name])
    assert metrics_of(clean) == close(NUMBERS["clean"][name])
    assert of(results.audits) == close(NUMBERS["audits"]["all"] | NUMBERS["audits"][name])
    bits = sum(row["nll"] for row in predictions(places[2] / "runs" / name)) / math.log(2)
    assert split.metrics["bits_per_byte"].value == pytest.approx(bits / 264)
    assert split.metrics["perplexity"].value == pytest.approx(2 ** (bits / 275))
    model = results.model
    assert (model.method, model.total_parameters, model.trainable_parameters, model.dtype) == (
        "base", 556784, 0, "float32"
    )  # fmt: skip
    assert results.decoding == {"do_sample": False, "max_new_tokens": 9} and results.confidence["level"] == 0.95
    assert results.dataset == {"name": str(places[0].path), "hash": places[0].hash}
    assert list(results.hashes) == ["weights", "tokenizer"] and len(set(results.hashes.values())) == 2


def test_leaderboard(board):
    _, content = board
    keys = NUMBERS["models"][0]
    assert [{key: row[key] for key in keys} for row in content["models"]] == close(NUMBERS["models"])
    for row in content["models"]:
        assert {name: list(each.values()) for name, each in row["metrics"].items()} == close(
            NUMBERS["metrics"][row["name"]]
        )
    assert content["comparisons"] == close(NUMBERS["comparisons"])
    assert content["baselines"] == close(NUMBERS["baselines"])
    assert content["contamination"]["models"] == ["second", "third", "first"]
    assert "second: 7.345 bits per byte (95 % interval 6.903 to 8.937)" in content["finding"][0]
    assert "second 7.426 (8), third 8.573 (8), first 10.278 (8)" in content["caveats"][1]


def test_the_first_by_id_are_scored_and_the_first_of_them_answered(board, evaluate, places):
    done, path = evaluate("second", "--max_examples", 5, "--max_generated", 2, "--batch_size", 2, folder="some")
    assert done.status == 0, done.err
    rows, whole = predictions(path), NUMBERS["answers"]["second"]
    assert [row["id"] for row in rows] == [row["id"] for row in whole[:5]]
    assert [row["prediction"] for row in rows] == [*(row["prediction"] for row in whole[:2]), None, None, None]
    every = {row["id"]: row["nll"] for row in predictions(places[2] / "runs/second")}
    assert [row["nll"] for row in rows] == pytest.approx([every[row["id"]] for row in rows], rel=1e-6)
    split = Results.read(path).splits["test"]
    assert (split.examples, split.generated) == (5, 2) and split.metrics["stop_rate"].value == 1.0
    done, path = evaluate("second", "--split", "validation", "--max_generated", 0, folder="validation")
    (row,) = predictions(path)
    assert (row["instruction"], row["split"]) == ("What is debt?", "validation")
    assert list(Results.read(path).splits) == ["validation"]


OTHER = {  # what results.json may hold of another evaluation, and how it is named when this one is asked for
    "hashes.weights": "0" * 64, "hashes.tokenizer": "0" * 64, "dataset.hash": "0" * 64, "template.hash": "0" * 64,
    "decoding.max_new_tokens": 8, "confidence.level": 0.9, "confidence.method": "bootstrap", "signatures.bleu": "b",
    "signatures.rouge": "r", "splits.test.examples": 12, "splits.test.generated": 3, "splits.test.left_out": ["a"],
    "decoding.do_sample": True,
}  # fmt: skip
NAMED = {"hashes.weights": "weights", "hashes.tokenizer": "tokenizer", "splits.test.left_out": "left out"}


@pytest.mark.parametrize("place", OTHER)
def test_results_of_another_evaluation_are_not_taken_for_these(board, evaluate, places, place):
    path = places[2] / "runs/second/eval/results.json"
    before = path.read_text(encoding="utf-8")
    content = json.loads(before)
    *folders, key = place.split(".")
    inner = content
    for folder in folders:
        inner = inner[folder]
    inner[key] = OTHER[place]
    try:
        path.write_text(json.dumps(content), encoding="utf-8")
        done, _ = evaluate("second")
        assert json.loads(path.read_text(encoding="utf-8")) == content
    finally:
        path.write_text(before, encoding="utf-8")
    name = NAMED.get(place, place.removeprefix("splits.test.").split(".")[0])
    assert done.status == 2 and f"results.json was made with {name} " in done.err, done.err
    assert "pass --overwrite to replace it" in done.err


def test_the_same_evaluation_is_not_done_again(board, evaluate, places):
    path = places[2] / "runs/second/eval/results.json"
    before = path.stat().st_mtime_ns
    done, _ = evaluate("second")
    assert done.status == 0 and "is evaluated; nothing to do" in done.out and path.stat().st_mtime_ns == before
    done, _ = evaluate("second", "--split", "validation")
    assert done.status == 2 and "split ['test'], now ['validation']" in done.err


def test_what_a_shorter_model_cannot_read_is_left_out_of_the_figures_and_of_what_is_known(evaluate, places):
    place = places[2]
    places[1]["short"] = save(place / "models/short", *MODELS["second"], positions=186)
    done, path = evaluate("short", "--skip_too_long", folder="short")
    assert done.status == 0, done.err
    split, rows = Results.read(path).splits["test"], predictions(path)
    every = {row["id"]: row for row in predictions(place / "runs/second")}
    long = {id for id, row in every.items() if len(row["prompt"].encode()) + max(row["tokens"], 9) > 186}
    assert (
        split.left_out == sorted(long) and 3 <= len(long) <= 6 and "left out as too long" in " ".join(done.out.split())
    )
    assert [row["id"] for row in rows] == [id for id in every if id not in long] and split.examples == len(rows)
    assert [row["nll"] for row in rows] == pytest.approx([every[row["id"]]["nll"] for row in rows], rel=1e-6)
    done, _ = evaluate("short", "--skip_too_long", folder="short")
    assert done.status == 0 and "is evaluated; nothing to do" in done.out


@pytest.mark.parametrize("name", ["", "results.json", "predictions.jsonl"])
def test_what_is_in_the_way_is_said_before_anything_is_done(evaluate, places, name):
    path = places[2] / f"way{name}" / "second" / "eval" / name
    path.parent.mkdir(parents=True)
    path.mkdir() if name else path.write_text("a file")
    done, _ = evaluate("second", folder=f"way{name}")
    assert done.status == 2 and "is in the way of what is to be written; move it away" in done.err
