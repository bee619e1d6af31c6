"""Cleaning where little decides: entities beside tags, questions of blanks alone, and steps that nobody knows."""

import pytest

from finllm.data.clean import Cleaning, Rejected, check_steps, mend_unicode
from finllm.data.schema import Row
from finllm.errors import UserError


def test_an_entity_beside_a_tag_is_meant():
    assert mend_unicode("R&amp;D and M&amp;A") == "R&D and M&A"
    for text in ("<b>R&amp;D</b>", "a < b, R&amp;D", "<R&amp;D"):
        assert mend_unicode(text) == text


def test_a_question_of_blanks_is_none_whatever_is_skipped():
    row = Row(" \n", "", "Yes.", "a.jsonl", 1)
    for skip in ((), ("strip",), ("strip", "unicode", "csv_quotes")):
        assert list(Cleaning(skip).clean([row])) == [Rejected(row, "empty_instruction")]
    assert list(Cleaning(("strip", "empty_instruction")).clean([row])) == [row]


def test_every_step_that_nobody_knows_is_named():
    known = (
        "strip, csv_quotes, unicode, repeated_halves, input_placeholder, empty_instruction, empty_output, echo, "
        "duplicates"
    )
    with pytest.raises(UserError) as raised:
        check_steps(["strip", "echos"])
    assert str(raised.value) == (
        f"1 problem in skip_cleaning: unknown step 'echos' (did you mean 'echo'?); known are {known}"
    )
    with pytest.raises(UserError, match=r"^2 problems in skip_cleaning: unknown step 'one'; .*; unknown step 'two'; "):
        check_steps(["one", "two"])
