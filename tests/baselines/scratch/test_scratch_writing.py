"""How answers are written: by which random numbers, in which format, on which device, and what is read for them."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from baselines.scratch import generation
from baselines.scratch.generation import Cached, Recomputed, beam_search, write_one_each
from baselines.scratch.sampling import Sampling
from baselines.scratch.tokenizer import EOS, PAD


class Session:
    """The next token depends on the last one alone, by a table of probabilities; what is added is counted."""

    def __init__(self, table: torch.Tensor, texts: int = 1, dtype: torch.dtype = torch.float32):
        self.logits_VV = table.log().to(dtype)
        self.last, self.added = torch.full((texts,), 4), 0

    def next_logits(self):
        return self.logits_VV[self.last]

    def add(self, ids):
        self.last, self.added = ids, self.added + 1

    def keep(self, rows):
        self.last = self.last[rows]


def table_of(seed: int) -> torch.Tensor:
    """Probabilities among EOS (3) and three words (4, 5, 6)."""
    table = torch.rand(7, 7, generator=torch.Generator().manual_seed(seed)) ** 3
    table[:, :EOS] = 0
    table[:, EOS] /= 5
    return table / table.sum(-1, keepdim=True)


def test_a_texts_numbers_are_those_of_its_own_seed():
    """Text n draws from a generator seeded seed + n, in float64, one number a token."""
    table, most = table_of(1), [6, 2, 0, 9]
    expected = []
    for number, length in enumerate(most):
        uniform = torch.rand(9, generator=torch.Generator().manual_seed(7 + number), dtype=torch.float64).tolist()
        answer = [4]
        while len(answer) <= length and answer[-1] != EOS:
            sums = table[answer[-1]].double().cumsum(0)
            answer.append(int((sums <= uniform[len(answer) - 1]).sum()))
        expected.append(answer[1:])
    assert write_one_each(Session(table, 4), most, Sampling(1.0, seed=7)) == expected
    assert len({tuple(answer) for answer in expected}) == 4


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(num_beams=3)])
def test_coarse_logits_are_summed_in_float32(seed, sampling):
    search = beam_search if sampling.num_beams > 1 else write_one_each
    table = table_of(seed)
    larger = 5 * torch.randn(7, 1, generator=torch.Generator().manual_seed(seed))  # logits are no log-probabilities
    coarse, fine = Session(table * larger.exp(), 2, torch.bfloat16), Session(table, 2)
    fine.logits_VV = coarse.logits_VV.float()
    assert search(coarse, [8, 5], sampling) == search(fine, [8, 5], sampling)


@pytest.mark.parametrize(("better", "worse"), [(5, 6), (6, 5)])
def test_beams_of_coarse_logits_are_held_against_each_other_in_float32(better, worse):
    """The end of an answer has -1.0645 after one token and -1.0748 after the other: in bfloat16 both are -1.0703."""
    session = Session(torch.zeros(7, 7), 1, torch.bfloat16)
    session.logits_VV[:, EOS] = 0.0
    session.logits_VV[4, 5:] = 20.0
    session.logits_VV[better, 4:], session.logits_VV[worse, 4:] = -0.45703125, -0.44140625
    assert beam_search(session, [2], Sampling(num_beams=2)) == [[better, EOS]]


@pytest.mark.parametrize("seed", range(10))
def test_beams_are_held_against_each_other_by_probabilities_and_not_by_logits(seed):
    """Logits may be larger after one token than after another, which says nothing."""
    table = table_of(seed)
    raised = Session(table, 2)
    raised.logits_VV = raised.logits_VV + 20 * torch.randn(7, 1, generator=torch.Generator().manual_seed(seed))
    sampling = Sampling(num_beams=3)
    assert beam_search(raised, [6, 4], sampling) == beam_search(Session(table, 2), [6, 4], sampling)


class Remembering(Session):
    """The next token depends on the last two: of a beam it must be known which one it goes on from."""

    def __init__(self, table_VVV):
        self.log_table_VVV, self.texts = table_VVV.log(), [[4, 4]]

    def next_logits(self):
        return torch.stack([self.log_table_VVV[text[-2], text[-1]] for text in self.texts])

    def add(self, ids):
        self.texts = [[*text, id] for text, id in zip(self.texts, ids.tolist(), strict=True)]

    def keep(self, rows):
        self.texts = [self.texts[row] for row in rows.tolist()]


@pytest.mark.parametrize("seed", range(10))
def test_each_beam_goes_on_from_what_it_has_written_itself(seed):
    table = torch.stack([table_of(100 * seed + first) for first in range(7)])
    answers = []
    for size in range(1, 5):
        for words in itertools.product((4, 5, 6), repeat=size - 1):
            for last in (EOS,) if size < 4 else (EOS, 4, 5, 6):
                text = [4, 4, *words, last]
                log_p = sum(table[tuple(text[at : at + 3])].log().item() for at in range(size))
                answers.append((log_p / size, text[2:]))
    assert beam_search(Remembering(table), [4], Sampling(num_beams=108)) == [max(answers)[1]]


class Reader:
    """A model that notes what it is asked to read."""

    config, tokens, position_limit = SimpleNamespace(variant="causal"), SimpleNamespace(weight=torch.zeros(1)), 99

    def read(self, source):
        return None

    def hidden(self, ids_BT, prompt):
        self.ids = ids_BT.tolist()
        return torch.arange(ids_BT.numel()).view(*ids_BT.shape, 1)

    def logits(self, hidden_BC):
        return hidden_BC


def test_texts_of_which_some_is_written_go_on_from_there():
    model = Reader()
    session = Recomputed(model, [[2, 5], [2]], [[6, 7], [8]])
    assert session.next_logits().flatten().tolist() == [3, 5]  # where each text ends, of rows of four
    assert model.ids == [[2, 5, 6, 7], [2, 8, PAD, PAD]]
    session.add(torch.tensor([PAD, 9]))
    assert session.next_logits().flatten().tolist() == [3, 6]
    assert model.ids == [[2, 5, 6, 7], [2, 8, 9, PAD]]
    assert Recomputed(model, [[2, 5], [2]]).texts == [[2, 5], [2]]


@pytest.mark.parametrize("search", [write_one_each, beam_search])
@pytest.mark.parametrize(("most", "added"), [([1], 0), ([4], 3), ([2, 5, 0], 4), ([0, 0], 0)])
def test_nothing_is_read_after_the_last_token(search, most, added):
    """Which of an answer's tokens are words is certain here: 5 after all, until there is no room."""
    table = torch.zeros(7, 7)
    table[:, 5] = 1.0
    session = Session(table, len(most))
    assert search(session, most, Sampling(num_beams=2)) == [[5] * length for length in most]
    assert session.added == added


def test_a_text_that_has_ended_ends_no_other():
    table = torch.zeros(7, 7)
    table[4, EOS] = table[5, 6] = table[6, 5] = 1.0
    for search in (write_one_each, beam_search):
        session = Session(table, 3)
        session.last = torch.tensor([4, 5, 6])
        assert search(session, [3, 3, 2], Sampling()) == [[EOS], [6, 5, 6], [5, 6]]
        assert session.added == 2


@pytest.mark.parametrize("length_penalty", [-1.0, -0.5, 0.0, 1.0, 3.0])
def test_more_beams_than_answers_change_nothing(length_penalty):
    """Of answers that cannot be, which fill the beams, none is best: also where long ones are made to lose."""
    table = torch.zeros(7, 7)
    table[:, EOS] = 1.0
    table[4, EOS], table[4, 5] = 0.4, 0.6
    scores = {(EOS,): 0.4, (5, EOS): 0.6}
    scores = {answer: torch.tensor(p).log() / len(answer) ** length_penalty for answer, p in scores.items()}
    best = max(scores, key=scores.get)
    for beams in (2, 3, 10, 40):
        sampling = Sampling(num_beams=beams, length_penalty=length_penalty)
        assert beam_search(Session(table), [3], sampling) == [list(best)]


def test_what_a_choice_is_made_of_lies_where_the_logits_lie(monkeypatch):
    """Answers are kept on the CPU."""
    seen = {}

    def penalise(logits, written, sampling):
        seen["written"] = written.device.type
        return logits

    def choose(logits, sampling, uniform):
        seen["uniform"] = uniform.device.type
        return torch.tensor([EOS, EOS])

    monkeypatch.setattr(generation, "penalise", penalise)
    monkeypatch.setattr(generation, "choose", choose)
    session = SimpleNamespace(next_logits=lambda: torch.empty(2, 7, device="meta"))
    assert write_one_each(session, [3, 3], Sampling()) == [[EOS], [EOS]]
    assert seen == {"written": "meta", "uniform": "meta"}


@pytest.mark.parametrize(("limit", "positions"), [(float("inf"), [5, 4, 9]), (10, [5, 4, 9]), (9, [5, 4, 8]),
                                                  (5, [4, 4, 4])])  # fmt: skip
def test_a_token_is_read_where_the_model_lies_at_the_next_position_that_there_is(limit, positions):
    """Only what has ended goes on beyond the last position: what comes of it is left."""
    asked = []

    def hidden_of_next(ids_B1, positions_B1, caches, visible_BS, prompt):
        asked.append((ids_B1, positions_B1.tolist(), caches, visible_BS.shape, prompt))
        return torch.ones(3, 1, 2)

    session = object.__new__(Cached)
    session.model = SimpleNamespace(position_limit=limit, hidden_of_next=hidden_of_next)
    session.lengths_B, session.longest, session.added = torch.tensor([3, 2, 7]), 7, 2
    session.visible_BS, session.caches, session.prompt = torch.ones(3, 12), "caches", "prompt"
    session.add(torch.tensor([5, 6, 4]))
    (ids_B1, *rest), = asked  # fmt: skip
    assert ids_B1.tolist() == [[5], [6], [4]]
    assert rest == [[[each] for each in positions], "caches", (3, 10), "prompt"]
    assert session.added == 3 and session.hidden_BC.tolist() == [[1.0, 1.0]] * 3


def test_a_token_is_read_on_the_device_of_the_texts():
    session, asked = object.__new__(Cached), []
    hidden_of_next = lambda ids_B1, *given: asked.append(ids_B1.device.type) or torch.ones(1, 1, 2)  # noqa: E731
    session.model = SimpleNamespace(position_limit=99, hidden_of_next=hidden_of_next)
    session.lengths_B, session.longest, session.added = torch.ones(1, dtype=torch.int64, device="meta"), 1, 0
    session.visible_BS, session.caches, session.prompt = torch.ones(1, 4), [], None
    session.add(torch.tensor([5]))
    assert asked == ["meta"]
