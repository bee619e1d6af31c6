"""Which template a model is asked in: `alpaca`, the base model's own `chat` template, or a Jinja file.

A template is bound to a tokenizer. It has an `id`, and a `hash` by which runs, results and caches are told apart. What
a model reads and what it learns comes from the one object, in training, evaluation and generation alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from finllm.bounded import read_text
from finllm.errors import MANY, UserError, did_you_mean, raise_problems
from finllm.text.chat import Chat
from finllm.text.prompts import (
    CHAT,
    ROLES_TAKE,
    TEMPLATE_HASH,
    TEMPLATE_ID,
    alpaca_as_jinja,
    build_prompt,
    refused_by_alpaca,
)
from finllm.text.rendering import MOST_SOURCE
from finllm.text.tokens import ALL_TURNS, control_ids, encode, encode_prompt, encode_response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Template(Protocol):
    """What asks a model. A row is what a dataset dir holds: see finllm/text/prompts.py."""

    id: str
    hash: str  # SHA-256 of its text
    jinja: str | None  # as the tokenizer's chat template, for other programs; None where that cannot be written
    stops: list[int]  # ids that end an answer
    ids: list[int]  # of the control tokens that it writes
    otherwise: str  # what takes the rows that it refuses
    takes_history: bool
    lead: str  # white space that it writes before an answer
    tokenizer: PreTrainedTokenizerBase

    def prompts(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """What the model reads before it writes each row's last answer. A row that it cannot ask is a `UserError`."""

    def encode_prompt(self, prompt: str) -> list[int]:
        """The ids of what `prompts` gave."""

    def encode_pair(self, prompt: str, response: str) -> tuple[list[int], list[int]]:
        """The ids of what `prompts` gave, and of a response with its end, exactly as they are trained on."""

    def encode_rows(
        self, rows: Sequence[Mapping[str, Any]], max_length: int | None, prompt_loss: bool, loss_on: str
    ) -> list[dict[str, Any]]:
        """Each row in tokens, as finllm.text.tokens.encode says, and `refused`: why it cannot be asked, or empty."""

    def answer(self, text: str) -> str:
        """What a model wrote, without the white space that the template puts around an answer."""

    def prove(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Hold it against transformers' apply_chat_template on the first rows, and say what was found."""


class Alpaca:
    """Single questions with an instruction and an input; see finllm/text/prompts.py.

    Without a tokenizer, as the baselines use it, it only writes prompts.
    """

    id, hash, otherwise, takes_history = TEMPLATE_ID, TEMPLATE_HASH, ROLES_TAKE, False

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None = None):
        self.tokenizer, self.lead = tokenizer, ""
        self.stops = self.ids = [] if tokenizer is None else [tokenizer.eos_token_id]
        self._jinja: str | None = None

    def prompts(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        reasons = {row.get("id", number): refused_by_alpaca(row) for number, row in enumerate(rows, 1)}
        problems = [f"{id}: {reason}" for id, reason in reasons.items() if reason]
        raise_problems(problems, "what is asked with template alpaca", MANY, ROLES_TAKE)
        return [build_prompt(row["instruction"], row.get("input") or "") for row in rows]

    def encode_prompt(self, prompt: str) -> list[int]:
        return encode_prompt(self.tokenizer, prompt)

    def encode_pair(self, prompt: str, response: str) -> tuple[list[int], list[int]]:
        response_ids = encode_response(self.tokenizer, response)
        return encode_prompt(self.tokenizer, prompt), response_ids

    def encode_rows(
        self,
        rows: Sequence[Mapping[str, Any]],
        max_length: int | None = None,
        prompt_loss: bool = False,
        loss_on: str = ALL_TURNS,
    ) -> list[dict[str, Any]]:
        """`loss_on` says nothing of rows with one answer."""
        return [encode(self.tokenizer, row, max_length, prompt_loss) for row in rows]

    def answer(self, text: str) -> str:
        return text

    @property
    def jinja(self) -> str | None:
        """A chat template that gives the tokens that are trained on; None where this tokenizer allows none."""
        if self._jinja is None and self.tokenizer is not None:
            self._jinja = next((source for source in self._candidates() if self._same(source, TRIED)), "")
        return self._jinja or None

    def _candidates(self) -> list[str]:
        """With and without the blank that some tokenizers put before a text that stands alone."""
        control = control_ids(self.tokenizer)
        ids = list(itertools.takewhile(control.__contains__, encode_prompt(self.tokenizer, "a")))
        begin = "".join(map(str, self.tokenizer.convert_ids_to_tokens(ids)))
        return [alpaca_as_jinja(begin, prompt, response) for prompt in ("", " ") for response in ("", " ")]

    def _same(self, source: str, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether transformers asks and answers by `source` in the very tokens that are trained on."""
        for row in rows:
            asked = {"role": "user", "content": row["instruction"], "input": row.get("input") or ""}
            answered = {"role": "assistant", "content": row["output"]}
            (prompt,) = self.prompts([row])
            own, response = self.encode_pair(prompt, row["output"])
            for messages, asks, ids in (([asked], True, own), ([asked, answered], False, own + response)):
                theirs = self.tokenizer.apply_chat_template(messages, chat_template=source, add_generation_prompt=asks)
                if theirs.input_ids != ids:
                    return False
        return True

    def prove(self, rows: Sequence[Mapping[str, Any]]) -> str:
        some = [row for row, found in zip(rows, self.encode_rows(rows[:PROVED]), strict=False)
                if not (found["spells"] or found["unwritable"] or found["refused"])]  # fmt: skip
        if self.jinja is not None and not self._same(self.jinja, some):
            self._jinja = ""
        if self.jinja is None:
            return "no chat template gives this tokenizer the tokens of alpaca, so none is saved with the model"
        return f"the chat template that is saved gives the tokens of alpaca ({len(some)} rows)"


PROVED = 16  # rows
TRIED = [
    {"instruction": "What is a bond?", "input": "", "output": "A loan."},
    {"instruction": "Add {{ 1 }}.", "input": "{% 2 %} and\n3", "output": "$3.00"},
]


def template_of(name: str, tokenizer: PreTrainedTokenizerBase, of: str) -> Template:
    """The template called `name` on a tokenizer; `of` is what a message calls the tokenizer's model.

    `name` is alpaca, chat or a path. A base model without a chat template, a file that is none and a template that
    cannot be trained with are a `UserError`.
    """
    if name == TEMPLATE_ID:
        return Alpaca(tokenizer)
    if name == CHAT:
        return Chat(tokenizer, _own_source(tokenizer, of), CHAT, f"the chat template of {of}")
    if not Path(name).is_file():
        raise UserError(
            f"template is {name!r}{did_you_mean(name, (TEMPLATE_ID, CHAT))}, which is neither alpaca nor chat, and "
            "there is no such file; give alpaca, chat or the path of a Jinja file"
        )
    return Chat(tokenizer, read_text(name, MOST_SOURCE), Path(name).name, f"the template {name}")


def _own_source(tokenizer: PreTrainedTokenizerBase, of: str) -> str:
    """The chat template that came with a tokenizer; of several by name the one called default."""
    held = tokenizer.chat_template
    if isinstance(held, dict):
        if "default" not in held:
            raise UserError(
                f"{of} has several chat templates ({', '.join(sorted(held))}) and none called default; copy the one "
                "you want into a file, and pass that as --template FILE.jinja"
            )
        held = held["default"]
    if not held:
        raise UserError(
            f"{of} has no chat template, so --template chat has nothing to ask it with; take --template alpaca, a "
            "Jinja file (--template FILE), or a model that was made for conversations"
        )
    return held
