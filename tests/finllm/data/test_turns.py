"""Conversations in every way that they are written: whole turns, and whole refusals."""

import json

import pytest

from finllm.data.conversations import (
    ROLES,
    TOOLS,
    Conversation,
    Turn,
    Unfit,
    Unreadable,
    arranged,
    history_of,
    parsed,
    turns_of,
)

USER, ANSWER = Turn("user", "q"), Turn("assistant", "a")
NO_TOOLS = "tool calls are not read; TRL's SFTTrainer trains on them"


def refusal(read, value, error=Unreadable):
    with pytest.raises(error) as raised:
        read(value)
    assert type(raised.value) is error
    return str(raised.value)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("", ""), (None, None), (3, 3), ("a", "a"), ("{}", "{}"), ([1], [1]), (" a [1]", " a [1]"),
        ("[]", []), (" \n[1, null]", [1, None]), ("['a', None, True]", ["a", None, True]),
        ('[("a", "b")]', [("a", "b")]),
        ("[a]", "[a]"), ("[1", "[1"), ("[" * 100_000, "[" * 100_000), ('["a"]', ["a"]),
    ],
)  # fmt: skip
def test_a_list_in_a_cell_is_json_or_python(value, read):
    assert parsed(value) == read


def test_turns_in_order():
    messages = [{"role": " System ", "content": "s"}, {"from": "HUMAN", "value": "q"}, {"role": "gpt", "value": "a"}]
    read = [Turn("system", "s"), USER, ANSWER]
    assert turns_of(messages) == turns_of(tuple(messages)) == turns_of(json.dumps(messages)) == read
    assert turns_of(repr(messages)) == read and turns_of([]) == turns_of("[]") == []
    assert turns_of([{"role": "user", "from": "gpt", "content": None, "value": "x"}]) == [Turn("user", "")]
    assert turns_of([{"role": "user"}]) == [Turn("user", "")]
    assert turns_of([{"role": "user", "content": ["a", {"text": "b"}, {"type": "input_text", "text": "c"},
                                                  {"type": "output_text", "text": "d"}, {"text": ""}]}]) == [
        Turn("user", "a\nb\nc\nd\n")
    ]  # fmt: skip
    kept = {"weight": 1, "train": True, "training": None, "reasoning": "", "thinking": None, "tool_calls": []}
    assert turns_of([{"role": "user", "content": "q", **kept}]) == [USER]
    assert {role: turns_of([{"role": role, "content": "x"}])[0].role for role in ROLES} == {
        "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "agent": "assistant",
        "bot": "assistant", "chatgpt": "assistant", "model": "assistant", "system": "system", "developer": "system",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "is null, not a list of turns"), ("text", "is str (text), not a list of turns"),
        ({"role": "user"}, "is dict ({'role': 'user'}), not a list of turns"), (7, "is int (7), not a list of turns"),
        ([{"role": "user", "content": "q"}, "a"], "turn 2 is str (a), not an object of role and content"),
        ([None], "turn 1 is null, not an object of role and content"),
        ([{"content": "q"}], f"turn 1 has the role None; known are {', '.join(ROLES)}"),
        ([{"role": 3, "content": "q"}], f"turn 1 has the role 3; known are {', '.join(ROLES)}"),
        ([{"role": "users", "content": "q"}], f"turn 1 has the role 'users'; known are {', '.join(ROLES)}"),
        *(([{"role": role, "content": "q"}], f"turn 1 is a tool call: {NO_TOOLS}") for role in (*TOOLS, " Tool ")),
        ([{"role": "gpt", "tool_calls": [1]}], f"turn 1 is a tool call: {NO_TOOLS}"),
        ([{"role": "x", "function_call": {"a": 1}}], f"turn 1 is a tool call: {NO_TOOLS}"),
        *(([{"role": "gpt", "content": "a", key: value}],
           f"turn 1 has {key} {value!r}: single turns cannot be left out of the loss")
          for key, value in (("weight", 0), ("train", False), ("training", 0.0))),
        *(([{"role": "gpt", "content": "a", key: "hm"}], f"turn 1 has {key} beside its content, which would be lost; "
           "put it into the content, as the template writes it, or take it out")
          for key in ("reasoning_content", "reasoning", "thinking", "thought")),
        ([{"role": "user", "content": 7}], "turn 1 has int (7) as its content, not text"),
        ([{"role": "user", "content": {"text": "x"}}], "turn 1 has dict ({'text': 'x'}) as its content, not text"),
        ([{"role": "user", "content": [{"type": "image", "text": "x"}]}],
         "turn 1 holds a part of type image; only texts are read, images and sounds are not"),
        ([{"role": "user", "content": ["a", {"type": "text"}]}],
         "turn 1 holds a part of type text; only texts are read, images and sounds are not"),
        ([{"role": "user", "content": [3]}], "turn 1 holds int (3); only texts are read, images and sounds are not"),
        ([{"role": "user", "content": [{}]}], "turn 1 holds a part of type text; only texts are read, images and "
         "sounds are not"),
        ("x" * 50, f"is str ({'x' * 40}), not a list of turns"),
    ],
)  # fmt: skip
def test_what_are_no_turns(value, said):
    assert refusal(turns_of, value) == said


def test_the_names_of_tool_calls():
    assert set(TOOLS) == {
        "tool", "function", "function_call", "function_response", "observation", "tool_call", "tool_response",
        "ipython",
    }  # fmt: skip


def test_a_history_of_pairs_or_of_messages():
    assert history_of(None) == history_of("") == history_of([]) == history_of("[]") == history_of(()) == []
    pairs = [["q", "a"], ("", "b")]
    assert history_of(pairs) == history_of(repr(pairs)) == [USER, ANSWER, Turn("user", ""), Turn("assistant", "b")]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert history_of(messages) == history_of(json.dumps(messages)) == [USER, ANSWER]
    for value, said in (
        ("text", "is str (text), not a list of pairs"), ({}, "is dict ({}), not a list of pairs"),
        (0, "is int (0), not a list of pairs"), (False, "is bool (False), not a list of pairs"),
        ([["q", "a"], "ab"], "item 2 is str (ab), not a pair of a question and its answer"),
        ([["q"]], "item 1 is list (['q']), not a pair of a question and its answer"),
        ([3], "item 1 is int (3), not a pair of a question and its answer"),
        ([["q", "a", "b"]], "item 1 is list (['q', 'a', 'b']), not a pair of a question and its answer"),
        ([["q", "a"], ["q", None]], "item 2 holds str (q) and null, not two texts"),
        ([[1, "a"]], "item 1 holds int (1) and str (a), not two texts"),
        ([["q", "a"], messages[0]], "turn 1 is list (['q', 'a']), not an object of role and content"),
    ):  # fmt: skip
        assert refusal(history_of, value) == said


def said_by(marks):
    """ "s1 u2 a3" as the system's "1", the user's "2" and the assistant's "3"."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [Turn(roles[mark[0]], mark[1:].replace("+", "\n\n").replace("_", " ")) for mark in marks.split()]


@pytest.mark.parametrize(
    ("turns", "system", "own", "left", "changes"),
    [
        ("u1 a2", "", "", "u1 a2", ()), ("u1 a2", " S ", " S ", "u1 a2", ()), ("s1 u2 a3", "", "1", "u2 a3", ()),
        ("s_1_ s s2 u2 a3", "", "1+2", "u2 a3", ()), ("s1 u2 a3", " 1 ", "1", "u2 a3", ()),
        ("s_ u2 a3", "S", "S", "u2 a3", ()), ("s1 u2 a3", "  ", "1", "u2 a3", ()),
        ("u1 u_2 u3 a4 a5 u6 a7", "", "", "u1+_2+3 a4+5 u6 a7", ("joined_turns",)),
        ("u1 a2 u3", "", "", "u1 a2", ("open_end",)),
        ("u1 a2 a3 u4 u5", "", "", "u1 a2+3", ("joined_turns", "open_end")),
        ("u1 a2 u4 u5", "", "", "u1 a2", ("joined_turns", "open_end")),
    ],
)  # fmt: skip
def test_turns_as_they_can_be_learned(turns, system, own, left, changes):
    given = said_by(turns)
    assert arranged(given, system) == Conversation(own.replace("+", "\n\n"), tuple(said_by(left)), changes)
    assert given == said_by(turns)


@pytest.mark.parametrize(
    ("turns", "system", "error", "said"),
    [
        ("", "", Unfit, "nobody answers"), ("s1", "", Unfit, "nobody answers"), ("u1 u2", "", Unfit, "nobody answers"),
        ("a1", "", Unfit, "the assistant speaks first"), ("s1 a1 u2 a3", "", Unfit, "the assistant speaks first"),
        ("u1 s2 a3", "", Unfit, "a system text stands after the first turn"),
        ("s0 u1 a3 s2", "", Unfit, "a system text stands after the first turn"),
        ("u1 a_", "", Unfit, "a turn is empty"), ("u a1", "", Unfit, "a turn is empty"),
        ("u1 a2 u", "", Unfit, "a turn is empty"),
        ("s1 u2 a3", "2", Unreadable, "holds a system text, and the column of the system text holds another"),
        ("s1 s2 u2 a3", "1", Unreadable, "holds a system text, and the column of the system text holds another"),
    ],
)  # fmt: skip
def test_turns_that_nothing_can_be_learned_from(turns, system, error, said):
    assert refusal(lambda value: arranged(value, system), said_by(turns), error) == said
