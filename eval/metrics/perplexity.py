"""Perplexity, bits per byte and token accuracy from summed likelihoods, as an `evaluate.Metric`.

    nll_per_token  = Σ nll / Σ tokens                    nats
    perplexity     = exp(nll_per_token)
    bits_per_byte  = Σ nll / (ln 2 · Σ bytes)            bytes of the UTF-8 reference

Sums come first and are divided once: a mean of per-example or per-batch values would weigh short answers more.
"""

import math

import datasets
import evaluate

DESCRIPTION = "Perplexity, bits per byte and token accuracy of references, from their summed likelihoods in nats."
INPUTS = """
Args:
    nll: summed negative log-likelihood of each reference and its EOS, in nats.
    tokens: tokens of each reference, EOS included.
    correct_tokens: how many of them were the most likely token.
    bytes: UTF-8 bytes of each reference.
"""


class Perplexity(evaluate.Metric):
    def _info(self):
        features = {"nll": "float64", "tokens": "int64", "correct_tokens": "int64", "bytes": "int64"}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({name: datasets.Value(type) for name, type in features.items()}),
        )

    def _compute(self, nll, tokens, correct_tokens, bytes):
        return from_sums(math.fsum(nll), sum(tokens), sum(correct_tokens), sum(bytes))


def from_sums(nll: float, tokens: float, correct_tokens: float, bytes: float) -> dict[str, float]:
    """The four figures from sums over examples."""
    if tokens <= 0 or bytes <= 0:
        raise ValueError(f"{tokens} tokens and {bytes} bytes: a reference must have at least one of each")
    return {
        "nll_per_token": nll / tokens,
        "perplexity": math.exp(nll / tokens) if nll / tokens < 700 else math.inf,  # which no result may hold
        "bits_per_byte": nll / (math.log(2) * bytes),
        "token_accuracy": correct_tokens / tokens,
    }
