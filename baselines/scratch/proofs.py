"""What is proved of a model from scratch: whether it sees the future, and that what was saved is what was trained."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from baselines.scratch.lm import Pair, ScratchLanguageModel
from baselines.scratch.model import Transformer
from baselines.scratch.tokenizer import Tokenizer
from eval.audits.likelihood import causality
from eval.models.language_model import Score
from finllm.errors import UserError
from finllm.models.proofs import Proof
from finllm.text.prompts import build_prompt

EXAMPLES = 4  # validation rows that are looked at
RELOADED = 1e-5  # nats a token: the same numbers in the same order


def prove_causality(model: Transformer, tokenizer: Tokenizer, rows: list[dict[str, str]]) -> Proof:
    """The audit of the evaluation before the first step. as_published fails it, and is trained to be studied."""
    lm = _language_model(model, tokenizer)
    pairs = _pairs(lm, rows)
    if not pairs:
        return Proof("sees no future", None, 0.0, False, "no validation row leaves room for an answer: not looked at")
    scores = [Score(float(-log_probs.sum()), len(log_probs), 0) for log_probs in lm.log_probs(pairs)]
    found = causality(lm, pairs, scores)
    model.train()
    return Proof("sees no future", found["largest_difference"], found["tolerance"], found["passed"], found["summary"])


def prove_saved(model: Transformer, folder: Path, rows: list[dict[str, str]]) -> Proof:
    """The model loaded from `folder` gives validation rows the likelihoods of `model`; else a `UserError`."""
    tokenizer = Tokenizer.load(folder)
    before, after = (_language_model(each, tokenizer) for each in (model, Transformer.load(folder)))
    after.model.to(next(model.parameters()).device)
    pairs = _pairs(before, rows)
    moved = zip(before.log_probs(pairs), after.log_probs(pairs), strict=True)
    apart = max((float(np.abs(one - other).max()) for one, other in moved), default=0.0)
    if not apart <= RELOADED:
        raise UserError(
            f"the model just saved to {folder} is not the one that was trained: loaded anew, a validation token's loss "
            f"is {apart:.2g} nats away (limit {RELOADED:.0e}); its checkpoints are kept"
        )
    return Proof("saved model", apart, RELOADED, True, f"loaded anew, a token's loss is within {apart:.1g} nats")


def _pairs(lm: ScratchLanguageModel, rows: list[dict[str, str]]) -> list[Pair]:
    """Ids of the first rows, cut to what the model was made for: learned positions end there."""
    most = lm.model.config.max_length
    pairs = (lm.encode(build_prompt(row["instruction"], row["input"]), row["output"]) for row in rows)
    room = ((prompt, response[: most - len(prompt)]) for prompt, response in pairs if len(prompt) < most - 1)
    return list(itertools.islice(room, EXAMPLES))


def _language_model(model: Transformer, tokenizer: Tokenizer) -> ScratchLanguageModel:
    return ScratchLanguageModel(model, tokenizer, batch_size=EXAMPLES)
