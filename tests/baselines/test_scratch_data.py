"""Examples, truncation and batches."""

import pytest
import torch

from baselines.scratch.data import (
    Example,
    batches_of_epoch,
    collate,
    encode_example,
    encode_rows,
    training_batches,
    truncate,
)
from baselines.scratch.tokenizer import Tokenizer
from finllm.prompts import build_prompt
from tests.baselines.conftest import rows_of


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([text for row in rows_of(1, 60) for text in row if text], 340)


def test_labels_as_literals(tokenizer):
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    example = encode_example(tokenizer, "ab", "bc")
    assert example == Example([2, a, b, b, c, 3], [-100, -100, -100, b, c, 3])
    assert example.supervised == 3
    assert encode_example(tokenizer, "ab", "bc", loss_on_prompt=True).labels == [-100, a, b, b, c, 3]


def test_rows_go_through_the_one_template(tokenizer):
    (example,) = encode_rows(tokenizer, [{"instruction": "What?", "input": "This.", "output": "That."}])
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


def test_every_example_once_an_epoch_within_the_token_limit():
    lengths = [10 + (7 * n) % 90 for n in range(1200)]
    batches = batches_of_epoch(lengths, 1000, seed=3, epoch=0)
    assert sorted(index for batch in batches for index in batch) == list(range(1200))
    padded = [len(batch) * max(lengths[index] for index in batch) for batch in batches]
    assert max(padded) <= 1000
    assert sum(lengths) / sum(padded) > 0.95
    assert batches == batches_of_epoch(lengths, 1000, seed=3, epoch=0)
    assert batches != batches_of_epoch(lengths, 1000, seed=3, epoch=1)
    assert batches != batches_of_epoch(lengths, 1000, seed=4, epoch=0)
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest != sorted(longest)


def test_going_on_after_some_steps_gives_the_same_batches():
    lengths = [10, 20, 30, 40, 50, 60]
    whole = training_batches(lengths, 100, seed=0, steps_done=0)
    first = [next(whole) for _ in range(9)]
    later = training_batches(lengths, 100, seed=0, steps_done=5)
    assert [next(later) for _ in range(4)] == first[5:]
    per_epoch = len(batches_of_epoch(lengths, 100, seed=0, epoch=0))
    assert first[0][0] == 1 / per_epoch and first[per_epoch - 1][0] == 1.0


def test_collate_pads_on_the_right():
    ids, labels = collate([Example([2, 9, 3], [-100, 9, 3]), Example([2, 3], [-100, 3])], torch.device("cpu"))
    assert ids.tolist() == [[2, 9, 3], [2, 3, 0]]
    assert labels.tolist() == [[-100, 9, 3], [-100, 3, -100]]
