"""From logits to tokens: hand-made distributions, transformers' processors, beam search against every answer."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import transformers

from baselines.scratch import generation
from baselines.scratch.generation import beam_search, write_one_each
from baselines.scratch.sampling import (
    NEVER_WRITTEN,
    Sampling,
    choose,
    draw,
    forbid_repeated_ngrams,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise,
    penalise_repetition,
)
from baselines.scratch.tokenizer import EOS, PAD
from finllm.errors import UserError

HALVES = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


def left(logits: torch.Tensor) -> list[int]:
    return (logits[0] > -math.inf).nonzero().flatten().tolist()


def test_what_is_kept_by_hand():
    assert left(keep_top_k(HALVES, 2)) == [0, 1] and left(keep_top_k(HALVES, 9)) == [0, 1, 2, 3]
    assert [left(keep_top_p(HALVES, p)) for p in (0.01, 0.49, 0.6, 0.8, 1.0)] == [
        [0],
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
    ]
    assert [left(keep_min_p(HALVES, p)) for p in (1.0, 0.45, 0.25, 0.1)] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    shuffled = HALVES[:, [2, 0, 3, 1]]
    assert left(keep_top_p(shuffled, 0.6)) == [1, 3] and left(keep_min_p(shuffled, 0.45)) == [1, 3]


def test_penalties_by_hand():
    logits = torch.tensor([[2.0, -2.0, 3.0, 0.5]])
    assert penalise_repetition(logits, torch.tensor([[0, 1, 0]]), 2.0).tolist() == [[1.0, -4.0, 3.0, 0.5]]
    assert left(forbid_repeated_ngrams(torch.zeros(1, 5), torch.tensor([[1, 2, 3, 1, 2]]), 3)) == [0, 1, 2, 4]
    assert left(forbid_repeated_ngrams(torch.zeros(1, 5), torch.tensor([[1, 2, 1, 3, 1]]), 2)) == [0, 1, 4]
    assert left(forbid_repeated_ngrams(torch.zeros(1, 5), torch.tensor([[1, 2]]), 1)) == [0, 3, 4]
    assert left(forbid_repeated_ngrams(torch.zeros(1, 5), torch.tensor([[1, 2]]), 3)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (lambda x, ids: keep_top_k(x, 7), transformers.TopKLogitsWarper(7)),
        (lambda x, ids: keep_top_p(x, 0.7), transformers.TopPLogitsWarper(0.7)),
        (lambda x, ids: keep_top_p(x, 1e-6), transformers.TopPLogitsWarper(1e-6)),
        (lambda x, ids: keep_min_p(x, 0.1), transformers.MinPLogitsWarper(0.1)),
        (lambda x, ids: penalise_repetition(x, ids, 1.7), transformers.RepetitionPenaltyLogitsProcessor(1.7)),
        (lambda x, ids: forbid_repeated_ngrams(x, ids, 2), transformers.NoRepeatNGramLogitsProcessor(2)),
        (lambda x, ids: forbid_repeated_ngrams(x, ids, 3), transformers.NoRepeatNGramLogitsProcessor(3)),
    ],
    ids=["top_k", "top_p", "top_p tiny", "min_p", "repetition", "bigram", "trigram"],
)
def test_as_transformers_does(ours, theirs):
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        logits = 3 * torch.randn(6, 30, generator=generator)
        ids = torch.randint(0, 4, (6, 12), generator=generator)
        torch.testing.assert_close(ours(logits, ids), theirs(ids, logits.clone()))


def test_the_order_is_that_of_transformers(monkeypatch):
    """Penalties, temperature, top-k, top-p, min-p: the distribution that is drawn from at the end is the same."""
    drawn_from = []
    monkeypatch.setattr("baselines.scratch.sampling.draw", lambda logits, uniform: drawn_from.append(logits))
    sampling = Sampling(1.7, 12, 0.8, 0.05, repetition_penalty=1.3, no_repeat_ngram_size=2)
    logits = 3 * torch.randn(6, 30, generator=torch.Generator().manual_seed(0))
    logits[:, NEVER_WRITTEN] = -math.inf
    ids = torch.randint(3, 9, (6, 9), generator=torch.Generator().manual_seed(1))
    choose(penalise(logits, ids, sampling), sampling, torch.zeros(6))
    expected = logits
    for processor in (
        transformers.RepetitionPenaltyLogitsProcessor(1.3), transformers.NoRepeatNGramLogitsProcessor(2),
        transformers.TemperatureLogitsWarper(1.7), transformers.TopKLogitsWarper(12),
        transformers.TopPLogitsWarper(0.8), transformers.MinPLogitsWarper(0.05),
    ):  # fmt: skip
        expected = processor(ids, expected)
    torch.testing.assert_close(drawn_from[0].softmax(-1), expected.softmax(-1))


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([[0.1, 0.0, 0.6, 0.3]])
    at = [0.0, 0.099, 0.101, 0.699, 0.701, 1 - 1e-12]
    assert draw(probabilities.log().expand(6, 4), torch.tensor(at, dtype=torch.float64)).tolist() == [0, 0, 2, 2, 3, 3]
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = draw(probabilities.log().expand(20000, 4), uniform).bincount(minlength=4) / 20000
    assert share.tolist() == pytest.approx([0.1, 0.0, 0.6, 0.3], abs=0.01)


def test_temperature_by_hand():
    logits = torch.tensor([[0.0, math.log(3)]])
    assert choose(logits, Sampling(), None).tolist() == [1]
    for temperature, share in ((1.0, 1 / 4), (0.5, 1 / 10)):
        below, above = torch.tensor([share - 1e-6]), torch.tensor([share + 1e-6])
        assert choose(logits, Sampling(temperature), below).tolist() == [0]
        assert choose(logits, Sampling(temperature), above).tolist() == [1]


class Chain:
    """A session whose next token depends on the last one alone: a table of probabilities to look answers up in."""

    def __init__(self, table: torch.Tensor, texts: int = 1):
        self.log_table_VV = table.log()
        self.last = torch.full((texts,), 4)

    def next_logits(self):
        return self.log_table_VV[self.last]

    def add(self, ids):
        self.last = ids

    def keep(self, rows):
        self.last = self.last[rows]


def table_of(seed: int) -> torch.Tensor:
    """Probabilities among EOS (3) and three words (4, 5, 6)."""
    table = torch.rand(7, 7, generator=torch.Generator().manual_seed(seed)) ** 3
    table[:, :EOS] = 0
    table[:, EOS] /= 5
    return table / table.sum(-1, keepdim=True)


def best_of_all(table: torch.Tensor, length: int, length_penalty: float) -> list[int]:
    answers = []
    for size in range(1, length + 1):
        for words in itertools.product((4, 5, 6), repeat=size - 1):
            for last in (EOS,) if size < length else (EOS, 4, 5, 6):
                answer = [*words, last]
                log_p = sum(table[a, b].log().item() for a, b in itertools.pairwise([4, *answer]))
                answers.append((log_p / len(answer) ** length_penalty, answer))
    return max(answers)[1]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_beams_enough_for_every_answer_find_the_best(length_penalty):
    found = set()
    for seed in range(20):
        expected = best_of_all(table_of(seed), 4, length_penalty)
        sampling = Sampling(num_beams=108, length_penalty=length_penalty)
        assert beam_search(Chain(table_of(seed)), [4], sampling) == [expected]
        found.add(tuple(expected))
    assert len(found) > 2


def test_two_beams_see_past_what_greedy_takes():
    table = torch.zeros(7, 7)
    table[4, 5], table[4, 6] = 0.6, 0.4
    table[5, EOS], table[5, 4], table[5, 5] = 0.4, 0.3, 0.3
    table[6, EOS] = 1.0
    assert write_one_each(Chain(table), [2], Sampling()) == [[5, EOS]]  # 0.24
    assert beam_search(Chain(table), [2], Sampling(num_beams=2)) == [[6, EOS]]  # 0.4


def test_one_beam_is_greedy_and_texts_do_not_mix():
    table = table_of(5)
    most = [5, 1, 0, 3]
    alone = [write_one_each(Chain(table), [n], Sampling())[0] for n in most]
    assert write_one_each(Chain(table, 4), most, Sampling()) == alone
    assert beam_search(Chain(table, 4), most, Sampling(num_beams=1)) == alone
    assert [len(answer) for answer in alone] == [5, 1, 0, 3]


def test_a_seed_gives_the_same_answers_and_another_gives_others():
    answers = [write_one_each(Chain(table_of(0), 8), [9] * 8, Sampling(1.0, seed=seed)) for seed in (0, 0, 100)]
    assert answers[0] == answers[1] != answers[2]
    assert len({tuple(answer) for answer in answers[0]}) > 2
    assert write_one_each(Chain(table_of(0)), [9], Sampling(1.0, seed=0)) == answers[0][:1]  # whatever else is asked


def test_penalties_reach_the_answers():
    table = torch.zeros(7, 7)
    table[:, 5], table[:, 6], table[:, EOS] = 0.6, 0.3, 0.1
    for search in (write_one_each, beam_search):
        assert search(Chain(table), [4], Sampling(no_repeat_ngram_size=1)) == [[5, 6, EOS]]
        runs = search(Chain(table), [8], Sampling(no_repeat_ngram_size=2))[0]
        assert len(set(itertools.pairwise(runs))) == len(runs) - 1
    assert write_one_each(Chain(table), [3], Sampling(repetition_penalty=9.0)) == [[5, 6, EOS]]


def test_padding_is_never_written():
    table = torch.full((7, 7), 0.01)
    table[:, PAD] = 0.9
    assert PAD not in write_one_each(Chain(table), [5], Sampling())[0]
    assert len(write_one_each(Chain(table), [5], Sampling(1.0))[0]) > 0


@pytest.mark.parametrize(
    "sampling, message",
    [
        (Sampling(temperature=-1), "temperature is -1 and must be at least 0"),
        (Sampling(1, top_p=0), "top_p is 0 and must be above 0 and at most 1"),
        (Sampling(1, top_k=0), "top_k is 0 and must be at least 1"),
        (Sampling(top_k=5), "top_k is 5 and temperature is 0, which draws nothing; set it above 0"),
        (Sampling(0.5, num_beams=4), "num_beams is 4 and temperature is 0.5: beam search draws nothing"),
        (Sampling(repetition_penalty=0), "repetition_penalty is 0 and must be above 0"),
        (Sampling(repetition_penalty=math.inf), "repetition_penalty is inf and must be above 0"),
        (Sampling(math.inf), "temperature is inf and must be at least 0"),
        (Sampling(math.nan), "temperature is nan and must be at least 0"),
        (Sampling(1, top_p=1.01), "top_p is 1.01 and must be above 0 and at most 1"),
        (Sampling(1, min_p=0), "min_p is 0 and must be above 0 and at most 1"),
        (Sampling(1, min_p=1.01), "min_p is 1.01 and must be above 0 and at most 1"),
        (Sampling(1, no_repeat_ngram_size=0), "no_repeat_ngram_size is 0 and must be at least 1"),
        (Sampling(num_beams=0), "num_beams is 0 and must be at least 1"),
        (Sampling(top_p=0.5), "top_p is 0.5 and temperature is 0, which draws nothing; set it above 0"),
        (Sampling(min_p=0.5), "min_p is 0.5 and temperature is 0, which draws nothing; set it above 0"),
        (Sampling(0.5, num_beams=2), "num_beams is 2 and temperature is 0.5: beam search draws nothing"),
    ],
)
def test_values_that_cannot_work(sampling, message):
    assert list(sampling.problems()) == [message]


def test_values_at_their_limits_work():
    for sampling in (Sampling(0.7, 5, 0.9, 0.1, 1.2, 3), Sampling(1e-9, 1, 1.0, 1.0, 1e-9, 1), Sampling(num_beams=1),
                     Sampling(num_beams=2), Sampling(1.0, num_beams=1), Sampling()):  # fmt: skip
        assert not list(sampling.problems()), sampling
    several = Sampling(-1, 0, 2, 2, -1, 0, 0)
    assert [problem.split()[0] for problem in several.problems()] == [
        "temperature", "top_p", "min_p", "top_k", "no_repeat_ngram_size", "num_beams", "repetition_penalty"
    ]  # fmt: skip


def test_equally_likely_tokens_are_kept_in_the_order_of_their_ids():
    assert left(keep_top_p(torch.zeros(1, 4096), 0.5)) == list(range(2048))


@pytest.mark.parametrize("variant", ["as_published", "causal", "seq2seq"])
@pytest.mark.parametrize("beams", [1, 2])
def test_each_prompt_has_the_room_that_is_left_to_it(variant, beams, monkeypatch):
    """And all must fit: of several prompts the longest is looked at."""
    asked = []
    for kind in ("Cached", "Recomputed"):
        monkeypatch.setattr(generation, kind, lambda *given, kind=kind: (kind, *given[1:]))
    for search in ("beam_search", "write_one_each"):
        monkeypatch.setattr(generation, search, lambda *given, search=search: asked.append((search, *given)))
    monkeypatch.setattr(generation, "lay_out", lambda prompt, answer, variant: SimpleNamespace(ids=[0, *prompt]))
    model = SimpleNamespace(config=SimpleNamespace(variant=variant), position_limit=9)
    prompts, sampling = [[1] * 3, [1] * 8, [1] * 5], Sampling(num_beams=beams)
    generation.write(model, prompts, 4, sampling)
    session = ("Recomputed", prompts) if variant == "as_published" else ("Cached", prompts, 4)
    assert asked == [("beam_search" if beams == 2 else "write_one_each", session, [4, 0, 3], sampling)]
    for place in range(3):
        with pytest.raises(UserError):
            generation.write(model, [[1] * (9 if each == place else 2) for each in range(3)], 4, sampling)
