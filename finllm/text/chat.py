"""A chat template on a tokenizer: what the model reads, what it learns, and the proof that these are the same tokens.

    text      <|im_start|>user⏎Why?<|im_end|>⏎<|im_start|>assistant⏎ │ Because. │ <|im_end|> │ ⏎<|im_start|>user …
              prompt ─────────────────────────────────────────────── │ answer ─ │ end ────── │ prompt of the next turn
    labels    -100 …                                            -100 │ ids …    │ id         │ -100 …

The ids of a row are those of `apply_chat_template` for the whole conversation: BOS, what stands between turns and what
follows the last one included. The ids of a prompt must be those that the whole begins with, and an answer ends in one
control token, which ends it for `generate` too, besides the tokenizer's own EOS. finllm/text/conversations.py says what
else a template is held to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finllm.errors import MANY, UserError, raise_problems
from finllm.text.conversations import ANSWERED, ASKED, END, START, Conversations, apart
from finllm.text.prompts import messages_of
from finllm.text.rendering import Job, render
from finllm.text.tokens import ALL_TURNS, IGNORED, LAST_TURN, control_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKED = re.compile(f"{START}.*?{END}", re.DOTALL)  # a control token's name in a text
PROVED = 16  # rows that are held against transformers' own apply_chat_template


def hash_of(source: str) -> str:
    """What tells one chat template from another: the SHA-256 of its text."""
    return hashlib.sha256(source.encode()).hexdigest()


class Chat:
    """A chat template, a Jinja source, bound to a tokenizer. `of` is what messages call it.

    Raises `UserError` for a template that cannot be trained with, with the place and the way out.
    """

    otherwise, takes_history = "take the data without these rows, or another template", True

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str, id: str, of: str):
        self.tokenizer, self.jinja, self.id, self.of = tokenizer, source, id, of
        self.hash = hash_of(source)
        # A token that the template writes controls too, whatever it is flagged as; but for runs of blanks.
        written = {id for token, id in tokenizer.get_added_vocab().items() if token.strip() and token in source}
        self._control = control_ids(tokenizer) | written
        names = tokenizer.convert_ids_to_tokens(list(self._control))
        self._conversations = Conversations(source, tokenizer.special_tokens_map, names, str(tokenizer.eos_token), of)
        self.lead = self._conversations.shape.lead
        end = tokenizer.convert_tokens_to_ids(self._conversations.shape.end)
        self.stops = list(dict.fromkeys([tokenizer.eos_token_id, end]))
        self._end = end
        # A word that the vocabulary does not have ends nothing. Where its token is one that ends answers, there must be
        # no such word.
        unknown = {tokenizer.unk_token_id}
        self._endings, self._unknown_ends = self._control - (unknown - set(self.stops)), unknown <= set(self.stops)

    @property
    def ids(self) -> list[int]:
        """The control tokens that it writes; a model's embedding must have a row for each."""
        made = self._conversations
        (found,) = render(made.source, made.special, [Job([ASKED, ANSWERED], False)])
        written = self.tokenizer(found.text, add_special_tokens=False).input_ids
        return sorted({*self.stops, *(id for id in written if id in self._control)})

    def prompts(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """What the model reads before it writes each row's last answer. A row that it refuses is a `UserError`."""
        found = self._conversations.texts(rows, whole=False)
        named = zip((row.get("id", number) for number, row in enumerate(rows, 1)), found, strict=True)
        problems = [f"{name}: {texts.refused}" for name, texts in named if texts.refused]
        raise_problems(problems, f"what is asked with {self.of}", MANY)
        return [prompt for texts in found for prompt in texts.prompts]

    def encode_rows(
        self,
        rows: Sequence[Mapping[str, Any]],
        max_length: int | None = None,
        prompt_loss: bool = False,
        loss_on: str = ALL_TURNS,
    ) -> list[dict[str, Any]]:
        """As finllm.text.tokens.encode, of each row; labels on the answers that `loss_on` says and on their ends.

        `refused` is empty, or why this template cannot write the row.
        """
        texts = self._conversations.texts(rows, last=loss_on == LAST_TURN)
        plain = [text for row in texts if not (row.refused or row.spells) for text in (row.whole, *row.prompts)]
        ids = iter(self.tokenizer(plain, add_special_tokens=False).input_ids if plain else [])
        found = []
        for row in texts:
            try:
                if row.refused:
                    found.append({**_nothing(), "refused": row.refused})
                    continue
                together = (row.whole, *row.prompts)
                own = [self._encoded(text) if row.spells else self._known(text, next(ids)) for text in together]
                spans = [self._span(own[0], prompt) for prompt in own[1:]]
                found.append(_cut(own[0], spans, max_length, prompt_loss) | {"spells": row.spells})
            except _Unwritable as error:
                found.append({**_nothing(), "unwritable": str(error)})
            except UserError as error:
                found.append({**_nothing(), "refused": str(error)})
        return found

    def encode_prompt(self, prompt: str) -> list[int]:
        """The ids of what `prompts` gave."""
        return self._encoded(prompt)

    def encode_pair(self, prompt: str, response: str) -> tuple[list[int], list[int]]:
        """The ids of what `prompts` gave, and of a response to it with its end, as they are trained on."""
        asked = self._encoded(prompt)
        whole = self._encoded(prompt + self._conversations.shape.around(self._conversations.marked(response)))
        begin, _ = self._span(whole, asked)
        return asked, whole[begin:]

    def _encoded(self, text: str) -> list[int]:
        from transformers.utils.chat_template_utils import encode_marked_chat

        if START not in text:
            return self._known(text, self.tokenizer(text, add_special_tokens=False).input_ids)
        try:
            ids = encode_marked_chat(self.tokenizer, text)
        except ValueError as error:  # a vocabulary that has no other way to write it
            raise _Unwritable(
                f"its text holds a control token's name, which this tokenizer can only write as that token ({error})"
            ) from None
        return self._known(text, ids)

    def _known(self, text: str, ids: list[int]) -> list[int]:
        """The ids, if no word of the text has a token that ends answers for want of one of its own."""
        unknown = self.tokenizer.unk_token
        if self._unknown_ends and ids.count(self.tokenizer.unk_token_id) > MARKED.sub("", text).count(unknown):
            raise _Unwritable(f"its text holds what this tokenizer can only write as {unknown!r}, which ends an answer")
        return ids

    def _span(self, whole: list[int], asked: list[int]) -> tuple[int, int]:
        """Begin and end of an answer and its end token in the whole; the prompt's ids must be what comes before it."""
        begin = len(asked)
        if whole[:begin] != asked:
            at = apart(asked, whole)
            raise UserError(
                f"prompt and answer share a token: the prompt alone has {self._shown(asked[at:])}, the whole "
                f"{self._shown(whole[at:])}"
            )
        end = next((place for place in range(begin, len(whole)) if whole[place] in self._endings), None)
        if end is None or whole[end] != self._end:
            raise UserError(
                f"the answer does not end in {self._conversations.shape.end!r}, but in {self._shown(whole[-3:])}"
            )
        return begin, end + 1

    def _shown(self, ids: list[int]) -> str:
        return ", ".join(repr(token) for token in self.tokenizer.convert_ids_to_tokens(ids[:3])) or "nothing"

    def answer(self, text: str) -> str:
        """What a model wrote, without the white space that the template puts around an answer."""
        return text.removeprefix(self.lead).removesuffix(self._conversations.shape.tail)

    def prove(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Hold the first rows against transformers' own apply_chat_template; what was found, or a `UserError`.

        They were rendered in bounds before, so it is safe to let the template run in this process.
        """
        found = zip(rows, self.encode_rows(rows[:PROVED]), strict=False)
        some = [(row, each) for row, each in found if not (each["refused"] or each["unwritable"] or each["spells"])]
        asked = self.prompts([row for row, _ in some])
        for (row, encoded), prompt in zip(some, asked, strict=True):
            for messages, asks, ours in (
                ([*messages_of(row), {"role": "assistant", "content": row["output"]}], False, encoded["input_ids"]),
                (messages_of(row), True, self._encoded(prompt)),
            ):
                theirs = self.tokenizer.apply_chat_template(
                    messages, chat_template=self.jinja, add_generation_prompt=asks
                ).input_ids
                if ours != theirs:
                    at = apart(ours, theirs)
                    raise self._conversations.unfit(
                        f"is rendered otherwise by transformers than here: row {row.get('id', '')}, token {at}: "
                        f"{self._shown(theirs[at:])}, here {self._shown(ours[at:])}"
                    )
        return (
            f"the tokens of prompts and answers are those of apply_chat_template ({len(some)} conversations), and an "
            f"answer ends in {self._conversations.shape.end!r}"
        )


class _Unwritable(UserError):
    """A text that this tokenizer cannot write: the row is dropped by name, as under any template."""


def _cut(ids: list[int], spans: list[tuple[int, int]], max_length: int | None, prompt_loss: bool) -> dict[str, Any]:
    labels = list(ids) if prompt_loss else [IGNORED] * len(ids)
    for begin, end in spans:
        labels[begin:end] = ids[begin:end]
    first, learned = spans[0][0], sum(end - begin for begin, end in spans)
    limit = len(ids) if max_length is None else max(first, max_length)
    kept = sum(max(0, min(end, limit) - begin) for begin, end in spans)
    return {
        "input_ids": ids[:limit],
        "labels": labels[:limit],
        "lost": learned - kept,
        "kept": kept,
        "spells": False,
        "unwritable": "",
        "refused": "",
    }


def _nothing() -> dict[str, Any]:
    return _cut([], [(0, 0)], None, False)
