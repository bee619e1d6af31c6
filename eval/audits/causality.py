"""Whether a likelihood knows what it is asked to predict: the next token, what comes after it, or where the text ends.

A language model's likelihood of a text is a product over its tokens, each given those before it (Bengio et al. 2003,
equation 1). So a token is as likely within the whole text as after the text cut right before it, where nothing of what
follows exists:

    whole     p p p p a b c d EOS      log_probs gives log p(c), perhaps having seen c, d or EOS
    cut       p p p p a b              distributions gives log p of every token here: that of c must be the same
    replaced  p p p p a b x y z        and so must those of a and b here, and that of x be what the cut one gave x

All of it is computed in float32, whatever the model computes in otherwise, so that little is left to rounding.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp

from eval.models.language_model import LanguageModel, Pair

TOLERANCE, COARSE_TOLERANCE = 2e-4, 0.1  # nats by which rounding may move a log-probability in float32, in int8
RANDOM_TEXTS = 3
ENDS_APART = 0.1  # nats: a model that is so much surer of EOS where the text does end knows that it ends there
LATER = 8  # tokens by which a text goes on, for a model that may know where it ends


@dataclass(frozen=True)
class Look:
    """One token: where it stands (text, position in the response), and its log-probability in the whole and cut."""

    text: int
    position: int
    whole: float
    cut: float

    @property
    def moved(self) -> float:
        return abs(self.whole - self.cut)


def tolerance(model: LanguageModel) -> float:
    """Nats by which rounding may move one log-probability `in_float32`, where weights in 8 bits stay what they are."""
    return COARSE_TOLERANCE if model.description.dtype == "int8" else TOLERANCE


def by_length(pairs: Sequence[Pair]) -> list[int]:
    """Positions of the examples, shortest first."""
    return sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]) + len(pairs[index][1]))


def texts_to_look_at(pairs: Sequence[Pair]) -> list[int]:
    """The longest, the median and some random ones: a fault may begin late, or in long texts alone."""
    order = by_length(pairs)
    ordinary = dict.fromkeys([order[-1], order[len(order) // 2]])
    others = [index for index in order if index not in ordinary]
    return [*ordinary, *_generator(pairs).sample(others, min(RANDOM_TEXTS, len(others)))]


def _generator(pairs: Sequence[Pair]) -> random.Random:
    """Random places that are the same at every call, and that nobody knows before they have the data."""
    return random.Random(str([pair[1] for pair in pairs[:100]]))


def causality(
    model: LanguageModel, rows: Sequence[dict[str, Any]], pairs: Sequence[Pair], alone: bool = False
) -> dict[str, Any]:
    """Look at the next token, at later ones and at the end. `alone`: a row at a time, where rows move each other.

    `rows` are those of predictions.jsonl, `pairs` their ids.
    A dependence on how long the whole text is, and on nothing that stands in it, is not called a leak: some positions
    are really made so (longrope). A model that is surer of EOS where the text ends than where it goes on is another
    matter: it knows the end.
    """
    limit = tolerance(model)
    with model.in_float32():
        looks, before, itself, unnormalised = _look(model, pairs, alone)
        moved = [look for look in looks if not look.moved <= limit]  # NaN has moved
        largest = float(np.max([*(look.moved for look in looks), before, itself]))
        moves = not largest <= limit
        of_length = bool(moved) and before <= limit and _is_length_alone(model, pairs, moved)
        knows_end = of_length and _knows_the_end(model, pairs, looks)
    reads_answer = _prompt_depends_on_response(model, rows, pairs)
    counted = f"{len(looks)} tokens of {len({look.text for look in looks})} texts, tolerance {limit:g}"
    if reads_answer:
        said = "the prompt's ids are others with another response: it reads what it is asked for"
    elif knows_end:
        said = f"log-probabilities move by up to {largest:.3g} nats with the text's end: it knows where the text ends"
    elif of_length:
        said = (
            f"log-probabilities move by up to {largest:.3g} nats with the number of tokens in the whole text and with "
            "nothing that stands in it: no leak, but likelihoods of long and short texts are of two models"
        )
    elif moves:
        said = (
            f"log-probabilities move by up to {largest:.3g} nats when the token itself and later ones are cut off or "
            "replaced: it sees the future"
        )
    else:
        said = f"log-probabilities move by at most {largest:.1g} nats when the rest is cut off or replaced"
    return {
        "passed": not reads_answer and not knows_end and (of_length or not moves),
        "summary": f"{said} ({counted})",
        "largest_difference": largest if np.isfinite(largest) else None,
        "depends_on_length": of_length,
        "unnormalised": unnormalised if np.isfinite(unnormalised) else None,
        "tolerance": limit,
        "tokens": len(looks),
    }


def _look(model: LanguageModel, pairs: Sequence[Pair], alone: bool) -> tuple[list[Look], float, float, float]:
    """Every token that is looked at; how far replacing what follows moves others, and is itself from what the cut text
    gave it; and how far Σ p is from 1. All in nats.
    """
    generator, chosen = _generator(pairs), texts_to_look_at(pairs)
    longest, median, *_ = [*chosen, chosen[0]]
    cuts = {index: _cuts(pairs[index][1], 1, index in (longest, median), generator) for index in chosen}
    cuts[median] = _cuts(pairs[median][1], 2, True, generator)  # long texts cost more
    pool = sorted({token for index in chosen for token in (*pairs[index][0], *pairs[index][1])})
    prompt, response = pairs[median]
    position = cuts[median][len(cuts[median]) // 2]
    other = response[:position] + _noise(response[position:], pool, generator)
    whole_of = {index: model.log_probs([pairs[index]])[0] for index in chosen if index != median}
    whole_of[median], replaced = _log_probs(model, [pairs[median], (prompt, other)], alone)
    places = [(index, position) for index in chosen for position in cuts[index]]
    after = _distributions(
        model, [(pairs[index][0], pairs[index][1][:position]) for index, position in places], alone=alone
    )
    cut_of = dict(zip(places, after, strict=True))
    looks = [
        Look(index, position, whole_of[index][position], cut_of[index, position][pairs[index][1][position]])
        for index, position in places
    ]
    before = np.max(np.abs(replaced[:position] - whole_of[median][:position]), initial=0.0)
    itself = abs(replaced[position] - cut_of[median, position][other[position]])
    sums = np.abs([logsumexp(each) for each in after])
    return looks, float(before), itself, float(np.max(sums))


def _cuts(response: list[int], middle: int, ends: bool, generator: random.Random) -> list[int]:
    """Positions right before which a response is cut: so many random ones and, with `ends`, the first and EOS."""
    inner = range(1, len(response) - 1) if ends else range(len(response))
    chosen = generator.sample(inner, min(middle, len(inner)))
    return sorted({*chosen, *((0, len(response) - 1) if ends else ())})


def _noise(tokens: Sequence[int], pool: Sequence[int], generator: random.Random) -> list[int]:
    """As many other tokens, no one where it was."""
    return [generator.choice([other for other in pool if other != token] or [token]) for token in tokens]


def _log_probs(model: LanguageModel, rows: Sequence[Pair], alone: bool) -> list[np.ndarray]:
    return [model.log_probs([row])[0] for row in rows] if alone else model.log_probs(rows)


def _distributions(
    model: LanguageModel, rows: Sequence[Pair], positions: Sequence[int] | None = None, alone: bool = True
) -> list[np.ndarray]:
    positions = [len(response) for _, response in rows] if positions is None else positions
    if not alone:
        return model.distributions(rows, positions)
    return [model.distributions([row], [position])[0] for row, position in zip(rows, positions, strict=True)]


def _is_length_alone(model: LanguageModel, pairs: Sequence[Pair], moved: Sequence[Look]) -> bool:
    """Whether what moved is back when anything at all fills the text up to its length, in two ways."""
    generator = _generator(pairs)
    pool = sorted({token for prompt, response in pairs[:100] for token in (*prompt, *response)})
    for look in moved:
        prompt, response = pairs[look.text]
        rest = response[look.position :]
        rows = [(prompt, response[: look.position] + _noise(rest, pool, generator)) for _ in range(2)]
        filled = [found[rest[0]] for found in _distributions(model, rows, [look.position] * 2)]
        if not np.max(np.abs(np.array(filled) - look.whole)) <= tolerance(model):
            return False
    return True


def _knows_the_end(model: LanguageModel, pairs: Sequence[Pair], looks: Sequence[Look]) -> bool:
    """Whether EOS is likelier where the text ends with it than where other tokens follow, up to the longest text."""
    longest = max(len(prompt) + len(response) for prompt, response in pairs)
    surer = []
    for look in looks:
        prompt, response = pairs[look.text]
        if look.position == len(response) - 1 and len(prompt) + len(response) + LATER <= longest:
            longer = (prompt, response + (prompt * LATER)[:LATER])
            (found,) = _distributions(model, [longer], [look.position])
            surer.append(look.whole - float(found[response[-1]]))
    return bool(surer) and min(surer) > ENDS_APART


def _prompt_depends_on_response(model: LanguageModel, rows: Sequence[dict[str, Any]], pairs: Sequence[Pair]) -> bool:
    """Whether a prompt has other ids beside another response, looked at on every text: it costs no forward pass."""
    others = [*rows[1:], *rows[:1]]
    return any(
        model.encode(row["prompt"], other["reference"])[0] != prompt
        for row, other, (prompt, _) in zip(rows, others, pairs, strict=True)
    )
