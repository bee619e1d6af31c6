"""What any model must offer to be evaluated. Evaluation knows nothing else of a model.

prompt        Below is … ### Response:\n │ An ETF is a fund … │ EOS │   in a conversation all that stands before its
                                                              last answer, which ends in the template's token
encode        prompt's ids               │ response's ids ─────── │
log_probs                                │ one a response token ─ │   each given all ids before it
distributions                            │ one a token of the vocabulary, at one position
score                                    │ − their sum: nll ───── │   the response and its EOS, nothing else
generate                                 │ until EOS or max_new_tokens

`score` and `generate` make the figures. `encode`, `log_probs` and `distributions` open the same computation to the
audits, which cut texts off, replace what follows, and look whether the log-probabilities before it move.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from finllm.text.templates import Template

Pair = tuple[list[int], list[int]]  # ids of a prompt and of its response


@dataclass(frozen=True)
class Score:
    """The likelihood of one response and its end: `nll` in nats, summed; `tokens` counts the end token too."""

    nll: float
    tokens: int
    correct_tokens: int  # tokens that were the most likely ones


@dataclass(frozen=True)
class Generation:
    """One answer: its text without its end token, the tokens written (that one included), whether it ended there."""

    text: str
    tokens: int
    stopped: bool


@dataclass(frozen=True)
class Description:
    """What the report says of a model. `tokenizer` names it: perplexities of two tokenizers cannot be compared.

    `dtype` is what the model computes in: how far rounding alone moves a log-probability depends on it.
    """

    method: str  # base, full, lora, qlora, scratch
    base_model: str | None
    tokenizer: str
    total_parameters: int
    trainable_parameters: int
    dtype: str = "float32"


class LanguageModel(Protocol):
    """A model under evaluation. Results come in the order of the arguments, whatever the batching inside."""

    description: Description
    template: Template  # that it is asked in: prompts are what its `prompts` writes

    def encode(self, prompt: str, response: str) -> Pair:
        """Token ids of the prompt, and of the response with its end token, exactly as `score` reads them.

        A response that the tokenizer cannot write (a character becomes the unknown token) is a `UserError`.
        """

    def log_probs(self, pairs: Sequence[Pair]) -> list[np.ndarray]:
        """For each (prompt ids, response ids) the log-probability of each response token, in nats.

        A float64 array of shape (tokens of the response,) a pair: of each token given the prompt and the response
        before it, from one forward pass over the whole, so that a model that sees the future shows it.
        """

    def distributions(self, pairs: Sequence[Pair], positions: Sequence[int]) -> list[np.ndarray]:
        """For each pair the log-probability of every token at one position of the response, 0 to its length, in nats.

        A float64 array of shape (vocabulary,) a pair: given the prompt and the response before that position, from one
        forward pass over the whole pair. At the response's length nothing follows: the same that `generate` draws from.
        """

    def in_float32(self) -> AbstractContextManager[None]:
        """Inside, the model computes in float32, coarser weights as the numbers that they stand for."""

    def otherwise(self, pairs: Sequence[Pair]) -> dict[str, list[float]]:
        """The nll of each pair's response by every other way that this model is run in; none of them may differ.

        The name of a way, such as "padded on the left", and a nll for each pair. Empty where there is no other way.
        """

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Score]:
        """Score each response, and its EOS, after its prompt: the same numbers as `log_probs`, summed."""

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[Generation]:
        """Answer each prompt greedily."""
