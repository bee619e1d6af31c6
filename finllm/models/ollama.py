"""An Ollama Modelfile for a GGUF file: the template in Ollama's own language (Go's), and what ends an answer.

Ollama reads no Jinja. What a template writes around texts is found by rendering it and cutting at them, and the result
is held against further conversations before it is written:

    opening [system text closing] question asks answer between question asks …
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finllm.errors import UserError
from finllm.text.prompts import history_of, question_of, system_of
from finllm.text.templates import Template
from finllm.text.tokens import encode_prompt

MOST_CONTEXT = 4096  # tokens, Ollama's own default; more takes memory and is a person's to ask for


@dataclass(frozen=True)
class Parts:
    """What stands around the texts of a conversation. `system` is (before, after) the system text, None where the
    template refuses one; `between` stands from an answer to the next question, None where it asks single questions."""

    opening: str
    asks: str
    between: str | None
    system: tuple[str, str] | None

    def prompt(self, row: Mapping[str, Any]) -> str:
        """What `template_text` makes of a row, for the proof."""
        system = system_of(row)
        begin = f"{self.system[0]}{system}{self.system[1]}" if system and self.system else self.opening
        turns = [turn["content"] for turn in history_of(row)] if self.between is not None else []
        texts = "".join(text + (self.between if number % 2 else self.asks) for number, text in enumerate(turns))
        return f"{begin}{texts}{question_of(row)}{self.asks}"

    @property
    def template_text(self) -> str:
        """In Go's template language, with the variables of Ollama."""
        begin = self.opening
        if self.system:
            before, after = self.system
            begin = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{begin}{{{{ end }}}}"
        if self.between is None:  # the last question alone, as it was trained
            return (
                f"{begin}{{{{ range $i, $_ := .Messages }}}}{{{{ if eq (len (slice $.Messages $i)) 1 }}}}"
                f"{{{{ .Content }}}}{{{{ end }}}}{{{{ end }}}}{self.asks}"
            )
        return (
            f'{begin}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}{self.asks}'
            f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{self.between}{{{{ end }}}}{{{{ end }}}}'
        )


def _row(question: str, history: Sequence[str] = (), system: str = "") -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(history)]
    return {"id": "tried", "instruction": question, "input": "", "system": system, "history": turns}


# Texts that no template writes
Q1, A1, Q2, A2, Q3, S = "Q-zq1-Q", "A-zq1-A", "Q-zq2-Q", "A-zq2-A", "Q-zq3-Q", "S-zq-S"
TRIED = [_row(Q1), _row(Q1, (), S), _row(Q2, (Q1, A1)), _row(Q3, (Q1, A1, Q2, A2), S)]


def parts_of(template: Template) -> Parts:
    """What a template writes around texts; a `UserError` where it writes otherwise from turn to turn."""

    def prompt(row: Mapping[str, Any]) -> str | None:
        try:
            return template.prompts([row])[0]
        except UserError:
            return None

    one = prompt(TRIED[0])
    assert one is not None, "a template that renders a question was proved when it was made"
    opening, _, asks = one.partition(Q1)
    between, system = None, None
    if template.takes_history and (two := prompt(TRIED[2])) is not None:
        between = two.partition(A1)[2].partition(Q2)[0]
    if (instructed := prompt(TRIED[1])) is not None:
        before, _, rest = instructed.partition(S)
        system = (before, rest.partition(Q1)[0])
    found = Parts(opening, asks, between, system)
    rows = [row for row in TRIED if (between is not None or not row["history"]) and (system or not row["system"])]
    for row in rows:
        if prompt(row) != found.prompt(row):
            raise UserError(
                "the template does not write the same around each turn of a conversation, so none can be written for "
                "Ollama; leave the Modelfile out with --no_modelfile"
            )
    return found


def modelfile(template: Template, file_name: str, context: int) -> str:
    """The text of a Modelfile beside the GGUF file `file_name`. Ollama itself puts BOS before a prompt."""
    tokenizer, parts = template.tokenizer, parts_of(template)
    begins = encode_prompt(tokenizer, "a")[:1] == [tokenizer.bos_token_id]
    bos = str(tokenizer.bos_token) if begins else ""
    text = parts.template_text
    texts = [parts.opening, parts.asks, parts.between or "", *(parts.system or ())]
    if '"""' in text or any("{{" in each or "}}" in each for each in texts):
        raise UserError(
            "the template writes braces or quotes that a Modelfile cannot hold; leave the Modelfile out with "
            "--no_modelfile"
        )
    if bos:
        text = text.replace(bos, "")
    stops = [str(token) for token in tokenizer.convert_ids_to_tokens(template.stops)]
    lines = [
        f"FROM ./{file_name}",
        f'TEMPLATE """{text}"""',
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {min(context, MOST_CONTEXT)}",
    ]
    return "\n".join(lines) + "\n"
