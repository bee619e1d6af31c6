"""Right numbers from the data to the report, by the command line: models whose every answer is set (set_models.py)."""

import json

import pytest
from evaluated_runs import Page
from set_models import chain, save

from eval.results import Results, predictions
from finllm.data.prepare import prepare
from finllm.files import write_jsonl

MODELS = {"five": chain("\n$5."), "seven": chain("\n7%, so"), "silent": chain("\nNo."), "long": chain("\n$5 or")}
ASKED = {**dict.fromkeys(range(24), "$5"), **dict.fromkeys(range(24, 36), "7%")}  # of 36 of the 48 questions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The dataset dir `data`, all of it but a few rows in test; `models`; a place for runs."""
    place = tmp_path_factory.mktemp("numbers")
    rows = [
        {"instruction": f"Of $5 and ${n + 8}, say {n}.", "input": "", "output": f"So {ASKED.get(n, 'not')}.",
         "gold": ASKED.get(n, "")} for n in range(48)
    ]  # fmt: skip
    write_jsonl(place / "rows.jsonl", rows)
    prepare(place / "rows.jsonl", place / "data", number_column="gold", validation_fraction=0.02, test_fraction=0.9)
    for name, successors in MODELS.items():
        save(place / "models" / name, successors)
    return place


@pytest.fixture
def evaluated(folder, command):
    for name in MODELS:
        if not (folder / name / "eval/results.json").exists():
            done = command(
                "eval/run.py", "--model_name_or_path", folder / "models" / name, "--dataset_name", folder / "data",
                "--output_dir", folder / name, "--max_new_tokens", 12, "--batch_size", 48,
            )  # fmt: skip
            assert done.status == 0, done.err
    return folder


def test_results_count_right_numbers_with_intervals_and_floors(evaluated):
    rows = predictions(evaluated / "five")
    asked = [row for row in rows if row.get("number")]
    pounds = [row for row in asked if row["number"]["unit"] == "$"]
    assert 10 < len(pounds) < len(asked) < len(rows) and {row["prediction"] for row in rows} == {"$5."}
    assert all(row["number"] == {"value": "5", "unit": "$", "tolerance": "0.5"} for row in pounds)
    assert all(row["number_right"] == (row in pounds) and row["number_read"] == "5 $" for row in asked)
    assert all("number_right" not in row for row in rows if row not in asked)
    split = Results.read(evaluated / "five").splits["test"]
    right = split.metrics["number_right"]
    assert split.numbers == len(asked) and right.value == pytest.approx(len(pounds) / len(asked))
    assert 0 < right.low < right.value < right.high < 1
    assert split.metrics["no_number"].value == split.metrics["text_after_number"].value == 0
    # Every question holds $5 first, and most answers of training are $5.
    assert split.number_floors == pytest.approx(
        {"a number of the question": right.value, "the most frequent number": right.value}
    )
    silent, long = (Results.read(evaluated / name).splits["test"].metrics for name in ("silent", "long"))
    assert silent["no_number"].value == 1 and silent["number_right"].value == 0
    # Of n questions none: Wilson's upper end is z² / (n + z²), not 0.
    assert silent["number_right"].high == pytest.approx(3.8415 / (len(asked) + 3.8415), rel=1e-4)
    assert silent["no_number"].low == pytest.approx(len(asked) / (len(asked) + 3.8415), rel=1e-4)
    assert long["number_right"].value == right.value and long["text_after_number"].value == 1
    assert "number" in Results.read(evaluated / "five").signatures


def test_the_report_pairs_models_and_shows_what_no_thought_would_score(evaluated, command):
    done = command("eval/leaderboard.py", *(evaluated / name for name in MODELS), "--output_dir", evaluated / "board")
    assert done.status == 0, done.err
    content = json.loads((evaluated / "board/leaderboard.json").read_text("utf-8"))
    numbers = content["numbers"]
    shares = {row["name"]: row["number_right"]["value"] for row in numbers["rows"]}
    assert list(shares) == ["five", "long", "seven", "silent"] and shares["five"] + shares["seven"] == pytest.approx(1)
    found = {(each["a"], each["b"]): each for each in numbers["comparisons"]}
    assert len(found) == 6
    pair = next(each for key, each in found.items() if set(key) == {"five", "silent"})
    assert abs(pair["difference"]) == pytest.approx(shares["five"]) and pair["p_adjusted"] < 0.05
    assert (pair["low"] > 0) == (pair["a"] == "five")
    same = next(each for key, each in found.items() if set(key) == {"five", "long"})
    assert same["difference"] == 0 and same["p_adjusted"] == 1
    share = f"{100 * shares['five']:.0f} %"
    (said,) = [each for each in content["finding"] if each.startswith("The number is right")]
    assert f"right in {share} (" in said and "answers of five" in said and said in " ".join(done.out.split())
    assert f"a number of the question {share}" in said and " no test tells it from long" in said
    markdown = (evaluated / "board/leaderboard.md").read_text("utf-8")
    (line,) = [line for line in markdown.splitlines() if line.startswith("| silent | ") and "–100)" in line]
    assert line.split(" | ")[2] == "0 % (0–11)" and f"| the most frequent number |  | {share} |" in markdown
    page = Page(evaluated / "board/index.html")
    scores = {model["name"]: model["scores"]["number"] for model in page.data["models"]}
    rows = [row.get("number_right") for row in predictions(evaluated / "five")]
    assert scores["five"] == rows and scores["silent"] == [None if each is None else 0 for each in rows]
    assert "Is the number right?" in page.text and f"A number of the question without thought {share}" in page.words


def test_a_report_without_a_right_number_says_so_and_how_many_there_may_be(evaluated, command, tmp_path):
    done = command("eval/leaderboard.py", evaluated / "silent", "--output_dir", tmp_path)
    assert done.status == 0 and "No model reaches the number of any of its 32 answers that must reach one" in " ".join(
        done.out.split()
    )
    assert "(at most 11 % would, of all such questions)" in " ".join(done.out.split())


def test_results_made_before_numbers_were_read_are_not_taken_for_these(evaluated, command):
    path = evaluated / "five/eval/results.json"
    content = json.loads(before := path.read_text("utf-8"))
    del content["signatures"]["number"]
    path.write_text(json.dumps(content), "utf-8")
    try:
        done = command(
            "eval/run.py", "--model_name_or_path", evaluated / "models/five", "--dataset_name", evaluated / "data",
            "--output_dir", evaluated / "five", "--max_new_tokens", 12,
        )  # fmt: skip
    finally:
        path.write_text(before, "utf-8")
    assert done.status == 2 and "was made with signatures" in done.err and "--overwrite" in done.err
