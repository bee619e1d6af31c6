"""What rows become when they are joined: all of it, beside a slow way to it, and filled up where AMX makes products."""

import random

import pytest
import torch

from finllm.cpu import joined
from finllm.cpu.joined import attend, collate, join

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
