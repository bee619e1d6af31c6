"""The schema: forms recognised by their columns, rows checked, every problem named; what says something is not lost."""

import pytest

from finllm.data.forms import Asked
from finllm.data.parts import Part, RawRow
from finllm.data.schema import Schema
from finllm.errors import UserError, raise_problems

GOOD = {"instruction": "What is a share?", "input": "", "output": "A part of a company."}


def check(*fields, **asked):
    """The rows, what is said of the bad ones, and the schema."""
    bad, left = [], []
    schema = Schema(Asked(**asked), bad.append, lambda *each: left.append(each))
    raw = [RawRow(row, "a.jsonl", number) for number, row in enumerate(fields, 1)]
    rows = list(schema.rows(Part("a.jsonl", "a.jsonl", "lines"), raw))
    raise_problems(schema.problems(), "a.jsonl")
    schema.left = left
    return rows, [f"{row.place}: {row.reason}" for row in bad], schema


def test_extra_columns_go_and_places_stay():
    (row,), bad, schema = check({**GOOD, "topic": "shares", "score": 3, "empty": None})
    assert row[:7] == ("What is a share?", "", "A part of a company.", "a.jsonl", 1, "", ()) and not bad
    assert schema.columns == {"topic": 1, "score": 1, "empty": 0}
    assert schema.files == [{"file": "a.jsonl", "rows": 1, "split": None, "form": "Alpaca",
                             "columns": {name: name for name in GOOD}}]  # fmt: skip


def test_input_may_be_absent_or_null():
    without = {key: value for key, value in GOOD.items() if key != "input"}
    rows, _, _ = check(without, {**GOOD, "input": None}, {**GOOD, "input": "x"})
    assert [row.input for row in rows] == ["", "", "x"]


def test_columns_are_renamed():
    columns = {"instruction": "question", "input": "context", "output": "answer"}
    ((row,), _, _) = check({"question": "q", "context": "c", "answer": "a", "output": "no"}, columns=columns)
    assert row[:3] == ("q", "c", "a")


def test_one_named_column_leaves_the_others_to_be_recognised():
    (row,), _, _ = check({"headline": "Rates up", "context": "c", "answer": "a"}, columns={"instruction": "headline"})
    assert row[:3] == ("Rates up", "c", "a")


def test_missing_columns_are_named_with_what_was_found():
    with pytest.raises(UserError) as raised:
        check({"questions": "q", "outputs": "a"})
    message = str(raised.value)
    assert "which has the columns questions, outputs: no column 'instruction'" in message
    assert "no column 'output' (did you mean 'outputs'?)" in message and "--output_column" in message
    assert "--messages_column" in message and "sharegpt" in message


def test_renamed_columns_must_be_there():
    with pytest.raises(UserError, match=r"no column 'contxt' \(did you mean 'context'\?\)"):
        check({**GOOD, "context": "c"}, columns={"input": "contxt"})
    with pytest.raises(UserError, match=r"no column 'firm' \(did you mean 'firms'\?\) that --group_column names"):
        check({**GOOD, "firms": "c"}, group_column="firm")
    with pytest.raises(UserError, match=r"no column 'topics' \(did you mean 'topic'\?\) that --leave_out names"):
        check({**GOOD, "topic": "c"}, leave_out=frozenset({"topics"}))


def test_two_fields_from_one_column():
    with pytest.raises(UserError, match="two fields would come from one column"):
        check(GOOD, columns={"input": "output", "output": "output"})


def test_all_problems_with_file_line_and_field():
    rows, bad, _ = check(
        GOOD, {**GOOD, "output": None}, {"instruction": {}, "input": [1], "output": "a"}, {"output": ""}
    )
    assert len(rows) == 1
    assert bad == [
        "a.jsonl, line 2: output is null or missing",
        "a.jsonl, line 3: instruction is dict ({}), not text; input is list ([1]), not text",
        "a.jsonl, line 4: instruction is null or missing",
    ]


def test_numbers_and_booleans_are_text_and_nan_is_nothing():
    rows, bad, _ = check(*({**GOOD, "output": value} for value in (7, 0.5, True, False, float("nan"))))
    assert [row.output for row in rows] == ["7", "0.5", "true", "false", ""] and not bad


def test_half_a_surrogate_pair_is_refused_and_a_whole_character_is_not():
    assert check({**GOOD, "output": "\U0001f4c8"})[0]
    _, bad, _ = check(
        {**GOOD, "output": "up \ud83d"}, {"instruction": "q", "output": "a", "history": [["\udc00", "b"]]}
    )
    assert "output holds half a surrogate pair ('\\ud83d')" in bad[0]
    assert "history holds half a surrogate pair" in bad[1]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text": "Once."}, "this is a plain text column, which has no question and no answer; TRL's SFTTrainer"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "these are preferences (chosen and rejected answers)"),
        (
            {"prompt": "q", "completion": "a", "label": True},
            "preferences (the column label says which answers are good)",
        ),
        ({"image": "a.png", "caption": "A cat"}, "these are images or sounds (image), which are not read"),
        ({**GOOD, "tools": "[{}]"}, "'tools' holds something that would be left out: tool calls are not read"),
        ({**GOOD, "images": ["a.png"]}, "'images' holds something that would be left out: images and sounds are not"),
        ({"messages": [], "history": [["q", "a"]]}, "'history' holds something that would be left out"),
        ({**GOOD, "response": "a"}, "fit 2 forms, Alpaca (instruction, output) and Dolly (instruction, response)"),
        ({**GOOD, "messages": []}, "--form alpaca or --form messages"),
        ({"prompt": "q", "question": "q", "response": "a"}, "of the columns prompt and question each may hold"),
    ],
)
def test_what_is_no_form_or_two_is_refused_by_its_name(fields, said):
    with pytest.raises(UserError) as raised:
        check(fields)
    assert said in str(raised.value)


def test_a_flag_chooses_and_a_flag_leaves_out():
    both = {**GOOD, "response": "Dolly's."}
    assert check(both, form="dolly")[0][0].output == "Dolly's."
    assert check(both, leave_out=frozenset({"response"}))[0][0].output == "A part of a company."
    assert check({**GOOD, "tools": "[{}]"}, leave_out=frozenset({"tools"}))[0]
    assert check({**GOOD, "tools": "[]", "images": None})[0]  # they hold nothing


def test_a_column_that_comes_late_is_seen():
    with pytest.raises(UserError, match="fit 2 forms"):
        check(*[GOOD] * 150, {**GOOD, "messages": [{"role": "user", "content": "x"}]})
    rows, _, _ = check(*[GOOD] * 150, {**GOOD, "history": [["Hi", "Hello."]]})
    assert rows[-1].history == (("user", "Hi"), ("assistant", "Hello."))


def messages(*turns):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return {"messages": [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]}


def test_turns_are_joined_cut_or_left_out_and_counted():
    rows, bad, schema = check(
        messages("s Be brief.", "u One?", "u Two?", "a 1", "u And?", "a 2", "u Bye"),
        messages("u One?"),
        messages("a Hello", "u One?", "a 1"),
        messages("u One?", "s Late", "a 1"),
        messages("u One?", "a "),
        messages("u One?", "a 1"),
    )
    assert not bad and [row.number for row in rows] == [1, 6]
    first = rows[0]
    assert (first.system, first.instruction, first.output) == ("Be brief.", "And?", "2")
    assert first.history == (("user", "One?\n\nTwo?"), ("assistant", "1"))
    assert [change.step for change in first.changes] == ["joined_turns", "open_end"]
    assert schema.turns == {"joined_turns": 1, "open_end": 1, "turns": 4}
    assert [reason for *_, reason in schema.left] == [
        "turns: nobody answers", "turns: the assistant speaks first",
        "turns: a system text stands after the first turn",
        "turns: a turn is empty",
    ]  # fmt: skip
    assert rows[1][:7] == ("One?", "", "1", "a.jsonl", 6, "", ())


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"role": "tool", "content": "3"}, "messages turn 2 is a tool call: tool calls are not read"),
        ({"role": "assistant", "content": None, "tool_calls": [{}]}, "turn 2 is a tool call"),
        ({"from": "function_call", "value": "{}"}, "turn 2 is a tool call"),
        ({"role": "narrator", "content": "x"}, "turn 2 has the role 'narrator'; known are user, human, assistant"),
        ({"role": "assistant", "content": [{"type": "image_url", "image_url": {}}]}, "a part of type image_url; only"),
        ({"role": "assistant", "content": 7}, "turn 2 has int (7) as its content, not text"),
        ({"role": "assistant", "content": "x", "weight": 0}, "turn 2 has weight 0"),
        ("Hello", "turn 2 is str (Hello), not an object of role and content"),
    ],
)
def test_turns_that_cannot_be_read_are_bad_rows(turn, said):
    rows, bad, _ = check({"messages": [{"role": "user", "content": "q"}, turn]}, messages("u q", "a a"))
    assert len(rows) == len(bad) == 1 and said in bad[0]
