"""What is proved of a model from scratch: whether it sees the future, and that what was saved is what was trained."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from baselines.scratch.lm import ScratchLanguageModel
from baselines.scratch.model import Transformer
from baselines.scratch.tokenizer import Tokenizer
from eval.audits.causality import causality
from eval.models.language_model import Pair
from finllm.errors import UserError
from finllm.models.proofs import PROVING, Proof
from finllm.text.prompts import build_prompt

EXAMPLES = 4  # validation rows that are looked at
RELOADED = 1e-5  # nats a token: the same numbers in the same order


@PROVING
def prove_causality(model: Transformer, tokenizer: Tokenizer, rows: list[dict[str, str]]) -> Proof:
    """The audit of the evaluation before the first step. as_published fails it, and is trained to be studied."""
    lm = _language_model(model, tokenizer)
    texts = _texts(lm, rows)
    if not texts:
        return Proof("sees no future", None, 0.0, False, "no validation row leaves room for an answer: not looked at")
    found = causality(lm, *map(list, zip(*texts, strict=True)))
    model.train()
    return Proof("sees no future", found["largest_difference"], found["tolerance"], found["passed"], found["summary"])


@PROVING
def prove_saved(model: Transformer, folder: Path, rows: list[dict[str, str]]) -> Proof:
    """The model loaded from `folder` gives validation rows the likelihoods of `model`; else a `UserError`."""
    tokenizer = Tokenizer.load(folder)
    before, after = (_language_model(each, tokenizer) for each in (model, Transformer.load(folder)))
    after.model.to(next(model.parameters()).device)
    pairs = [pair for _, pair in _texts(before, rows)]
    moved = zip(before.log_probs(pairs), after.log_probs(pairs), strict=True)
    apart = max((float(np.abs(one - other).max()) for one, other in moved), default=0.0)
    if not apart <= RELOADED:
        raise UserError(
            f"the model just saved to {folder} is not the one that was trained: loaded anew, a validation token's loss "
            f"is {apart:.2g} nats away (limit {RELOADED:.0e}); its checkpoints are kept"
        )
    return Proof("saved model", apart, RELOADED, True, f"loaded anew, a token's loss is within {apart:.1g} nats")


def _texts(lm: ScratchLanguageModel, rows: list[dict[str, str]]) -> list[tuple[dict[str, str], Pair]]:
    """The first rows as texts and as ids, cut to what the model was made for: learned positions end there."""
    most = lm.model.config.max_length
    texts = [{"prompt": build_prompt(row["instruction"], row["input"]), "reference": row["output"]} for row in rows]
    pairs = (lm.encode(text["prompt"], text["reference"]) for text in texts)
    room = (
        (text, (prompt, response[: most - len(prompt)]))
        for text, (prompt, response) in zip(texts, pairs, strict=True)
        if len(prompt) < most - 1
    )
    return list(itertools.islice(room, EXAMPLES))


def _language_model(model: Transformer, tokenizer: Tokenizer) -> ScratchLanguageModel:
    return ScratchLanguageModel(model, tokenizer, batch_size=EXAMPLES)
