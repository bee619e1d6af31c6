"""The texts that templates are made of, and a row as a conversation; finllm/text/templates.py chooses a template.

`alpaca`, the default, is the template of Stanford Alpaca (Taori et al. 2023), with and without an input. A prompt ends
in a line feed and a response never begins with white space (cleaning strips it), so for byte-level BPE the end of the
prompt is a token boundary: the tokens of the prompt and those of the response are the tokens of the whole.

A row is a conversation: `system`, a text or none; `history`, earlier turns; and its last turn, `instruction` with
`input`, answered by `output`. Rows of datasets in which no row has the first two lack them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Message = dict[str, str]  # `role` (system, user or assistant) and `content`

TEMPLATE_ID = "alpaca"  # of the default; CHAT is the base model's own
CHAT = "chat"

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)

TEMPLATE_HASH = hashlib.sha256(f"{WITH_INPUT}\0{WITHOUT_INPUT}".encode()).hexdigest()


def build_prompt(instruction: str, input: str = "") -> str:
    """The text that the model reads before it answers. Braces in the instruction or input stay as they are."""
    template = WITH_INPUT if input else WITHOUT_INPUT
    return template.format(instruction=instruction, input=input)


def system_of(row: Mapping[str, Any]) -> str:
    """The system text of a row; empty where it has none."""
    return row.get("system") or ""


def history_of(row: Mapping[str, Any]) -> list[Message]:
    """The turns before a row's last question: user and assistant, alternating, beginning with the user."""
    return [{"role": turn["role"], "content": turn["content"]} for turn in row.get("history") or []]


def refused_by_alpaca(row: Mapping[str, Any]) -> str:
    """Why a row is no single question; empty where it is one."""
    held = {"a system text": system_of(row), "earlier turns": history_of(row)}
    named = " and ".join(name for name, content in held.items() if content)
    return f"it has {named}, and alpaca asks single questions" if named else ""


ROLES_TAKE = "take --template chat, or a Jinja file that has roles (--template FILE)"


def question_of(row: Mapping[str, Any]) -> str:
    """The last user turn as one text: an input stands below its instruction, after an empty line."""
    return f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]


def messages_of(row: Mapping[str, Any]) -> list[Message]:
    """A row as messages, as chat templates read them, up to and with its last question."""
    system = [{"role": "system", "content": system_of(row)}] if system_of(row) else []
    return [*system, *history_of(row), {"role": "user", "content": question_of(row)}]


def alpaca_as_jinja(begin: str, before_prompt: str, before_response: str) -> str:
    """Alpaca as a chat template, so that other programs ask in it: a user message, which may have an `input`.

    `begin` is what the tokenizer puts before a text by itself, such as BOS; the other two are what has to stand before
    prompt and response for their tokens to be those of the texts alone: a blank, for some tokenizers.
    """
    parts = {}
    for name, template in (("without", WITHOUT_INPUT), ("with", WITH_INPUT)):
        before, rest = template.split("{instruction}")
        parts[name] = [json.dumps(part) for part in (begin + before_prompt + before, *rest.split("{input}"))]
    (head, end), (head_with, middle, end_with) = parts["without"], parts["with"]
    return "".join(
        (
            "{%- set asked = messages[0] -%}",
            "{%- if messages | map(attribute='role') | join(' ') not in ('user', 'user assistant') -%}",
            "{{- raise_exception('this model was trained on single questions (template alpaca): give one user ",
            "message, with neither a system text nor earlier turns') -}}",
            "{%- endif -%}",
            "{%- if asked['input'] -%}",
            f"{{{{- {head_with} + asked['content'] + {middle} + asked['input'] + {end_with} -}}}}",
            "{%- else -%}",
            f"{{{{- {head} + asked['content'] + {end} -}}}}",
            "{%- endif -%}",
            "{%- if messages | length == 2 -%}",
            f"{{{{- {json.dumps(before_response)} + messages[1]['content'] + eos_token -}}}}",
            "{%- endif -%}",
        )
    )
