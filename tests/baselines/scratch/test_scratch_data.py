"""Examples, truncation and batches."""

import pytest
import torch

from baselines.scratch.data import (
    Example,
    batches_of_epoch,
    collate,
    encode_pair,
    encode_rows,
    lay_out,
    training_batches,
    truncate,
)
from baselines.scratch.tokenizer import Tokenizer
from finllm.text.prompts import build_prompt
from tests.baselines.scratch.conftest import rows_of


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([text for row in rows_of(1, 60) for text in row if text], 340)


def test_labels_as_literals(tokenizer):
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    pair = encode_pair(tokenizer, "ab", "bc")
    assert pair == ([2, a, b], [b, c, 3])
    for variant in ("as_published", "causal"):
        example = lay_out(*pair, variant)
        assert example == Example([2, a, b, b, c, 3], [-100, -100, -100, b, c, 3])
        assert (example.supervised, example.length, example.size) == (3, 6, (0, 6))
        assert lay_out(*pair, variant, loss_on_prompt=True).labels == [-100, a, b, b, c, 3]
    example = lay_out(*pair, "seq2seq")
    assert example == Example([2, b, c, 3], [-100, b, c, 3], [2, a, b])
    assert (example.supervised, example.length, example.size) == (3, 6, (3, 4))


def test_rows_go_through_the_one_template(tokenizer):
    (example,) = encode_rows(tokenizer, [{"instruction": "What?", "input": "This.", "output": "That."}], "causal")
    assert tokenizer.decode(example.ids) == build_prompt("What?", "This.") + "That."
    assert tokenizer.decode([id for id in example.labels if id != -100]) == "That."


def test_truncation_is_counted_and_nothing_without_a_label_is_kept():
    examples = [
        Example([2, 5, 6, 7, 3], [-100, -100, 6, 7, 3]),
        Example([2, 5, 6, 3], [-100, -100, 6, 3]),
        Example([2, 5, 5, 5, 5, 6, 3], [-100, -100, -100, -100, -100, 6, 3]),
    ]
    kept, cut, dropped = truncate(examples, 4)
    assert kept == [Example([2, 5, 6, 7], [-100, -100, 6, 7]), examples[1]]
    assert (cut, dropped) == (1, 1)


@pytest.mark.parametrize("max_length", range(1, 12))
def test_every_variant_learns_the_same_tokens_of_an_example_cut_short(max_length):
    pairs = [([2, 5, 6], [7, 8, 9, 3]), ([2, 5, 5, 5, 5], [3]), ([2, 5], [6, 7, 3])]
    learned = []
    for variant in ("causal", "seq2seq"):
        examples, *counts = truncate([lay_out(*pair, variant) for pair in pairs], max_length)
        assert all(max(example.size) <= max_length for example in examples)
        learned.append(([[id for id in example.labels if id != -100] for example in examples], counts))
    assert learned[0] == learned[1]


def test_every_example_once_an_epoch_within_the_token_limit():
    lengths = [10 + (7 * n) % 90 for n in range(1200)]
    sizes = [(0, length) for length in lengths]
    batches = batches_of_epoch(sizes, 1000, seed=3, epoch=0)
    assert sorted(index for batch in batches for index in batch) == list(range(1200))
    padded = [len(batch) * max(lengths[index] for index in batch) for batch in batches]
    assert max(padded) <= 1000
    assert sum(lengths) / sum(padded) > 0.95
    assert batches == batches_of_epoch(sizes, 1000, seed=3, epoch=0)
    assert batches != batches_of_epoch(sizes, 1000, seed=3, epoch=1)
    assert batches != batches_of_epoch(sizes, 1000, seed=4, epoch=0)
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest != sorted(longest)


def test_source_and_ids_fit_the_token_limit_together():
    sizes = [(5 + (11 * n) % 60, 10 + (7 * n) % 40) for n in range(600)]
    batches = batches_of_epoch(sizes, 1000, seed=3, epoch=0)
    assert sorted(index for batch in batches for index in batch) == list(range(600))
    padded = [len(batch) * sum(max(sizes[index][part] for index in batch) for part in (0, 1)) for batch in batches]
    assert max(padded) <= 1000
    assert sum(map(sum, sizes)) / sum(padded) > 0.8


def test_going_on_after_some_steps_gives_the_same_batches():
    lengths = [(0, length) for length in (10, 20, 30, 40, 50, 60)]
    whole = training_batches(lengths, 100, seed=0, steps_done=0)
    first = [next(whole) for _ in range(9)]
    later = training_batches(lengths, 100, seed=0, steps_done=5)
    assert [next(later) for _ in range(4)] == first[5:]
    per_epoch = len(batches_of_epoch(lengths, 100, seed=0, epoch=0))
    assert first[0][0] == 1 / per_epoch and first[per_epoch - 1][0] == 1.0


def test_collate_pads_on_the_right():
    cpu = torch.device("cpu")
    ids, labels, source = collate([Example([2, 9, 3], [-100, 9, 3]), Example([2, 3], [-100, 3])], cpu)
    assert ids.tolist() == [[2, 9, 3], [2, 3, 0]]
    assert labels.tolist() == [[-100, 9, 3], [-100, 3, -100]]
    assert source is None
    _, _, source = collate([Example([2, 3], [-100, 3], [2, 5]), Example([2, 3], [-100, 3], [2, 5, 6])], cpu)
    assert source.tolist() == [[2, 5, 0], [2, 5, 6]]
