"""Conversations: the turns of a row, in whatever form they are written, as a system text and turns by turns.

    [{"role": "user", "content": "Hi"}, …]    OpenAI's messages; content is text, or parts of which each is text
    [{"from": "human", "value": "Hi"}, …]     ShareGPT's conversations
    [["Hi", "Hello."], …]                     the `history` of Alpaca and LLaMA-Factory: questions and their answers
    the same as text of JSON or Python        in the cells of a CSV file

What was changed or cannot be learned from is counted under these names:

    joined_turns    turns of one role that follow each other become one, with an empty line between them
    open_end        turns of the user at the end, which nobody answers, are left out
    turns           the row is left out: the assistant speaks first, a turn is empty, or nobody answers
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "agent", "bot", "chatgpt", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
TOOLS = ("tool", "function", "function_call", "function_response", "observation", "tool_call", "tool_response",
         "ipython")  # fmt: skip
NO_TOOLS = "tool calls are not read; TRL's SFTTrainer trains on them"
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")  # what a model says before it answers
BETWEEN = "\n\n"  # turns and system texts that become one


class Turn(NamedTuple):
    """One turn of a conversation, as `Row.history` holds it."""

    role: str  # "user" or "assistant"
    content: str


class Unreadable(ValueError):
    """Why the turns of a row cannot be read."""


class Unfit(ValueError):
    """Why a conversation that can be read has nothing to learn from."""


class Conversation(NamedTuple):
    """A conversation in order. `turns` begin with the user, end with the assistant, and have one after the other."""

    system: str
    turns: tuple[Turn, ...]
    changes: tuple[str, ...]  # of the steps above


def turns_of(value: Any) -> list[Turn]:
    """The turns that a list of messages holds, in their order, system texts too. Raises `Unreadable`."""
    value = parsed(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise Unreadable(f"is {_named(value)}, not a list of turns")
    return [_turn(message, number) for number, message in enumerate(value, start=1)]


def history_of(value: Any) -> list[Turn]:
    """The turns that a `history` holds: pairs of a question and its answer, or messages. Raises `Unreadable`."""
    value = parsed(value)
    if value is None or value == "":
        return []
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise Unreadable(f"is {_named(value)}, not a list of pairs")
    if any(isinstance(each, dict) for each in value):
        return turns_of(value)
    turns = []
    for number, pair in enumerate(value, start=1):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise Unreadable(f"item {number} is {_named(pair)}, not a pair of a question and its answer")
        if not all(isinstance(text, str) for text in pair):
            raise Unreadable(f"item {number} holds {' and '.join(map(_named, pair))}, not two texts")
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return turns


def arranged(turns: Sequence[Turn], system: str = "") -> Conversation:
    """The turns as they can be learned; `system` is a system text that stands in a column of its own.

    Raises `Unreadable` for two system texts and `Unfit` where nothing is left to learn from.
    """
    texts, rest, changes = [], list(turns), []
    while rest and rest[0].role == "system":
        texts.append(rest.pop(0).content)
    own = BETWEEN.join(filter(None, map(str.strip, texts)))
    if own and system.strip() and own != system.strip():
        raise Unreadable("holds a system text, and the column of the system text holds another")
    if any(turn.role == "system" for turn in rest):
        raise Unfit("a system text stands after the first turn")
    if any(not turn.content.strip() for turn in rest):
        raise Unfit("a turn is empty")
    joined: list[Turn] = []
    for turn in rest:
        if joined and joined[-1].role == turn.role:
            joined[-1] = Turn(turn.role, joined[-1].content + BETWEEN + turn.content)
            changes.append("joined_turns")
        else:
            joined.append(turn)
    if joined and joined[-1].role == "user":
        joined.pop()
        changes.append("open_end")
    if not joined:
        raise Unfit("nobody answers")
    if joined[0].role == "assistant":
        raise Unfit("the assistant speaks first")
    return Conversation(own or system, tuple(joined), tuple(dict.fromkeys(changes)))


def parsed(value: Any) -> Any:
    """A list that a cell of a table holds as text, of JSON or as Python writes it; anything else as it is."""
    if not isinstance(value, str) or value.strip()[:1] != "[":
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def _turn(message: Any, number: int) -> Turn:
    if not isinstance(message, dict):
        raise Unreadable(f"turn {number} is {_named(message)}, not an object of role and content")
    role = message.get("role", message.get("from"))
    name = role.strip().lower() if isinstance(role, str) else ""
    if name in TOOLS or any(message.get(key) for key in ("tool_calls", "function_call")):
        raise Unreadable(f"turn {number} is a tool call: {NO_TOOLS}")
    if name not in ROLES:
        raise Unreadable(f"turn {number} has the role {role!r}; known are {', '.join(ROLES)}")
    for key in ("weight", "train", "training"):
        if key in message and message[key] is not None and not message[key]:
            raise Unreadable(f"turn {number} has {key} {message[key]!r}: single turns cannot be left out of the loss")
    if thought := next((key for key in THOUGHTS if message.get(key)), None):
        raise Unreadable(
            f"turn {number} has {thought} beside its content, which would be lost; put it into the content, as the "
            "template writes it, or take it out"
        )
    content = message["content"] if "content" in message else message.get("value")
    return Turn(ROLES[name], _content(content, number))


def _content(content: Any, number: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise Unreadable(f"turn {number} has {_named(content)} as its content, not text")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            what = f"a part of type {kind}" if isinstance(part, dict) else _named(part)
            raise Unreadable(f"turn {number} holds {what}; only texts are read, images and sounds are not")
        texts.append(text)
    return "\n".join(texts)


def _named(value: Any) -> str:
    return f"{type(value).__name__} ({str(value)[:40]})" if value is not None else "null"
