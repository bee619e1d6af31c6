"""From logits to the next token: pure functions of one step, for all three models. Shapes: see model.py.

`written_BT` are the tokens that B answers hold so far. A token that may not follow has a logit of -∞.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from baselines.scratch.tokenizer import BOS, PAD, UNKNOWN

NEVER_WRITTEN = [PAD, UNKNOWN, BOS]  # no text holds them


@dataclass(frozen=True)
class Sampling:
    """How an answer is chosen: greedily, unless one of these says otherwise."""

    temperature: float = 0.0  # 0 takes the most likely token; 1 draws from the model's own distribution
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int | None = None
    num_beams: int = 1
    length_penalty: float = 1.0  # of beam search: above 1 favours long answers, 0 counts the sum alone
    seed: int = 0

    def problems(self) -> Iterator[str]:
        """What is wrong with these values, with each limit."""
        if not 0 <= self.temperature < math.inf:
            yield f"temperature is {self.temperature} and must be at least 0"
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                yield f"{name} is {value} and must be above 0 and at most 1"
        for name in ("top_k", "no_repeat_ngram_size", "num_beams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name} is {value} and must be at least 1"
        if not 0 < self.repetition_penalty < math.inf:
            yield f"repetition_penalty is {self.repetition_penalty} and must be above 0"
        if self.temperature == 0:
            for name in ("top_k", "top_p", "min_p"):
                if getattr(self, name) is not None:
                    yield f"{name} is {getattr(self, name)} and temperature is 0, which draws nothing; set it above 0"
        elif self.num_beams > 1:
            yield f"num_beams is {self.num_beams} and temperature is {self.temperature}: beam search draws nothing"


def penalise(logits_BV: torch.Tensor, written_BT: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Logits after what an answer so far says of them, as greedy decoding, drawing and beam search need them."""
    logits_BV = logits_BV.index_fill(-1, torch.tensor(NEVER_WRITTEN, device=logits_BV.device), -math.inf)
    if sampling.repetition_penalty != 1:
        logits_BV = penalise_repetition(logits_BV, written_BT, sampling.repetition_penalty)
    if sampling.no_repeat_ngram_size is not None:
        logits_BV = forbid_repeated_ngrams(logits_BV, written_BT, sampling.no_repeat_ngram_size)
    return logits_BV


def choose(logits_BV: torch.Tensor, sampling: Sampling, uniform_B: torch.Tensor | None) -> torch.Tensor:
    """One token of each distribution: next_B. `uniform_B` are numbers in [0, 1), not needed at temperature 0."""
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    logits_BV = logits_BV.float() / sampling.temperature  # Ackley et al. 1985, eq. 5
    if sampling.top_k is not None:
        logits_BV = keep_top_k(logits_BV, sampling.top_k)
    if sampling.top_p is not None:
        logits_BV = keep_top_p(logits_BV, sampling.top_p)
    if sampling.min_p is not None:
        logits_BV = keep_min_p(logits_BV, sampling.min_p)
    return draw(logits_BV, uniform_B)


def keep_top_k(logits_BV: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the k most likely tokens (Fan et al. 2018, section 5.4), and those as likely as the last of them."""
    least_B1 = logits_BV.topk(min(k, logits_BV.shape[-1])).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, -math.inf)


def keep_top_p(logits_BV: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the fewest of the most likely tokens whose probabilities reach p (Holtzman et al. 2020, eq. 2)."""
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    probabilities_BV = sorted_BV.softmax(dim=-1)
    before_BV = probabilities_BV.cumsum(dim=-1) - probabilities_BV  # of all that are more likely
    beyond_BV = before_BV >= p
    beyond_BV[:, 0] = False
    return logits_BV.masked_fill(beyond_BV.scatter(-1, order_BV, beyond_BV), -math.inf)


def keep_min_p(logits_BV: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the tokens at least p times as likely as the most likely one (Nguyen et al. 2025, section 3.2)."""
    least_B1 = logits_BV.amax(dim=-1, keepdim=True) + math.log(p)
    return logits_BV.masked_fill(logits_BV < least_B1, -math.inf)


def penalise_repetition(logits_BV: torch.Tensor, written_BT: torch.Tensor, penalty: float) -> torch.Tensor:
    """Make written tokens less likely: logit / penalty, or times it below 0 (Keskar et al. 2019, section 4.1)."""
    held_BT = logits_BV.gather(-1, written_BT)
    return logits_BV.scatter(-1, written_BT, torch.where(held_BT < 0, held_BT * penalty, held_BT / penalty))


def forbid_repeated_ngrams(logits_BV: torch.Tensor, written_BT: torch.Tensor, n: int) -> torch.Tensor:
    """Forbid the token that would write a run of n tokens a second time (Paulus et al. 2018, section 2.5)."""
    if written_BT.shape[1] < n:
        return logits_BV
    ngrams_BWn = written_BT.unfold(1, n, 1)  # W windows of n tokens
    tail_B1n = written_BT[:, None, written_BT.shape[1] - (n - 1) :]
    again_BW = (ngrams_BWn[..., :-1] == tail_B1n).all(dim=-1)
    forbidden_BV = torch.zeros_like(logits_BV, dtype=torch.int32)
    forbidden_BV.scatter_add_(-1, ngrams_BWn[..., -1], again_BW.int())
    return logits_BV.masked_fill(forbidden_BV > 0, -math.inf)


def draw(logits_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """The token at which the summed probabilities pass a number in [0, 1): next_B.

    A draw is a function of its number, so an answer does not depend on what else is in the batch.
    """
    sums_BV = logits_BV.double().softmax(dim=-1).cumsum(dim=-1)
    target_B1 = uniform_B[:, None] * sums_BV[:, -1:]
    return torch.searchsorted(sums_BV, target_B1, right=True)[:, 0]
