"""Rows end to end: what is joined, and that losses and gradients are those of each row alone."""

import copy
import itertools

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from finllm.cpu import joined
from finllm.cpu.joined import join
from finllm.text.tokens import IGNORED

PROMPT = [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]


def row(prompt: list[int], response: list[int]) -> dict[str, list[int]]:
    return {"input_ids": prompt + response, "labels": [IGNORED] * len(prompt) + response}


def test_what_rows_begin_with_in_common_stands_once():
    batch = join([row([*PROMPT, 1, 2], [5, 6]), row([*PROMPT, 3], [7]), row([9, 8], [4, 4, 4])])
    assert batch["input_ids"].tolist() == [[*PROMPT, 1, 2, 5, 6, 3, 7, 9, 8, 4, 4, 4]]
    assert batch["position_ids"].tolist() == [[*range(10), 10, 11, 12, 13, 10, 11, 0, 1, 2, 3, 4]]
    assert batch["rows"].tolist() == [[*[-1] * 10, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2]]
    assert batch["labels"].tolist() == [[*[IGNORED] * 12, 5, 6, IGNORED, 7, IGNORED, IGNORED, 4, 4, 4]]
    assert batch["parts"].tolist() == [[0, 0, 0, 10], [0, 10, 10, 14], [0, 10, 14, 16], [0, 0, 16, 21]]
    assert batch["lengths"].tolist() == [14, 12, 5]


def test_the_token_that_predicts_the_first_supervised_one_is_never_shared():
    same = row(PROMPT, [5, 6])
    assert join([same, same])["parts"].tolist() == [[0, 0, 0, 9], [0, 9, 9, 12], [0, 9, 12, 15]]
    learned = {"input_ids": PROMPT, "labels": PROMPT}  # the prompt is learned too: each row keeps its own
    assert join([learned, learned])["parts"].tolist() == [[0, 0, 0, 10], [0, 0, 10, 20]]
    assert join([learned])["labels"].tolist() == [[IGNORED, *PROMPT[1:]]]


@pytest.mark.parametrize("order", [*itertools.permutations([[5, 1, 3], [5, 2, 3], [6, 3, 3], [4, 3, 3]], 3)])
def test_in_whatever_order_rows_come_what_all_of_them_share_stands_once(order):
    """Two rows share the 5; any other two or three share the ten tokens before it and no more."""
    batch = join([row([*PROMPT, *more], [7]) for more in order])
    assert batch["parts"].tolist() == [[0, 0, 0, 10], [0, 10, 10, 14], [0, 10, 14, 18], [0, 10, 18, 22]]


def test_documents_of_a_packed_row_are_parts_of_one_row():
    packed = {"input_ids": [1, 2, 3, 4, 5], "labels": [IGNORED, 2, 3, IGNORED, 5], "seq_lengths": [3, 2]}
    batch = join([packed])
    assert batch["parts"].tolist() == [[0, 0, 0, 3], [0, 0, 3, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["rows"].tolist() == [[0] * 5] and batch["lengths"].tolist() == [5]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_losses_and_gradients_are_those_of_separate_rows(family, gpt2_dir, llama_dir):
    model = AutoModelForCausalLM.from_pretrained(gpt2_dir if family == "gpt2" else llama_dir).double().eval()
    rows = [row([*PROMPT, *range(30, 30 + n)], [3, 1, 4, 1, 5, 9, 2, 6][: 2 + n]) for n in range(6)] + [row([7], [8])]
    alone = copy.deepcopy(model)
    separate = []
    for one in rows:
        ids = torch.tensor([one["input_ids"]])
        labels = torch.tensor(one["labels"][1:])
        nll = cross_entropy(alone(ids).logits[0, :-1], labels, ignore_index=IGNORED, reduction="sum")
        nll.backward()
        separate.append(nll.item())

    model.set_attn_implementation(joined.NAME)
    batch = join(rows)
    assert batch["input_ids"].shape[1] < sum(len(one["input_ids"]) for one in rows) - 40
    logits = model(
        batch["input_ids"], position_ids=batch["position_ids"], parts=batch["parts"], use_cache=False
    ).logits[0, :-1]
    labels, rows_of = batch["labels"][0, 1:], batch["rows"][0, 1:]
    supervised = labels != IGNORED
    nll_N = cross_entropy(logits[supervised], labels[supervised], reduction="none")
    nll_N.sum().backward()
    for index, nll in enumerate(separate):
        assert nll_N[rows_of[supervised] == index].sum().item() == pytest.approx(nll, rel=1e-9)
    for (name, ours), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)  # some norms are float32


def test_a_window_over_the_past_is_not_joined(llama_dir):
    model = AutoModelForCausalLM.from_pretrained(llama_dir)
    assert joined.can_join(model)
    model.config.sliding_window = 4
    assert not joined.can_join(model)


def test_what_fills_up_is_seen_by_nobody_and_teaches_nothing(gpt2_dir):
    rows = [{"input_ids": [7, 8, 9, 3], "labels": [-100, -100, 9, 3]}, {"input_ids": [5, 6], "labels": [-100, 6]}]
    plain, filled = join(rows), join(rows, multiple=16)
    assert filled["input_ids"].shape == (1, 16) and plain["input_ids"].shape == (1, 6)
    assert filled["parts"].tolist() == [*plain["parts"].tolist(), [0, 0, 6, 16]]
    assert filled["labels"][0, 6:].tolist() == [-100] * 10 and filled["rows"][0, 6:].tolist() == [-1] * 10
    assert torch.equal(filled["lengths"], plain["lengths"])
    assert torch.equal(join(rows, multiple=6)["input_ids"], plain["input_ids"])
