"""That a GGUF file is the model it was written from: held against it in llama.cpp, or read back by transformers.

llama.cpp (the extra `llama_cpp`)   200 texts become the same ids; 20 prompts are those of the template, and get
                                    the same greedy answers; answers are as likely
transformers, without it            answers are as likely
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from finllm.errors import UserError, at_most, shortened
from finllm.models.generate import answer_all, decoding
from finllm.models.gguf_file import context_of
from finllm.models.held import Held
from finllm.models.llama_cpp import LlamaCpp
from finllm.models.plain import Plain
from finllm.models.proofs import Proof
from finllm.text.prompts import TEMPLATE_ID
from finllm.text.tokens import IGNORED

TEXTS, PROMPTS = 200, 20
ANSWER, SCORED = 32, 24  # tokens of an answer that is written, and of one that is scored
EXACT = ("f32", "f16")
PERPLEXITY, ROUNDED_PERPLEXITY = 1e-3, 5e-2  # by which share it may move, in these and in coarser formats
DIFFERENT, FEW = 20, 5  # one answer in so many may differ, where rounding decides; of fewer than `FEW` none

WHITE = ["", " ", "  ", "\t", "\n", "\n\n", "\r\n", " a", "a ", "a  b", "a\tb", "\n a\n\n\tb \n", "   code:\n    x = 1",
         "a\u00a0b", "a\u2003b", "a\u3000b", "line\u2028break"]  # fmt: skip
NUMBERS = ["0", "12", "123", "1234", "1234567", "1,234.56", "(1,234)", "-3.5 %", "−3", "$1.2bn", "€ 4.50", "2026-11-26",
           "1e-5", "3½", "x²", "12:30", "0.001%", "Q3/2025", "10–12", "٣٤٥"]  # fmt: skip
SCRIPTS = ["😀", "👩‍👩‍👧", "🇪🇺 1", "☕️ tea", "a😀b", "📈📉", "日本語の株式", "Ελλάδα", "привет мир", "שלום", "हिन्दी",
           "한국어", "naïve café", "ß", "…", "“quoted”", "it's we'll I'VE", "don’t", "a/b_c-d+e=f", "https://example.com/?q=1&r=2",
           "<b>x</b>", "```py\nprint(1)\n```", "CamelCaseWORDS", "\u200b", "\ufeffx"]  # fmt: skip


def texts_of(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]) -> list[str]:
    """200 texts: white space, numbers, emoji and scripts, spelled control tokens, and those of the rows."""
    control = [str(token) for token in dict.fromkeys([*tokenizer.all_special_tokens, "<|endoftext|>", "<s>"])][:10]
    made = [form.format(token) for token in control for form in ("{}", "a{}b", " {} \n")]
    own = [text for row in rows for text in (row["instruction"], row["output"]) if text][: TEXTS // 2]
    hard = [*WHITE, *NUMBERS, *SCRIPTS]
    joined = (f"{one}{other}" for one, other in itertools.product(hard[::-1], hard))
    return list(itertools.islice(dict.fromkeys(itertools.chain(hard, made, own, joined)), TEXTS))


def by_llama_cpp(path: Path, plain: Plain, dtype: str) -> list[Proof]:
    """Hold the file at `path` against the plain model; a `UserError` with all that fails."""
    template, rows, held = plain.template, plain.held.rows[:PROMPTS], _short(plain.held)
    prompts = [template.encode_prompt(prompt) for prompt in template.prompts(rows)]
    room = max(map(len, [*prompts, *(row["input_ids"] for row in held.encoded)])) + ANSWER
    if room > context_of(plain.model.config):
        raise UserError(
            f"a prompt and an answer of {ANSWER} tokens need {room:,} tokens, and the file's context has "
            f"{context_of(plain.model.config):,}; it is too short to be tried"
        )
    engine = LlamaCpp(path, room, in_float32=dtype == "f32")
    found = [
        _same_ids(engine, plain),
        _same_prompts(engine, plain, rows, prompts),
        _same_answers(engine, plain, rows, prompts, dtype),
    ]
    theirs = [nats for row in held.encoded for nats in engine.nll(row["input_ids"], _begin(row))]
    return _all_hold([*found, _as_likely("llama.cpp", theirs, held, plain, dtype)], path, dtype)


def by_reading_back(path: Path, plain: Plain, dtype: str) -> list[Proof]:
    """The same of the weights alone, as transformers reads the file."""
    held = _short(plain.held)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=plain.model.config, dtype=torch.float32, trust_remote_code=False
        )
    except Exception as error:  # of a file that is not what it must be a library may raise anything
        raise UserError(
            f"{path.name}, just written, was not read back: {' '.join(str(error).split())[:300]}"
        ) from error
    proof = _as_likely("transformers", held.nll(model).tolist(), held, plain, dtype)
    return _all_hold([proof], path, dtype)


def _short(held: Held) -> Held:
    """The first rows, and of their answers the first tokens."""
    encoded = []
    for row in held.encoded[:PROMPTS]:
        begin = _begin(row)
        learned = [label != IGNORED for label in row["labels"]]
        end = next((place for place in range(begin, len(learned)) if not learned[place]), len(learned))
        encoded.append({name: row[name][: min(end, begin + SCORED)] for name in ("input_ids", "labels")})
    return dataclasses.replace(held, encoded=encoded, rows=held.rows[:PROMPTS])


def _begin(row: dict[str, list[int]]) -> int:
    return next(place for place, label in enumerate(row["labels"]) if place and label != IGNORED)


def _same_ids(engine: LlamaCpp, plain: Plain) -> Proof:
    """Texts in tokens: with what spells a control token as that token, and as text."""
    tokenizer, texts = plain.tokenizer, texts_of(plain.tokenizer, plain.held.rows)
    spelled = {text for text in texts if any(token in text for token in tokenizer.all_special_tokens)}
    wrong = []
    for text in texts:
        for parsed in (True, False) if text in spelled else (True,):
            own = tokenizer(text, add_special_tokens=False, split_special_tokens=not parsed).input_ids
            theirs = engine.ids(text, parse_special=parsed)
            if own != theirs:
                wrong.append(f"{shortened(text, 40)} is {theirs[:8]} there and {own[:8]} here")
    said = f"{len(texts)} texts become the same ids in llama.cpp"
    if wrong:
        said = f"{len(wrong)} of {len(texts)} texts become other ids in llama.cpp: {'; '.join(at_most(wrong, 3))}"
    return Proof("gguf: ids", float(len(wrong)), 0.0, not wrong, said)


def _chats(plain: Plain, row: dict[str, Any]) -> bool:
    """Whether a row can be asked by the file's chat template: there is one, and messages hold all of the row."""
    return plain.template.jinja is not None and not (plain.template.id == TEMPLATE_ID and row.get("input"))


def _same_prompts(engine: LlamaCpp, plain: Plain, rows: Sequence[dict], prompts: Sequence[list[int]]) -> Proof:
    """Questions as the file's chat template asks them, in tokens."""
    if plain.template.jinja is None:
        return Proof("gguf: template", None, 0.0, True, "this tokenizer allows no chat template, so the file has none")
    wrong, tried = [], 0
    for row, own in zip(rows, prompts, strict=True):
        if _chats(plain, row):
            tried += 1
            theirs = engine.ids(engine.prompt(row), parse_special=True)
            if theirs not in (own, own[1:] if own[:1] == [plain.tokenizer.bos_token_id] else own):
                wrong.append(f"{row['id']} is {theirs[-8:]} there and {own[-8:]} here")
    said = f"{tried} questions are asked by its chat template in the tokens that were trained on"
    if wrong:
        said = f"{len(wrong)} of {tried} questions are asked in other tokens: {'; '.join(at_most(wrong, 3))}"
    return Proof("gguf: template", float(len(wrong)), 0.0, not wrong, said)


def _same_answers(
    engine: LlamaCpp, plain: Plain, rows: Sequence[dict], prompts: Sequence[list[int]], dtype: str
) -> Proof:
    """Greedy answers, by the file's chat template where it can ask the row."""
    template = plain.template
    config = decoding(plain.tokenizer, ANSWER, stops=template.stops)
    own = answer_all(plain.model, plain.tokenizer, template.prompts(rows), config, template=template)
    wrong = []
    for row, ids, answer in zip(rows, prompts, own, strict=True):
        theirs = engine.answer_chat(row, ANSWER) if _chats(plain, row) else engine.answer(ids, ANSWER)
        ours, theirs = map(_readable, (answer.text, template.answer(theirs)))
        if ours != theirs:
            wrong.append(f"{row['id']} gets {shortened(theirs, 60)} there and {shortened(ours, 60)} here")
    exact, most = dtype in EXACT, math.ceil(len(rows) / DIFFERENT) if len(rows) >= FEW else 0
    said = f"{len(rows) - len(wrong)} of {len(rows)} greedy answers are the same text, of up to {ANSWER} tokens"
    holds = not exact or len(wrong) <= most
    return Proof(
        "gguf: answers", float(len(wrong)), float(most), holds, said if holds else "; ".join([said, *wrong[:3]])
    )


def _readable(text: str) -> str:
    """A text without the bytes that are no character, for which each side writes as many marks as it likes."""
    return re.sub("\ufffd+", "\ufffd", text).rstrip("\ufffd")


def _as_likely(by: str, theirs: Sequence[float], held: Held, plain: Plain, dtype: str) -> Proof:
    """The perplexity of the rows' answers by two ways, as a share of the model's own."""
    own = held.nll(plain.model)
    if len(theirs) != len(own):
        raise AssertionError(f"{len(theirs)} tokens were scored there and {len(own)} here")
    before, after = math.exp(float(own.mean())), math.exp(sum(theirs) / len(theirs))
    share, limit = after / before - 1, PERPLEXITY if dtype in EXACT else ROUNDED_PERPLEXITY
    said = (
        f"in {dtype} the perplexity of {len(own):,} tokens of answers is {after:.4f} in {by} and {before:.4f} here "
        f"({share:+.3%})"
    )
    return Proof(f"gguf: perplexity in {by}", abs(share), limit, abs(share) <= limit, said)


def _all_hold(proofs: list[Proof], path: Path, dtype: str) -> list[Proof]:
    failed = [f"{proof.said} (limit {proof.limit:g})" for proof in proofs if not proof.passed]
    if failed:
        fix = "" if dtype == "f32" else f"; {dtype} rounds the weights: give --dtype f32, which does not"
        raise UserError(
            f"{path.name} is not the model that it was written from, and is not kept: {'; '.join(failed)}{fix}"
        )
    return proofs
