"""The rules of cleaning against slow ones that say the same in other words, on every short text of a few letters."""

import hashlib
import itertools
import re

import pytest

from finllm.data import clean
from finllm.data.clean import (
    Cleaning,
    Rejected,
    StepCount,
    digested,
    empty_placeholder,
    is_echo,
    keep_one_half,
    mend_question,
    no_answer,
    pieces_of,
    unquote_csv,
)
from finllm.data.conversations import Turn
from finllm.data.schema import Change, Row


def texts(letters, longest):
    return map("".join, itertools.chain.from_iterable(itertools.product(letters, repeat=n) for n in range(longest + 1)))


# Quotes inside are doubled, one at least stands between letters, and the last one closes the text or is cut off.
CLOSED = re.compile(r'"((?:"")*[^"]+(?:(?:"")+[^"]+)+(?:"")*)"')
CUT_OFF = re.compile(r'"((?:"")*[^"]+(?:(?:"")+[^"]+)*(?:"")+|(?:"")*[^"]+(?:(?:"")+[^"]+)+)')


def test_a_text_that_kept_its_quoting():
    changed = 0
    for text in texts('"a', 12):
        found = CLOSED.fullmatch(text) or CUT_OFF.fullmatch(text)
        expected = found[1].replace('""', '"') if found else text
        assert unquote_csv(text) == expected, text
        changed += expected != text
    assert changed > 100


@pytest.mark.parametrize("least", [1, 2])
def test_one_half_of_a_text_that_holds_the_same_words_twice(monkeypatch, least):
    monkeypatch.setattr(clean, "MIN_REPEATED_WORDS", least)
    cut = 0
    for text in texts("ab \n", 7):
        ends = [n for n in range(1, len(text)) if text[:n].split() == text[n:].split() and not text[n - 1].isspace()]
        expected = text[: ends[0]] if ends and len(text[: ends[0]].split()) >= least else text
        assert keep_one_half(text) == expected, text
        cut += expected != text
    assert cut > 3


def row(instruction="What is a fund?", input="", output="A pot of money.", **other):
    return Row(instruction, input, output, "a.jsonl", 1)._replace(**other)


TURNS = (Turn("user", "Hi?"), Turn("assistant", "Ja – 债"))


@pytest.mark.parametrize(
    ("each", "said"),
    [
        (row("Why?", "", "It – is."), "Why?\0\0It – is."), (row("Why?", "x", "y", split="test"), "Why?\0x\0y"),
        (row("Why?", "", "y", system="Be kind."), "Why?\0\0y\0Be kind."),
        (row("Why?", "", "y", history=TURNS), "Why?\0\0y\0\0user\0Hi?\0assistant\0Ja – 债"),
        (row("", "", "y", history=TURNS[:1], system="s"), "\0\0y\0s\0user\0Hi?"),
    ],
)  # fmt: skip
def test_what_a_row_says_is_hashed_in_pieces_of_any_size(monkeypatch, each, said):
    own = f"{each.split}\0" if each.split else ""
    expected = hashlib.blake2b((own + said).encode(), digest_size=16)
    for size in (1, 2, 3, 8, 1 << 20):
        monkeypatch.setattr(clean, "PIECE", size)
        assert digested(hashlib.sha256(), each).hexdigest() == hashlib.sha256(said.encode()).hexdigest()
        assert clean._hash_of(each) == int(expected.hexdigest(), 16)
        assert list(pieces_of("abcde")) == ["abcde"[n : n + size] for n in range(0, 5, size)]
    monkeypatch.undo()
    assert [len(piece) for piece in pieces_of("a" * (2**21 + 1))] == [2**20, 2**20, 1]
    assert [len(piece) for piece in pieces_of("a" * 2**20)] == [2**20]


def test_placeholders():
    for text in ("N/A", "n.a", "NA", "no input", "No-Input needed", "noinput_is_required", " <none>. ", "nan", "null!",
                 "no input provided", "No input given.", "no input is necessary"):  # fmt: skip
        assert empty_placeholder(text) == ""
    for text in ("", "Na", "na", "nab", "n/ab", "an/a", "no", "input", "no inputs", "nothing", "none of it", "x none"):
        assert empty_placeholder(text) == text


@pytest.mark.parametrize(
    ("output", "none"),
    [
        ("", True), (" \n", True), ("no output", True), ("<NoInput>", True), ("No-output is required!", True),
        ("no output, then", False), ("<nooutput", True), (" < no output> as a model", True), ("<nooutputs>", False),
        ("x <nooutput>", False), ("no", False), ("n/a", False), ("5. Input: <noinput>", True),
        ("Blue\nInput: <no output>", True), ("Blue Input: <noinput>", False), ("Inputs <noinput>", False),
    ],
)  # fmt: skip
def test_what_is_no_answer(output, none):
    assert no_answer(row(output=output)) is none


def test_an_echo_is_the_question_exactly():
    assert is_echo(row("a", "", "a")) is True and is_echo(row("a", "x", "a")) is True
    assert is_echo(row("a", "", "A")) is is_echo(row("", "", "")) is is_echo(row("a", "b", "b")) is False


def test_each_step_is_counted_once_a_row_and_what_it_did_is_told():
    """Steps are repeated until nothing changes, and each change is told; a row counts once for each step."""
    told = []
    cleaning = Cleaning(["echo"], lambda *each: told.append(each))
    quoted = ' "He said ""no"" to\x07 it." '
    rows = [row(output=quoted, input=" x "), row("a", "", "a"), row(output=" "), row(output="  "), row("a", "", "a ")]
    result = list(cleaning.clean(rows))
    assert result == [
        row(output='He said "no" to it.', input="x"), rows[1], Rejected(rows[2], "empty_output"),
        Rejected(rows[3], "empty_output"), Rejected(rows[4], "duplicates"),
    ]  # fmt: skip
    assert told == [(rows[0], [
        Change("strip", "input", " x ", "x"), Change("strip", "output", quoted, quoted.strip()),
        Change("csv_quotes", "output", quoted.strip(), 'He said "no" to\x07 it.'),
        Change("unicode", "output", 'He said "no" to\x07 it.', 'He said "no" to it.'),
    ])]  # fmt: skip
    assert cleaning.counts() == [
        StepCount("strip", True, 4, 0), StepCount("csv_quotes", True, 1, 0), StepCount("unicode", True, 1, 0),
        StepCount("repeated_halves", True, 0, 0), StepCount("input_placeholder", True, 0, 0),
        StepCount("empty_instruction", True, 0, 0), StepCount("empty_output", True, 0, 2),
        StepCount("echo", False, 0, 0), StepCount("duplicates", True, 0, 1),
    ]  # fmt: skip
    # Mending bares white space at an end, which is then taken off.
    (after,) = Cleaning(changed=lambda *each: told.append(each)).clean([row(output="\x07 x\x07 ")])
    assert after.output == "x"
    assert [(each.step, each.after) for each in told[1][1]] == [
        ("strip", "\x07 x\x07"),
        ("unicode", " x"),
        ("strip", "x"),
    ]


def test_what_a_user_asks_is_mended_field_by_field():
    turns = [{"role": "user", "content": " a ", "id": 1}, {"role": "assistant", "content": "b\x07"}]
    asked = {"instruction": " no input ", "input": " no input ", "system": " s ", "history": turns, "output": " o "}
    assert mend_question(asked) == {
        "instruction": "no input", "input": "", "system": "s", "output": " o ",
        "history": [{"role": "user", "content": "a", "id": 1}, {"role": "assistant", "content": "b"}],
    }  # fmt: skip
    nothing = {"instruction": "", "input": None, "system": None, "history": []}
    assert mend_question(nothing) == nothing
    twice = "one two three four five. " * 2
    assert mend_question({"instruction": twice}) == {"instruction": twice.strip()}
