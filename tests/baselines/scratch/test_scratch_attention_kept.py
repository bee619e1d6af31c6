"""Attention that knows positions, and keys of texts that are kept: against the formula, head by head."""

import math

import pytest
import torch

from baselines.scratch.attention import Keys, KeyValueCache, MultiHeadAttention, Visible, attend_fast, attend_plain
from baselines.scratch.positional import Rotation


def turned(vector: list[float], position: int) -> list[float]:
    """Su et al. 2021, eq. 34, of one head's vector."""
    found = []
    for pair in range(0, len(vector), 2):
        angle = position / 10000 ** (pair / len(vector))
        x, y = vector[pair : pair + 2]
        found += [x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)]
    return found


def by_hand(attention, x_TC, memory_SC, width, query_positions, key_positions):
    """Each head's softmax over the scores of turned queries and keys; values stay as they are."""
    q, k, v = (layer(x).tolist() for layer, x in ((attention.query, x_TC), (attention.key, memory_SC),
                                                  (attention.value, memory_SC)))  # fmt: skip
    rows = []
    for t, query in enumerate(q):
        row = []
        for head in range(0, len(query), width):
            own = turned(query[head : head + width], query_positions[t])
            others = [turned(key[head : head + width], at) for key, at in zip(k, key_positions, strict=True)]
            scores = [sum(a * b for a, b in zip(own, other, strict=True)) / math.sqrt(width) for other in others]
            shares = torch.tensor(scores).softmax(0).tolist()
            row += [sum(s * value[head + d] for s, value in zip(shares, v, strict=True)) for d in range(width)]
        rows.append(row)
    return attention.output(torch.tensor(rows))


@torch.no_grad()
@pytest.mark.parametrize(("turns_queries", "turns_keys"), [(True, True), (False, True), (True, False), (False, False)])
def test_queries_and_keys_are_turned_each_by_its_own_positions_and_values_are_not(turns_queries, turns_keys):
    torch.manual_seed(0)
    attention = MultiHeadAttention(12, 3)
    x, memory = torch.randn(1, 2, 12), torch.randn(1, 5, 12)
    queries, keys = ([3, 11] if turns_queries else [0, 0]), ([9, 2, 0, 5, 7] if turns_keys else [0] * 5)
    own = Rotation.at(torch.tensor([queries]), 4) if turns_queries else None
    others = Rotation.at(torch.tensor([keys]), 4) if turns_keys else None
    found = attention(x, Keys(*attention.keys_of(memory, others), Visible()), own)
    expected = by_hand(attention, x[0], memory[0], 4, queries, keys)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_keys_of_some_texts_in_another_order_see_what_they_saw(causal):
    k, v = torch.arange(12.0).view(3, 1, 2, 2), 100 + torch.arange(12.0).view(3, 1, 2, 2)
    keys_BS, rows = torch.tensor([[True, True], [True, False], [False, True]]), torch.tensor([2, 0, 2])
    for visible in (None, keys_BS):
        kept = Keys(k, v, Visible(causal, visible)).keep(rows)
        assert torch.equal(kept.k_BHSD, k[rows]) and torch.equal(kept.v_BHSD, v[rows])
        assert kept.visible.causal is causal
        assert kept.visible.keys_BS is None if visible is None else torch.equal(kept.visible.keys_BS, keys_BS[rows])


def test_every_key_is_seen_unless_it_is_said():
    assert Visible() == Visible(causal=False, keys_BS=None)
    q, v = torch.zeros(1, 1, 2, 1), torch.tensor([2.0, 4.0]).view(1, 1, 2, 1)
    for attend in (attend_plain, attend_fast):
        assert attend(q, Keys(torch.zeros(1, 1, 2, 1), v, Visible())).flatten().tolist() == [3.0, 3.0]


def test_a_cache_gives_back_all_tokens_so_far_and_no_room():
    cache = KeyValueCache(torch.full((2, 1, 5, 1), -1.0), torch.full((2, 1, 5, 1), -1.0))
    first, second = torch.tensor([1.0, 2.0]).view(1, 1, 2, 1).expand(2, 1, 2, 1), torch.full((2, 1, 1, 1), 3.0)
    cache.append(first, 10 * first)
    k, v = cache.append(second, 10 * second)
    assert k[:, 0, :, 0].tolist() == [[1.0, 2.0, 3.0]] * 2 and v[:, 0, :, 0].tolist() == [[10.0, 20.0, 30.0]] * 2
    assert cache.length == 3
