"""Splits that a source has itself, groups, and sources of few questions."""

import itertools
import json
import zipfile

import pytest

from finllm.data.dataset_dir import DatasetDir
from finllm.data.split import SPLITS


def rejected(folder):
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text("utf-8").splitlines()]


def numbers(folder):
    """The number in each question of each split."""
    return {split: [int(row["instruction"].split()[-1].rstrip("?")) for row in DatasetDir(folder).rows(split)]
            for split in SPLITS}  # fmt: skip


@pytest.fixture
def source(tmp_path, make_rows, write):
    """A folder of train.jsonl with 150 questions and test.jsonl with 50, five of which stand in both."""
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine/train.jsonl", make_rows(150))
    write(tmp_path / "mine/test.jsonl", make_rows(50, start=145))
    return tmp_path / "mine"


def test_own_splits_stay_and_what_is_missing_is_cut_from_train(source, tmp_path, finllm_prepare):
    data = tmp_path / "data"
    status, out, err = finllm_prepare(source, "--output_dir", data, "--test_fraction", 0, "--validation_fraction", 0.1)
    assert status == 0, err
    held = numbers(data)
    assert held["test"] == list(range(145, 195))
    assert sorted(held["train"] + held["validation"]) == list(range(145)) and 5 < len(held["validation"]) < 30
    assert "test.jsonl: 50 rows, the test split" in out and "train.jsonl: 150 rows, the train split" in out
    assert "5 questions (5 rows) stand in train and test, left out of train:" in out and "fund number 145?" in out
    assert {row["reason"] for row in rejected(data)} == {"shared_question: it stands in test too"}
    assert DatasetDir(data).manifest["shared_questions"]["train and test"]["questions"] == 5


def test_flags_keep_shared_questions_and_ignore_own_splits(source, tmp_path, finllm_prepare):
    _, out, _ = finllm_prepare(source, "--output_dir", tmp_path / "kept", "--keep_shared_questions")
    assert "stand in train and test, kept" in out and "0 dropped, 200 kept" in out
    status, out, _ = finllm_prepare(source, "--output_dir", tmp_path / "anew", "--ignore_own_splits")
    held = numbers(tmp_path / "anew")
    assert status == 0 and len(held["test"]) < 30 and not set(held["test"]) & set(held["train"])
    assert "the test split" not in out


@pytest.mark.parametrize(
    "name", ["validation", "valid", "dev", "val", "eval", "finqa_dev", "val-00000-of-00001", "dev/all"]
)
def test_names_of_a_validation_split(name, tmp_path, make_rows, write, finllm_prepare):
    place = tmp_path / f"mine/{name}.jsonl"
    place.parent.mkdir(parents=True)
    write(place, make_rows(9))
    write(tmp_path / "mine/my_train.jsonl", make_rows(150, start=100))
    status, _, err = finllm_prepare(tmp_path / "mine", "--output_dir", tmp_path / "data")
    assert status == 0, err
    held = numbers(tmp_path / "data")
    assert held["validation"] == list(range(9)) and 0 < len(held["test"]) < 30


def test_splits_in_a_zip_and_in_an_object(tmp_path, make_rows, finllm_prepare):
    splits = {"train": make_rows(30), "validation": make_rows(4, 50), "test": make_rows(5, 28)}
    (tmp_path / "a.json").write_text(json.dumps(splits))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, rows in splits.items():
            archive.writestr(f"data/{name}.jsonl", "\n".join(map(json.dumps, rows)))
    for name in ("a.json", "a.zip"):
        status, _, err = finllm_prepare(tmp_path / name, "--output_dir", tmp_path / f"data_{name}")
        assert status == 0, err
        assert numbers(tmp_path / f"data_{name}") == {"train": list(range(28)), "validation": [50, 51, 52, 53],
                                                      "test": [28, 29, 30, 31, 32]}  # fmt: skip


def test_a_question_in_validation_and_test_leaves_validation(tmp_path, make_rows, finllm_prepare):
    splits = {"train": make_rows(5), "validation": make_rows(5, 10), "test": make_rows(5, 14)}
    (tmp_path / "a.json").write_text(json.dumps(splits))
    _, out, _ = finllm_prepare(tmp_path / "a.json", "--output_dir", tmp_path / "data")
    assert "stand in validation and test, left out of validation" in out
    assert numbers(tmp_path / "data")["validation"] == [10, 11, 12, 13]


def test_what_cannot_be_split_says_so(tmp_path, make_rows, write, finllm_prepare):
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder / "test.jsonl", make_rows(9))
    status, _, err = finllm_prepare(folder, "--output_dir", tmp_path / "data")
    assert status == 2 and "has test and no other rows to train on" in err and "--ignore_own_splits" in err
    write(folder / "train_test.jsonl", make_rows(9))
    status, _, err = finllm_prepare(folder, "--output_dir", tmp_path / "data")
    assert status == 2 and "names test and train; rename it" in err
    write(tmp_path / "rows.jsonl", make_rows(9))
    status, _, err = finllm_prepare(tmp_path / "rows.jsonl", "--output_dir", tmp_path / "data", "--test_fraction", 0)
    assert status == 2 and "0 is for sources with a test split of their own" in err


@pytest.mark.parametrize("count", [3, 4, 7, 10])
def test_few_questions_give_each_split_one(count, tmp_path, make_rows, write, finllm_prepare):
    write(tmp_path / "few.jsonl", make_rows(count))
    status, out, err = finllm_prepare(tmp_path / "few.jsonl", "--output_dir", tmp_path / "data")
    assert status == 0, err
    held = numbers(tmp_path / "data")
    assert all(held.values()) and sorted(itertools.chain(*held.values())) == list(range(count))
    used = DatasetDir(tmp_path / "data").manifest.get("fractions_used")
    assert ("few questions: so that each split has one, test_fraction is" in out) == (used is not None)
    assert used or count == 10  # whose questions fall so


def test_groups_stay_together_and_so_do_questions(tmp_path, make_rows, write, finllm_prepare):
    rows = [{**row, "firm": f"Firm {n // 5}", "output": f"A{n}"} for n, row in enumerate(make_rows(200))]
    rows += [
        {**rows[0], "firm": "Firm 39", "output": "Asked again of another firm"},
        {**rows[1], "firm": None, "output": "x"},
    ]
    write(tmp_path / "a.jsonl", rows)
    flags = ("--group_column", "firm", "--test_fraction", 0.3, "--validation_fraction", 0.2)
    status, _, err = finllm_prepare(tmp_path / "a.jsonl", "--output_dir", tmp_path / "data", *flags)
    assert status == 0, err
    where = {number: split for split, held in numbers(tmp_path / "data").items() for number in held}
    assert all(len({where[n] for n in range(first, first + 5)}) == 1 for first in range(0, 200, 5))
    assert where[0] == where[195] and len(set(where.values())) == 3  # firms 0 and 39 share a question
    status, _, err = finllm_prepare(tmp_path / "a.jsonl", "--output_dir", tmp_path / "no", "--group_column", "frim")
    assert status == 2 and "no column 'frim' (did you mean 'firm'?)" in err


def test_a_dataset_dir_below_the_source_is_left_alone(source, tmp_path, finllm_prepare):
    for _ in range(2):
        status, out, err = finllm_prepare(source, "--output_dir", source / "data")
        assert status == 0, err
    assert "left as it is" in out and "200 rows read" in out
    (source / "more").mkdir()
    status, out, _ = finllm_prepare(source, "--output_dir", tmp_path / "else")
    assert "data: a dataset dir, made by finllm prepare" in out and "200 rows read" in out
