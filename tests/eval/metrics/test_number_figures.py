"""What is said of an answer's number, whole, at both sides of each limit; and what no thought would score, by hand."""

import pytest

from eval.metrics.number import Wanted, as_fields, floors, looked_at, wanted_of

NOTHING = {"number_read": None, "number_right": False, "number_close": False, "number_right_bare": False,
           "no_number": False, "text_after_number": False}  # fmt: skip
RIGHT = {"number_right": True, "number_close": True, "number_right_bare": True}


@pytest.mark.parametrize(("answer", "reference", "wanted", "said"), [
    ("It is $5.", "It costs $5.", ("5", "$", "0.5"), {"number_read": "5 $", **RIGHT}),
    ("5", "It costs $5.", ("5", "$", "0.5"), {"number_read": "5", **RIGHT}),
    ("-1,234.50 %", "-1234.5 %", ("-1234.5", "%", "0"), {"number_read": "-1234.50 %", **RIGHT}),
    ("$1.5 million", "$1,500,000", ("1500000", "$", "0"), {"number_read": "1500000 $", **RIGHT}),
    ("It is 5 years", "5 years", ("5", "years", "0.5"), {"number_read": "5 years", **RIGHT}),
    ("$5", "5", ("5", "any", "0"), {"number_read": "5 $", **RIGHT}),
    ("5 %", "5", ("5", "any", "0"), {"number_read": "5 %", **RIGHT}),
    ("5", "5", ("5", "any", "0"), {"number_read": "5", **RIGHT}),
    ("$5–7", "$6", ("6", "$", "5"), {}),  # a number that cannot be read, and is one
    ("5–7", "6 %", ("6", "%", "5"), {}),
    ("No idea.", "$5", ("5", "$", "0.5"), {"no_number": True}),
    ("Who knows?", "That is what it costs.", ("5", "$", "0.5"), {"no_number": True}),
    # without the percent sign: as it is read, or as a fraction, within the tolerance alone
    ("9.4", "9.4 %", ("9.4", "%", "0.05"), {"number_read": "9.4", "number_right_bare": True}),
    ("0.094", "9.4 %", ("9.4", "%", "0.05"), {"number_read": "0.094", "number_right_bare": True}),
    ("0.0945", "9.4 %", ("9.4", "%", "0.05"), {"number_read": "0.0945", "number_right_bare": True}),
    ("0.0946", "9.4 %", ("9.4", "%", "0.05"), {"number_read": "0.0946"}),
    ("9.46", "9.4 %", ("9.4", "%", "0.05"), {"number_read": "9.46"}),
    ("940", "9.4 %", ("9.4", "%", "0.05"), {"number_read": "940"}),
    ("$9.4", "9.4 %", ("9.4", "%", "0.05"), {"number_read": "9.4 $"}),
    ("0.094", "$9.4", ("9.4", "$", "0.05"), {"number_read": "0.094"}),
    # words after the number
    ("After a long thought of mine it is $5", "$5", ("5", "$", "0"), {"number_read": "5 $", **RIGHT}),
    ("$5 in all", "$5", ("5", "$", "0"), {"number_read": "5 $", **RIGHT, "text_after_number": True}),
    ("$5 in all", "So $5 it is", ("5", "$", "0"), {"number_read": "5 $", **RIGHT}),
    ("$5 in all now", "So $5 it is", ("5", "$", "0"), {"number_read": "5 $", **RIGHT, "text_after_number": True}),
    ("$5", "That is what it costs.", ("5", "$", "0"), {"number_read": "5 $", **RIGHT}),
    ("$5 now", "That is what it costs.", ("5", "$", "0"), {"number_read": "5 $", **RIGHT, "text_after_number": True}),
    ("No idea of it", "$5", ("5", "$", "0"), {"no_number": True}),
])  # fmt: skip
def test_all_that_is_said_of_an_answer(answer, reference, wanted, said):
    assert looked_at(answer, reference, Wanted(*wanted)) == NOTHING | said


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize(("value", "tolerance", "answer", "right", "close"), [
    ("100", "0", "100", True, True), ("100", "0", "100.01", False, True), ("100", "0", "101", False, True),
    ("100", "0", "101.01", False, False), ("100", "0", "99", False, True), ("100", "0", "98.99", False, False),
    ("100", "0.5", "100.5", True, True), ("100", "0.5", "99.5", True, True), ("100", "0.5", "100.51", False, True),
    ("100", "2", "102", True, True), ("100", "2", "102.01", False, False), ("0", "0.5", "0.5", True, True),
    ("0.3", "0.5", "0", True, True), ("0", "0", "0.01", False, False), ("1000", "5", "1010", False, True),
])  # fmt: skip
def test_right_is_within_the_tolerance_and_close_within_one_percent_or_that(
    sign, value, tolerance, answer, right, close
):
    wanted = Wanted(sign + value, "$", tolerance)
    found = looked_at(f"It is {sign}${answer}", "…", wanted)
    assert (found["number_right"], found["number_close"], found["number_right_bare"]) == (right, close, right)
    if float(answer) and float(value):  # of another sign nothing is right, however large the tolerance
        other = looked_at(f"It is {'' if sign else '-'}${answer}", "…", Wanted(sign + value, "$", "1000"))
        assert not other["number_right"] and not other["number_close"]


def asked(question, value, unit="$", prediction="?", tolerance="0.5"):
    number = {"value": value, "unit": unit, "tolerance": tolerance}
    return {"instruction": question, "input": "", "prediction": prediction, "number": number}


@pytest.mark.parametrize(("question", "value", "unit", "is_held"), [
    ("From $5 to $9 and then $7?", "5", "$", True),  # the first
    ("From $5 to $9 and then $7?", "9", "$", True),  # the largest
    ("From $5 to $9 and then $7?", "7", "$", True),  # the last
    ("From $5 to $9, $6 and then $7?", "6", "$", False),
    ("Of $5 in 20 % and 3 years?", "5", "$", True), ("Of $5 in 20 % and 3 years?", "20", "%", True),
    ("Of $5 in 20 % and 3 years?", "3", "years", True), ("Of 5 in 20 %?", "5", "$", True),
    ("Of 20 % and 5?", "5", "$", True), ("Of 20 % and 5?", "5", "%", False), ("Of 5 and $8?", "5", "$", False),
    ("Of 20 %?", "20", "$", False), ("From $5–7 to $9?", "9", "$", True), ("From $5–7?", "5", "$", False),
    ("How much?", "5", "$", False), ("Of 3 years?", "3", "$", False), ("Of $5 in 20 %?", "5", "any", True),
    ("Of 20 % and $5?", "5", "any", True),
])  # fmt: skip
def test_a_number_of_the_question_is_its_first_last_or_largest_one_in_the_unit_if_there_is_any(
    question, value, unit, is_held
):
    rows = [asked(question, value, unit, tolerance="0")]
    assert floors(rows, None) == floors(rows, []) == {"a number of the question": float(is_held)}


def test_one_of_the_three_is_copied_everywhere_whichever_is_right_most_often():
    """The first is right of rows 0 and 1, the last of row 2, the largest of rows 1 and 3 and 4."""
    rows = [
        asked("$2, $9 and $4?", "2"), asked("$8, $5 and $4?", "8"), asked("$2, $9 and $4?", "4"),
        asked("$2, $9 and $4?", "9"), asked("$2, $7 and $4?", "7"),
    ]  # fmt: skip
    assert floors(rows, None) == {"a number of the question": 3 / 5}
    assert floors(rows[:3], None) == {"a number of the question": 2 / 3}
    assert floors(rows[2:], None) == {"a number of the question": 2 / 3}
    assert floors([*rows, rows[4] | {"prediction": None}, {"prediction": "x"}], None) == floors(rows, None)
    assert floors([{"prediction": "x"}, rows[0]], None) == floors([rows[0]], None) == {"a number of the question": 1}
    assert floors([{"prediction": "x", "number": None}, rows[0] | {"prediction": None}], [{"output": "= $2"}]) == {}


@pytest.mark.parametrize(("training", "share"), [
    (["= $12", "= $7"], 1 / 3), (["= $7", "= $12"], 2 / 3), (["= $7", "= $12", "= $12"], 1 / 3),
    (["= $12", "= $12", "= $7"], 1 / 3), (["Save.", "Do.", "= $7", "Ask."], 2 / 3), (["= 7"], 2 / 3), (["= 7 %"], 0),
    (["= €7"], 0), (["= $7.00"], 2 / 3), (["= $7.40"], 2 / 3), (["= $8"], 0),
])  # fmt: skip
def test_the_most_frequent_number_of_the_training_answers(training, share):
    """Of three answers, the first and the last want $7, and the second $12; of two as frequent the first is taken."""
    rows = [asked("How much?", "7"), asked("How much?", "12"), asked("How much?", "7")]
    found = floors(rows, [{"output": text} for text in training])
    assert found == {"a number of the question": 0, "the most frequent number": share}


def test_a_number_whose_unit_nobody_knows_is_given_without_one():
    given = [{"output": "…", "value": "7", "unit": "any", "tolerance": "0"}]
    rows = [asked("How much?", "7"), asked("How much?", "7", "%"), asked("How much?", "7", "any"), asked("?", "8")]
    assert floors(rows, given)["the most frequent number"] == 2 / 4
    assert floors(rows, [{"output": "No."}]) == {"a number of the question": 0}


def test_the_field_of_a_prediction_is_what_is_wanted():
    given = {"output": "It costs $5.", "value": "6", "unit": "€", "tolerance": "0.1"}
    assert as_fields(given) == {"number": {"value": "6", "unit": "€", "tolerance": "0.1"}}
    assert as_fields({"output": "It costs $5.00."}) == {"number": {"value": "5.00", "unit": "$", "tolerance": "0.005"}}
    assert as_fields({"output": "Save more."}) == as_fields(given | {"value": ""}) == {}
    assert wanted_of({"output": "Save more."}) is None
