"""Rows as the texts that a chat template makes of them, looked through: nothing in them may be lost or changed.

A template that is not made to be trained with is refused, with the place where it shows:

- What it asks with must be how the whole conversation goes on, and after that comes the answer as it is.
- An answer must end in one control token, the same in every turn.
- It must be the same tomorrow. Every text that people wrote must be in it.

A text that spells a control token stays text. transformers marks such a spelling with private characters, and writes
what is marked in tokens of text (`sanitize_control_tokens`); texts here carry these marks until they are tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finllm.errors import UserError, shortened
from finllm.text.prompts import Message, messages_of
from finllm.text.rendering import Job, Rendered, render

DAYS = ("2001-02-03T04:05:06", "2034-11-16T17:18:19")
ASKED: Message = {"role": "user", "content": "What is a bond?"}
ANSWERED: Message = {"role": "assistant", "content": "A loan."}
# The private characters by which transformers marks, in a rendered text, what people wrote and a control token spells
START, END = "\U000f0000", "\U000f0001"


def without_marks(prompt: str) -> str:
    """A prompt as people may read it."""
    return prompt.replace(START, "").replace(END, "")


@dataclass(frozen=True)
class Shape:
    """What a template writes around an answer: `lead` and `tail` are white space or nothing, `end` a control token."""

    lead: str
    tail: str
    end: str

    def around(self, answer: str) -> str:
        return f"{self.lead}{answer}{self.tail}{self.end}"


@dataclass(frozen=True)
class Texts:
    """A conversation: the whole, and the prompt of each answer that is learned or asked for; or why it cannot be."""

    whole: str
    prompts: list[str]
    spells: bool = False  # marks stand in the texts
    refused: str = ""


class Conversations:
    """A chat template, as text in and text out. `special` are the tokenizer's special tokens by name, `controls` the
    names of all control tokens, `eos` its own; `of` is what messages call the template.

    Raises `UserError` for one that no model can be trained with, with the place and the way out.
    """

    def __init__(self, source: str, special: dict[str, Any], controls: Sequence[str], eos: str, of: str):
        self.source, self.special, self.eos, self.of = source, special, eos, of
        self.controls = sorted(filter(None, controls), reverse=True)  # of two that begin alike the longer one first
        self.spelling = re.compile("|".join(map(re.escape, self.controls)) + f"|[{START}{END}]")
        self.shape = self._found_shape()

    def _found_shape(self) -> Shape:
        """What stands around an answer, found on one; a `UserError` where no answer could be learned from it."""
        jobs = [Job([ASKED], True, day) for day in DAYS] + [Job([ASKED, ANSWERED], False, day) for day in DAYS]
        found = render(self.source, self.special, jobs)
        for each in found:
            if each.error:
                raise self.unfit(f"does not render a question and its answer: {each.error}")
        asks, asks_later, whole, whole_later = (each.text for each in found)
        for one, other in ((asks, asks_later), (whole, whole_later)):
            if one != other:
                place = max(0, apart(one, other) - 8)
                raise self.unfit(
                    f"writes the date: {one[place:][:30]!r} on one day and {other[place:][:30]!r} on another, so a "
                    "model would not be asked as it was trained"
                )
        if not whole.startswith(asks):
            place = apart(asks, whole)
            raise self.unfit(
                f"asks otherwise than a conversation goes on: its prompt has {asks[place:][:40]!r} where the whole has "
                f"{whole[place:][:40]!r}"
            )
        lead, answer, rest = whole[len(asks) :].partition(ANSWERED["content"])
        if not answer:
            raise self.unfit(f"leaves the answer out: after its prompt comes {lead[:60]!r}")
        if lead.strip():
            raise self.unfit(
                f"writes {lead[-60:]!r} before an answer and does not ask with it (add_generation_prompt), so a model "
                "would have to write that first"
            )
        after = rest.lstrip()
        end = next((name for name in self.controls if after.startswith(name)), None)
        if end is None:
            raise self.unfit(
                f"ends an answer with {rest[:40]!r}, which is no control token of this tokenizer, so no model could be "
                f"stopped there (its EOS is {self.eos!r})"
            )
        return Shape(lead, rest[: len(rest) - len(after)], end)

    def unfit(self, what: str) -> UserError:
        return UserError(
            f"{self.of} {what}; copy the template into a file, mend it there, and pass that as --template FILE.jinja"
        )

    def texts(self, rows: Sequence[Mapping[str, Any]], last: bool = False, whole: bool = True) -> list[Texts]:
        """Each row as text, looked through: verbatim, and its prompts are how the whole goes on."""
        chats = [
            [*messages_of(row), *([{"role": "assistant", "content": row["output"]}] if whole else [])] for row in rows
        ]
        spells = [any(self.spelling.search(message["content"]) for message in chat) for chat in chats]
        marked = [[{**message, "content": self.marked(message["content"])} for message in chat] for chat in chats]
        plans: list[tuple[int, list[int]]] = []  # of each row: how many jobs stand before its own, and its answers
        jobs: list[Job] = []
        for chat, one, spelling in zip(chats, marked, spells, strict=True):
            answers = [place for place, message in enumerate(chat) if message["role"] == "assistant"]
            answers = answers if whole else [len(chat)]
            answers = answers[-1:] if last else answers
            plans.append((len(jobs), answers))
            for messages in (chat, one) if spelling else (chat,):
                jobs += [Job(messages[:place], True) for place in answers] + ([Job(messages, False)] if whole else [])
        texts = render(self.source, self.special, jobs)
        found = []
        for chat, one, spelling, (begin, answers) in zip(chats, marked, spells, plans, strict=True):
            count = len(answers) + whole
            own = self._looked_through(chat, answers, texts[begin : begin + count], whole)
            if spelling and not own.refused:
                own = self._with_marks(own, self._looked_through(one, answers, texts[begin + count :][:count], whole))
            found.append(own)
        return found

    def _looked_through(self, chat: list[Message], answers: list[int], texts: list[Rendered], whole: bool) -> Texts:
        for each in texts:
            if each.error:
                return Texts("", [], refused=f"it refuses the conversation: {each.error}")
        prompts = [each.text for each in texts[: len(answers)]]
        text = texts[-1].text
        return Texts(text, prompts, refused=next(self._problems(chat, answers, prompts, text, whole), ""))

    def _problems(
        self, chat: list[Message], answers: list[int], prompts: list[str], text: str, whole: bool
    ) -> Iterator[str]:
        place = 0
        for number, message in enumerate(chat, 1):
            at = text.find(message["content"], place)
            if at < 0:
                yield (
                    f"message {number} ({message['role']}) does not stand in what it renders: "
                    f"{shortened(message['content'])} is left out or changed"
                )
                return
            place = at + len(message["content"])
        for answer, prompt in zip(answers, prompts, strict=True) if whole else ():
            earlier = "" if answer == len(chat) - 1 else (
                "; it renders earlier answers otherwise than the last one (--loss_on last_turn learns the last alone)"
            )  # fmt: skip
            if not text.startswith(prompt):
                at = apart(prompt, text)
                yield (
                    f"message {answer + 1} is asked for with {prompt[at:][:40]!r} where the whole has "
                    f"{text[at:][:40]!r}{earlier}"
                )
                return
            expected, rest = self.shape.around(chat[answer]["content"]), text[len(prompt) :]
            if not rest.startswith(expected):
                at = apart(expected, rest)
                yield (
                    f"message {answer + 1}, an answer, has {rest[at:][:40]!r} where {expected[at:][:40]!r} was given"
                    f"{earlier}"
                )
                return

    def _with_marks(self, plain: Texts, marked: Texts) -> Texts:
        texts = [(plain.whole, marked.whole), *zip(plain.prompts, marked.prompts, strict=False)]
        if marked.refused or any(one != without_marks(other) for one, other in texts):
            return Texts(
                "", [], refused="a text in it spells a control token, and it makes something else of that text"
            )
        return Texts(marked.whole, marked.prompts, spells=True)

    def marked(self, text: str) -> str:
        from transformers.utils.chat_template_utils import mark_control_tokens

        return mark_control_tokens(text, self.spelling)


def apart(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The first place where two sequences differ."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
