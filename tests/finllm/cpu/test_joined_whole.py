"""What rows become when they are joined: all of it, beside a slow way to it, and filled up where AMX makes products."""

import random

import pytest
import torch

from finllm.cpu import joined
from finllm.cpu.joined import VIRTUAL, attend, collate, join

NO = -100  # no label
ONE, TWO = list(range(11, 21)), list(range(31, 41))  # two beginnings of ten tokens


def plain(batch):
    return {name: held.tolist() for name, held in batch.items()}


def row(ids, supervised):
    """Rows whose tokens from number `supervised` on are learned."""
    return {"input_ids": ids, "labels": [NO] * supervised + ids[supervised:]}


def test_two_groups_of_rows_that_are_filled_up():
    """The second prefix begins at token 14, and its readers' positions count from its own beginning."""
    rows = [row([*ONE, 1, 2], 11), row([*TWO, 3], 10), row([*ONE, 4, 5], 11), row([*TWO, 6], 10)]
    assert plain(join(rows, 16)) == {
        "input_ids": [[*ONE, 1, 2, 4, 5, *TWO[:9], 40, 3, 40, 6, *[0] * 5]],
        "labels": [[*[NO] * 11, 2, NO, 5, *[NO] * 10, 3, NO, 6, *[NO] * 5]],
        "position_ids": [[*range(10), 10, 11, 10, 11, *range(9), 9, 10, 9, 10, *range(5)]],
        "rows": [[*[-1] * 10, 0, 0, 2, 2, *[-1] * 9, 1, 1, 3, 3, *[-1] * 5]],
        "parts": [[0, 0, 0, 10], [0, 10, 10, 12], [0, 10, 12, 14], [0, 0, 14, 23], [14, 23, 23, 25], [14, 23, 25, 27],
                  [0, 0, 27, 32]],
        "lengths": [12, 11, 12, 11],
    }  # fmt: skip


def test_virtual_tokens_stand_before_each_beginning_and_are_counted_in_no_row():
    rows = [row([*ONE, 1, 2], 11), row([*TWO, 3], 10), row([*ONE, 4, 5], 11), row([8, 9], 1)]
    rows[3]["seq_lengths"] = [2]
    assert VIRTUAL == -1  # no token of any text
    three, none = [VIRTUAL] * 3, [NO] * 3
    assert plain(join(rows, 16, virtual=3)) == {
        "input_ids": [[*three, *ONE, 1, 2, 4, 5, *three, *TWO, 3, *three, 8, 9, *[0] * 12]],
        "labels": [[*none, *[NO] * 11, 2, NO, 5, *none, *[NO] * 10, 3, *none, NO, 9, *[NO] * 12]],
        "position_ids": [[*range(13), 13, 14, 13, 14, *range(14), *range(5), *range(12)]],
        "rows": [[*[-1] * 13, 0, 0, 2, 2, *[1] * 14, *[3] * 5, *[-1] * 12]],
        "parts": [[0, 0, 0, 13], [0, 13, 13, 15], [0, 13, 15, 17], [0, 0, 17, 31], [0, 0, 31, 36], [0, 0, 36, 48]],
        "lengths": [12, 11, 12, 2],
    }  # fmt: skip
    packed = [{"input_ids": [1, 2, 3], "labels": [NO, 2, 3], "seq_lengths": [2, 1]}]
    assert collate(packed, virtual=1)["input_ids"][0].tolist()[:5] == [VIRTUAL, 1, 2, VIRTUAL, 3]


@pytest.mark.parametrize("cached", [1, 20])
@pytest.mark.parametrize("length", [6, 1100])
def test_every_part_sees_the_keys_that_have_no_queries(cached, length):
    torch.manual_seed(0)
    rows = [row(list(range(length)), length - 1), row([*range(length - 2), 5, 6], length - 1)]
    batch = join(rows)
    heads, groups, width, tokens = 4, 2, 8, batch["input_ids"].shape[1]
    query = torch.randn(1, heads, tokens, width, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(1, groups, cached + tokens, width, dtype=torch.float64, requires_grad=True)
                  for _ in range(2))  # fmt: skip
    found, _ = attend(None, query, key, value, None, scaling=0.3, parts=batch["parts"])
    expected = torch.zeros(tokens, heads, width, dtype=torch.float64)
    for prefix_begin, prefix_end, begin, end in batch["parts"].tolist():
        for place in range(begin, end):
            seen = [*range(cached), *(cached + p for p in (*range(prefix_begin, prefix_end), *range(begin, place + 1)))]
            for head in range(heads) if length < 50 or place > end - 3 else ():
                weights = (0.3 * key[0, head // 2, seen] @ query[0, head, place]).softmax(0)
                expected[place, head] = weights @ value[0, head // 2, seen]
    looked_at = expected.abs().sum((1, 2)) > 0
    assert looked_at.sum() > 5 and torch.allclose(found[0][looked_at], expected[looked_at], atol=1e-12)
    weight = torch.randn_like(expected) * looked_at[:, None, None]
    for one, other in zip(*(torch.autograd.grad((each * weight).sum(), (query, key, value), retain_graph=True)
                            for each in (found[0], expected)), strict=True):  # fmt: skip
        assert torch.allclose(one, other, atol=1e-12)


def parts_of(*rows):
    return join(list(rows))["parts"].tolist()


@pytest.mark.parametrize(("first", "second", "shared"), [
    (row([*ONE, 7, 1, 2, 3], 13), row([*ONE, 7, 1, 2, 4], 13), 12),  # both learn their last token, of 12 before it
    (row([*ONE, 7, 1, 2, 3], 13), row([*ONE, 7, 8, 2, 3], 13), 11),  # they part where the next token would be the last
    (row([*ONE, 7, 1, 2, 3], 13), row([*ONE, 8, 1, 2, 3], 13), 10),
    (row([*ONE, 7, 1, 2, 3], 14), row([*ONE, 7, 1, 2, 3], 14), 13),  # nothing is learned: the last token is kept apart
    (row([*ONE, 7, 1, 2, 3], 12), row([*ONE, 7, 1, 2, 3], 13), 11),  # whoever learns first
    (row([*ONE, 7, 1, 2, 3], 13), row([*ONE, 7, 1, 2, 3], 12), 11),
    (row([*ONE, 7, 1, 2, 3, 9, 9], 15), row([*ONE, 7, 1], 11), 10),  # the shorter one, whether it learns
    (row([*ONE, 7, 1], 12), row([*ONE, 7, 1, 2, 3, 9, 9], 15), 11),  # or not
    (row([*ONE, 7], 2), row([*ONE, 7], 2), 1),
    (row([*ONE, 7], 1), row([*ONE, 7], 1), 0),
])  # fmt: skip
def test_how_much_two_rows_share(first, second, shared):
    lengths = [len(each["input_ids"]) - shared for each in (first, second)]
    middle = shared + lengths[0]
    own = [[0, shared, shared, middle], [0, shared, middle, middle + lengths[1]]]
    assert parts_of(first, second) == ([[0, 0, 0, shared], *own] if shared else own)


def test_a_label_of_the_first_token_is_predicted_of_nothing_and_hinders_no_sharing():
    labelled = {"input_ids": [*ONE, 7, 8], "labels": [11, *[NO] * 10, 8]}
    assert parts_of(labelled, labelled) == [[0, 0, 0, 10], [0, 10, 10, 12], [0, 10, 12, 14]]
    assert join([labelled, labelled])["labels"].tolist() == [[*[NO] * 11, 8, NO, 8]]


def test_rows_of_nothing_share_nothing():
    empty = {"input_ids": [], "labels": []}
    assert parts_of(empty, empty, row([5, 6], 1)) == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2]]


def test_whatever_rows_are_joined_each_reads_its_own_tokens_in_their_places():
    """Of random rows with many beginnings in common, packed and not."""
    draw = random.Random(0)
    for _ in range(60):
        documents = []
        for _ in range(draw.randint(1, 9)):
            begin = draw.choice([ONE, TWO, ONE[:9], [*ONE, 50, 51], [*ONE, 50]])
            ids = [*begin, *(draw.randint(50, 52) for _ in range(draw.randint(1, 5)))]
            documents.append(row(ids, draw.randint(1, len(ids))))
        packed = {name: [held for each in documents for held in each[name]] for name in ("input_ids", "labels")}
        packed["seq_lengths"] = [len(each["input_ids"]) for each in documents]
        for rows, owner in ((documents, list(range(len(documents)))), ([packed], [0] * len(documents))):
            batch = plain(join(rows, 8))
            (ids,), (labels,), (places,), (owners,) = (batch[name] for name in
                                                       ("input_ids", "labels", "position_ids", "rows"))  # fmt: skip
            found = []
            for prefix_begin, prefix_end, begin, end in batch["parts"]:
                held = [*range(prefix_begin, prefix_end), *range(begin, end)]
                assert [places[at] for at in held] == list(range(len(held)))
                if owners[begin] >= 0:
                    assert all(owners[at] == -1 for at in range(prefix_begin, prefix_end)) and end - begin >= 1
                    taught = [ids[at] if labels[at] != NO else NO for at in held]
                    found.append((owners[begin], [ids[at] for at in held], taught))
            expected = [(owner[number], each["input_ids"], [NO, *each["labels"][1:]])
                        for number, each in enumerate(documents)]  # fmt: skip
            assert sorted(found) == sorted(expected)
            assert len(ids) % 8 == 0 and batch["lengths"] == [len(each["input_ids"]) for each in rows]


@pytest.mark.parametrize(("amx", "filled"), [(True, 32), (False, 13)])
def test_a_batch_is_filled_up_to_32_tokens_for_amx_and_for_nothing_else(monkeypatch, amx, filled):
    monkeypatch.setattr(joined, "has_amx", lambda: amx)
    rows = [row([*ONE, 7, 8, 9], 11)]
    batch = plain(collate(rows))
    assert batch == plain(join(rows, filled)) and len(batch["input_ids"][0]) == filled
    assert batch["parts"] == [[0, 0, 0, 13]] + [[0, 0, 13, 32]] * amx


@pytest.mark.parametrize("name", ["sliding_window", "softcap", "s_aux", "position_bias"])
def test_an_attention_that_is_more_than_softmax_is_refused(name):
    query = torch.ones(1, 2, 3, 4)
    with pytest.raises(AssertionError, match="can_join"):
        attend(None, query, query, query, None, parts=torch.tensor([[0, 0, 0, 3]]), **{name: torch.ones(1)})
    with pytest.raises(AssertionError, match="batches of `join`"):
        attend(None, query, query, query, None)
    output, weights = attend(None, query, query, query, None, parts=torch.tensor([[0, 0, 0, 3]]))
    assert output.tolist() == torch.ones(1, 3, 2, 4).tolist() and weights is None
