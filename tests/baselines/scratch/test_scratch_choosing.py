"""Which token is chosen: the defaults, formats, equal tokens, and numbers at both ends of [0, 1)."""

import math

import pytest
import torch

from baselines.scratch.sampling import Sampling, choose, draw, keep_min_p, keep_top_k, penalise
from baselines.scratch.tokenizer import BOS, PAD, UNKNOWN

ALMOST_ONE = 1 - 2**-53  # the largest number below 1 of float64


def test_an_answer_is_greedy_of_one_beam_and_of_seed_0_unless_it_is_said():
    assert Sampling() == Sampling(0.0, None, None, None, 1.0, None, 1, 1.0, 0)


def test_penalties_are_taken_at_any_value_but_one():
    logits = torch.tensor([[1.0, 2.0, 3.0, 8.0, -8.0, 0.0, 4.0]])
    written = torch.tensor([[3, 4, 5]])
    never = dict.fromkeys((PAD, UNKNOWN, BOS), -math.inf)
    for penalty, held in ((1.0, (8.0, -8.0)), (2.0, (4.0, -16.0)), (0.5, (16.0, -4.0))):
        expected = [never.get(token, [1.0, 2.0, 3.0, *held, 0.0, 4.0][token]) for token in range(7)]
        assert penalise(logits, written, Sampling(repetition_penalty=penalty)).tolist() == [expected]


@pytest.mark.parametrize("sampling", [
    Sampling(0.7), Sampling(0.7, top_k=5), Sampling(0.7, top_p=0.7), Sampling(0.7, min_p=0.2), Sampling(),
])  # fmt: skip
@pytest.mark.parametrize("coarse", [torch.bfloat16, torch.float16])
def test_coarse_logits_are_drawn_from_as_in_float32(sampling, coarse):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(400, 40, generator=generator)).to(coarse)
    uniform = torch.rand(400, generator=generator, dtype=torch.float64)
    assert torch.equal(choose(logits, sampling, uniform), choose(logits.float(), sampling, uniform))


def test_each_rule_is_followed_by_itself():
    """Of 1/2, 1/4, 3/20 and 1/10 in another order; a number near 1 draws the last token that is left."""
    logits = torch.tensor([[0.25, 0.5, 0.15, 0.1]]).log()
    uniform = torch.tensor([ALMOST_ONE], dtype=torch.float64)
    for sampling, last in (
        (Sampling(1.0), 3), (Sampling(1.0, top_k=3), 2), (Sampling(1.0, top_k=1), 1), (Sampling(1.0, top_p=0.7), 1),
        (Sampling(1.0, top_p=0.8), 2), (Sampling(1.0, min_p=0.25), 2), (Sampling(1.0, min_p=0.45), 1),
        (Sampling(2.0, min_p=0.45), 2),
    ):  # fmt: skip
        assert choose(logits, sampling, uniform).tolist() == [last], sampling


def test_tokens_as_likely_as_the_last_that_is_kept_are_kept():
    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0]])
    assert keep_top_k(logits, 2).isfinite().tolist() == [[False, True, True, True]]
    assert keep_min_p(logits, math.exp(-1)).isfinite().tolist() == [[False, True, True, True]]


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (0.25, 3), (0.5, 4), (0.75, 5), (ALMOST_ONE, 5)])
def test_a_token_that_cannot_follow_is_never_drawn(number, token):
    """Four of seven have a quarter each, which is exact: a number that is a sum begins the next of them."""
    logits = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]]).log()
    assert draw(logits, torch.tensor([number], dtype=torch.float64)).tolist() == [token]


def test_sums_are_more_exact_than_logits():
    """A third is 0.33333334 in float32, and this number is between the two."""
    number = torch.tensor([0.333333335], dtype=torch.float64)
    assert draw(torch.zeros(1, 3), number).tolist() == [1]


def test_the_largest_number_draws_a_token_however_sums_are_rounded():
    """Sums of probabilities may end a little below or above 1."""
    ends = set()
    for seed in range(200):
        logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(seed))
        logits[:, 40:] = -math.inf
        ends.add(float(logits.double().softmax(dim=-1).cumsum(dim=-1)[0, -1]))
        assert draw(logits, torch.tensor([ALMOST_ONE], dtype=torch.float64)).tolist() == [39]
    assert min(ends) <= ALMOST_ONE < 1 < max(ends)
