"""The schema: columns renamed and checked, every problem named at once."""

import pytest

from finllm.data.rows import RawRow
from finllm.data.schema import COLUMNS, check_rows
from finllm.errors import UserError

GOOD = {"instruction": "What is a share?", "input": "", "output": "A part of a company."}


def check(*fields, columns=COLUMNS):
    raw = (RawRow(row, "a.jsonl", number) for number, row in enumerate(fields, 1))
    return list(check_rows(raw, columns, "a.jsonl"))


def test_extra_columns_go_and_places_stay():
    (row,) = check({**GOOD, "topic": "shares", "score": 3})
    assert row == ("What is a share?", "", "A part of a company.", "a.jsonl", 1, "", ())


def test_input_may_be_absent_or_null():
    without = {key: value for key, value in GOOD.items() if key != "input"}
    assert [row.input for row in check(without, {**GOOD, "input": None}, {**GOOD, "input": "x"})] == ["", "", "x"]


def test_columns_are_renamed():
    columns = {"instruction": "question", "input": "context", "output": "answer"}
    (row,) = check({"question": "q", "context": "c", "answer": "a", "output": "no"}, columns=columns)
    assert row[:3] == ("q", "c", "a")


def test_missing_columns_are_named_with_what_was_found():
    with pytest.raises(UserError) as raised:
        check({"question": "q", "outputs": "a"})
    message = str(raised.value)
    assert message.startswith("2 problems in a.jsonl, which has the columns question, outputs: no column 'instruction'")
    assert "no column 'output' (did you mean 'outputs'?)" in message and "--output_column" in message


def test_renamed_input_column_must_be_there():
    with pytest.raises(UserError, match=r"no column 'contxt' \(did you mean 'context'\?\)"):
        check({**GOOD, "context": "c"}, columns={**COLUMNS, "input": "contxt"})


def test_two_fields_from_one_column():
    with pytest.raises(UserError, match="two fields would come from one column"):
        check(GOOD, columns={**COLUMNS, "input": "output"})


def test_all_problems_at_once_with_file_line_and_field():
    with pytest.raises(UserError) as raised:
        check(GOOD, {**GOOD, "output": None}, {"instruction": 7, "input": [], "output": "a"}, {"instruction": "i"})
    assert str(raised.value) == (
        "4 problems in a.jsonl: a.jsonl, line 2: output is null or missing; a.jsonl, line 3: instruction is int (7), "
        "not text; a.jsonl, line 3: input is list ([]), not text; a.jsonl, line 4: output is null or missing"
    )


def test_twenty_problems_are_listed_and_all_are_counted():
    with pytest.raises(UserError) as raised:
        check(GOOD, *[{**GOOD, "output": None}] * 27)
    message = str(raised.value)
    assert message.startswith("27 problems") and message.endswith("line 21: output is null or missing; and 7 more")


def test_half_a_surrogate_pair_is_refused_and_a_whole_character_is_not():
    assert check({**GOOD, "output": "\U0001f4c8"})
    with pytest.raises(UserError, match=r"output holds half a surrogate pair \('\\ud83d'\)"):
        check({**GOOD, "output": "up \ud83d"})
