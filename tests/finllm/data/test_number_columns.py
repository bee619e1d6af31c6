"""The number that an answer must reach, from the source's columns into the dataset dir."""

import json

import pytest

from finllm.data.dataset_dir import DatasetDir
from finllm.data.split import SPLITS

FIELDS = ("value", "unit", "tolerance")


def rows_of(folder):
    return {row["instruction"]: row for split in SPLITS for row in DatasetDir(folder).rows(split)}


def prepared(tmp_path, write, finllm_prepare, rows, *flags):
    numbered = [{"instruction": f"What is {n}?", **row} for n, row in enumerate(rows)]
    status, out, err = finllm_prepare(write(tmp_path / "a.jsonl", numbered), "--output_dir", tmp_path / "data", *flags)
    assert status == 0, err
    held = rows_of(tmp_path / "data")
    return [held[row["instruction"]] for row in numbered], out


CELLS = [  # the cell, the answer, and the number that is asked for
    ("£29,898.27", "So £29,898.27.", ("29898.27", "£", "0.005")),
    (29898.2743811, "So £29,898.27.", ("29898.27", "£", "0.005")),  # the answer says the unit, and how it was rounded
    (0.0943817, "It is 9.4 %.", ("9.4", "%", "0.05")),
    ("9.4 %", "It is 9.4 %.", ("9.4", "%", "0.05")),
    (12, "A dozen.", ("12", "any", "0.5")),
    (-1.5, "It fell.", ("-1.5", "any", "0.05")),
    (0.123456, "It rose.", ("0.123456", "any", "0.0000123456")),
    ("$5m", "Five.", ("5000000", "$", "500000")),
    ("25 bps", "So 25 basis points.", ("0.25", "%", "0.005")),
    (None, "No number.", ("", "", "")),
    ("", "No number either.", ("", "", "")),
]


def test_one_column_is_read_with_what_the_answer_knows_of_it(tmp_path, write, finllm_prepare):
    rows = [{"answer": answer, "gold": cell} for cell, answer, _ in CELLS]
    held, out = prepared(tmp_path, write, finllm_prepare, rows, "--instruction_column", "instruction",
                         "--output_column", "answer", "--number_column", "gold")  # fmt: skip
    assert [tuple(row[field] for field in FIELDS) for row in held] == [asked for _, _, asked in CELLS]
    assert "with the number that an answer must reach (output from 'answer', number from 'gold')" in out
    assert "columns left out" not in out


def test_three_columns_are_read_as_they_are_and_all_rows_have_them_or_none(tmp_path, write, finllm_prepare):
    asked = {"value": "1.50", "unit": "$", "tolerance": "0"}
    rows = [{"output": "Yes."}] * 5 + [{"output": "So $1.50.", **asked}] * 5
    held, _ = prepared(tmp_path, write, finllm_prepare, rows)
    assert [tuple(row) for row in held] == [("id", "question_id", "instruction", "input", "output", *FIELDS)] * 10
    assert [tuple(row[field] for field in FIELDS) for row in held] == [("", "", "")] * 5 + [tuple(asked.values())] * 5
    plain, _ = prepared(tmp_path, write, finllm_prepare, [{"output": "Yes."}] * 9, "--overwrite")
    assert [tuple(row) for row in plain] == [("id", "question_id", "instruction", "input", "output")] * 9


def test_numbers_change_neither_ids_nor_splits_nor_texts(tmp_path, write, finllm_prepare):
    rows = [{"output": f"So ${n}.", "value": n, "unit": "$", "tolerance": 0} for n in range(40)]
    with_numbers, _ = prepared(tmp_path, write, finllm_prepare, rows)
    where = {row["id"]: split for split in SPLITS for row in DatasetDir(tmp_path / "data").rows(split)}
    held, _ = prepared(
        tmp_path, write, finllm_prepare, rows, "--leave_out", "value", "unit", "tolerance", "--overwrite"
    )
    assert held == [{key: value for key, value in row.items() if key not in FIELDS} for row in with_numbers]
    assert where == {row["id"]: split for split in SPLITS for row in DatasetDir(tmp_path / "data").rows(split)}


def test_rows_with_turns_have_both(tmp_path, write, finllm_prepare):
    rows = [{"output": "So $5.", "history": [["Hi", "Hello."]] if n == 7 else [], "gold": "$5"} for n in range(9)]
    held, _ = prepared(tmp_path, write, finllm_prepare, rows, "--number_column", "gold")
    assert {tuple(row)[5:] for row in held} == {("system", "history", *FIELDS)}
    assert [len(row["history"]) for row in held] == [0] * 7 + [2, 0] and {row["value"] for row in held} == {"5"}
    assert set(DatasetDir(tmp_path / "data").split("train").column_names) >= {"history", "value"}


@pytest.mark.parametrize(("row", "said"), [
    ({"gold": "5 or 6"}, "number (column gold) is '5 or 6', not one number with its unit"),
    ({"gold": "1.234,50"}, "not one number with its unit"), ({"gold": "about five"}, "not one number with its unit"),
    ({"value": "5 m", "unit": "$", "tolerance": "0"}, "value (column value) is '5 m', not a number in plain digits"),
    ({"value": "nan", "unit": "$", "tolerance": "0"}, "value (column value) is 'nan', not a number"),
    ({"value": "5", "unit": "$", "tolerance": "-1"}, "tolerance (column tolerance) is '-1', not a number of 0 or more"),
    ({"value": "5", "unit": "bananas", "tolerance": ""}, "unit (column unit) is 'bananas', not %, a currency"),
])  # fmt: skip
def test_a_number_that_cannot_be_read_makes_a_bad_row(tmp_path, write, finllm_prepare, row, said):
    rows = [{"instruction": f"What is {n}?", "output": "Five.", **row} for n in range(9)]
    flags = ("--number_column", "gold") if "gold" in row else ()
    source = write(tmp_path / "a.jsonl", rows)
    status, _, err = finllm_prepare(source, "--output_dir", tmp_path / "data", *flags)
    assert status == 2 and "9 bad rows" in err and said in err and "--skip_bad_rows" in err, err
    assert json.loads((tmp_path / "data.bad_rows.jsonl").read_text("utf-8").splitlines()[0])["row"] == rows[0]


def test_a_column_that_is_not_there_is_named(tmp_path, write, make_rows, finllm_prepare):
    source = write(tmp_path / "a.jsonl", make_rows(9))
    status, _, err = finllm_prepare(source, "--output_dir", tmp_path / "data", "--number_column", "outptu")
    assert status == 2 and "no column 'outptu' (did you mean 'output'?) that --number_column names" in err
