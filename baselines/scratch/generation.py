"""Answers, token by token: greedy, drawn, or by beam search. Shapes: see model.py; X texts in all, B x K with beams.

A session holds texts being written: `next_logits`, `add` a token to each (PAD to one that has ended), `keep` some of
them. There are two: `Cached` reads each token once; `Recomputed` reads everything anew at every step, which is all that
a bidirectional model can do, for there a new token changes what every earlier one is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from baselines.scratch.data import collate, lay_out, padded
from baselines.scratch.model import Transformer
from baselines.scratch.positional import check_length
from baselines.scratch.sampling import Sampling, choose, penalise
from baselines.scratch.tokenizer import EOS, PAD


class Cached:
    """Prompts are read once, padded on the right; then each step reads one new token of each text and finds the others
    in the cache, where the padding stays hidden:

        bos What is a bond ? pad pad │ A  bond is         positions of the new tokens: 6, 7, 8
        bos How do I begin to save ? │ By setting aside                                 8, 9, 10

    seq2seq: the encoder reads the prompt, and each text is a bos to begin with.
    """

    def __init__(self, model: Transformer, prompts: Sequence[list[int]], room: int):
        """Texts after `prompts`, each begun by BOS, with room for this many new tokens."""
        self.model, device = model, model.tokens.weight.device
        ids_BT, _, source_BS = collate([lay_out(prompt, [], model.config.variant) for prompt in prompts], device)
        self.prompt = model.read(source_BS)
        self.lengths_B = (ids_BT != PAD).sum(dim=-1)
        self.longest, self.added = ids_BT.shape[1], 0
        columns_1S = torch.arange(self.longest + room, device=device)[None]
        self.visible_BS = (columns_1S < self.lengths_B[:, None]) | (columns_1S >= self.longest)
        self.caches = model.empty_caches(len(prompts), self.longest + room)
        hidden_BTC = model.hidden(ids_BT, self.prompt, self.caches)
        self.hidden_BC = hidden_BTC[torch.arange(len(prompts), device=device), self.lengths_B - 1]

    def next_logits(self) -> torch.Tensor:
        return self.model.logits(self.hidden_BC)

    def add(self, ids_B: torch.Tensor) -> None:
        # A text that has ended is read on with the others, and what comes of it is left: its position may stand still.
        ids_B1, last = ids_B.to(self.lengths_B.device)[:, None], self.model.position_limit - 1
        positions_B1 = (self.lengths_B + self.added).clamp(max=last)[:, None]
        self.added += 1
        visible_BS = self.visible_BS[:, : self.longest + self.added]
        hidden_B1C = self.model.hidden_of_next(ids_B1, positions_B1, self.caches, visible_BS, self.prompt)
        self.hidden_BC = hidden_B1C[:, 0]

    def keep(self, rows: torch.Tensor) -> None:
        self.lengths_B, self.visible_BS, self.hidden_BC = (
            held[rows] for held in (self.lengths_B, self.visible_BS, self.hidden_BC)
        )
        for cache in self.caches:
            cache.keep(rows)
        if self.prompt is not None:
            self.prompt = [keys.keep(rows) for keys in self.prompt]


class Recomputed:
    """The texts as they are, read whole at every step; of seq2seq the prompt is read once all the same."""

    def __init__(self, model: Transformer, prompts: Sequence[list[int]], written: Sequence[list[int]] | None = None):
        """Texts after `prompts`, each begun by BOS, of which `written` may stand there already."""
        self.model, self.device = model, model.tokens.weight.device
        pairs = zip(prompts, written or [[]] * len(prompts), strict=True)
        examples = [lay_out(prompt, response, model.config.variant) for prompt, response in pairs]
        self.texts = [example.ids for example in examples]
        self.prompt = model.read(collate(examples, self.device)[2])

    def next_logits(self) -> torch.Tensor:
        ids_BT = padded(self.texts, PAD, self.device)
        ends_B = (ids_BT != PAD).sum(dim=-1) - 1
        hidden_BTC = self.model.hidden(ids_BT, self.prompt)
        return self.model.logits(hidden_BTC[torch.arange(len(ends_B), device=self.device), ends_B])

    def add(self, ids_B: torch.Tensor) -> None:
        for text, id in zip(self.texts, ids_B.tolist(), strict=True):
            text += [id] if id != PAD else []

    def keep(self, rows: torch.Tensor) -> None:
        self.texts = [list(self.texts[row]) for row in rows.tolist()]
        if self.prompt is not None:
            self.prompt = [keys.keep(rows) for keys in self.prompt]


@torch.inference_mode()
def write(
    model: Transformer,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008
) -> list[list[int]]:
    """What the model writes after each prompt: up to and with its EOS, or until `max_new_tokens` or its last position.

    Prompts begin with BOS. One that is longer than the positions a model has learned is a `UserError`.
    """
    starts = [len(lay_out(prompt, [], model.config.variant).ids) for prompt in prompts]
    check_length(max(starts), model.position_limit)
    most = [int(max(0, min(max_new_tokens, model.position_limit - start))) for start in starts]
    if model.config.variant == "as_published":
        session = Recomputed(model, prompts)
    else:
        session = Cached(model, prompts, max(most))
    if sampling.num_beams > 1:
        return beam_search(session, most, sampling)
    return write_one_each(session, most, sampling)


def write_one_each(session: Cached | Recomputed, most: list[int], sampling: Sampling) -> list[list[int]]:
    """Greedy or drawn answers of at most this many tokens each. Text n draws from a generator seeded seed + n."""
    generators = [torch.Generator().manual_seed(sampling.seed + number) for number in range(len(most))]
    uniform_BT = torch.stack([torch.rand(max(most), generator=g, dtype=torch.float64) for g in generators])
    most_B, written_BT = torch.tensor(most), torch.empty(len(most), 0, dtype=torch.int64)
    ended_B = most_B == 0
    while not ended_B.all():
        logits_BV = session.next_logits()
        step, device = written_BT.shape[1], logits_BV.device
        logits_BV = penalise(logits_BV, written_BT.to(device), sampling)
        next_B = choose(logits_BV, sampling, uniform_BT[:, step].to(device)).cpu().masked_fill(ended_B, PAD)
        written_BT = torch.cat((written_BT, next_B[:, None]), dim=1)
        ended_B = ended_B | (next_B == EOS) | (step + 1 >= most_B)
        if not ended_B.all():
            session.add(next_B)
    return _unpadded(written_BT)


def beam_search(session: Cached | Recomputed, most: list[int], sampling: Sampling) -> list[list[int]]:
    """The best of K = `num_beams` answers kept at every step (Sutskever et al. 2014, section 3.2).

    A step extends each of K answers by every token and keeps the K whose summed log-probability is highest; one that
    has ended stands among them with its sum. The best at the end has the highest sum / length^`length_penalty`.
    """
    beams = sampling.num_beams
    first_B1 = torch.arange(len(most))[:, None] * beams  # where the K beams of each text begin
    session.keep(first_B1.expand(-1, beams).flatten() // beams)
    sums_BK = torch.tensor([[0.0] + [-torch.inf] * (beams - 1)] * len(most))  # the same text K times: one counts
    most_X = torch.tensor(most).repeat_interleave(beams)
    written_XT = torch.empty(len(most_X), 0, dtype=torch.int64)
    ended_X = most_X == 0
    while not ended_X.all():
        logits_XV = penalise(session.next_logits().cpu().float(), written_XT, sampling)
        log_p_XV = logits_XV.log_softmax(dim=-1)
        log_p_XV[ended_X] = -torch.inf
        log_p_XV[ended_X, PAD] = 0.0  # an ended answer goes on with padding, at no cost
        vocabulary = log_p_XV.shape[1]
        sums_BK, best_BK = (sums_BK.flatten()[:, None] + log_p_XV).view(len(most), -1).topk(beams)
        rows_X = (first_B1 + best_BK // vocabulary).flatten()
        next_X = (best_BK % vocabulary).flatten()
        written_XT = torch.cat((written_XT[rows_X], next_X[:, None]), dim=1)
        ended_X = ended_X[rows_X] | (next_X == EOS) | (written_XT.shape[1] >= most_X)
        if not ended_X.all():
            session.keep(rows_X)
            session.add(next_X)
    lengths_BK = (written_XT != PAD).sum(dim=-1).clamp(min=1).view(len(most), beams)
    best_B = (sums_BK / lengths_BK**sampling.length_penalty).argmax(dim=-1)
    return _unpadded(written_XT[first_B1[:, 0] + best_B])


def _unpadded(written_BT: torch.Tensor) -> list[list[int]]:
    return [[id for id in row if id != PAD] for row in written_BT.tolist()]
