"""The losses against values worked out by hand."""

import math

import pytest
import torch

from baselines.scratch.losses import (
    IGNORED,
    Objective,
    cross_entropy,
    next_token_pairs,
    smoothed_cross_entropy,
    unlikelihood,
)

LOGITS = torch.tensor([[math.log(1), math.log(2), math.log(5)], [0.0, 0.0, 0.0]])  # 1/8, 2/8, 5/8 and thirds


def test_cross_entropy_by_hand():
    assert cross_entropy(LOGITS, torch.tensor([1, 2])).tolist() == pytest.approx([-math.log(2 / 8), math.log(3)])


def test_only_supervised_positions_are_paired():
    hidden = torch.arange(10.0).view(2, 5, 1)
    labels = torch.tensor([[IGNORED, IGNORED, 7, 8, IGNORED], [IGNORED, 9, IGNORED, IGNORED, 6]])
    picked, next_tokens, texts = next_token_pairs(hidden, labels)
    assert picked.flatten().tolist() == [1.0, 2.0, 5.0, 8.0]
    assert next_tokens.tolist() == [7, 8, 9, 6]
    assert texts.tolist() == [0, 0, 1, 1]


def test_no_token_of_a_vocabulary_is_the_one_that_is_ignored():
    labels = torch.arange(300)[None]
    _, next_tokens, _ = next_token_pairs(torch.zeros(1, 300, 1), labels)
    assert next_tokens.tolist() == list(range(1, 300)) and IGNORED == -100


def test_padding_changes_no_loss():
    logits = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[IGNORED, 3, 1, 4, IGNORED, IGNORED]])
    for length in (4, 6):
        pairs = next_token_pairs(logits[:, :length], labels[:, :length])
        loss = Objective(0.1, 1.0)(*pairs)
        assert loss.shape == (3,)
        torch.testing.assert_close(loss, Objective(0.1, 1.0)(*next_token_pairs(logits, labels)))


def test_label_smoothing_by_hand():
    mean = -(math.log(1 / 8) + math.log(2 / 8) + math.log(5 / 8)) / 3
    loss = smoothed_cross_entropy(LOGITS, torch.tensor([1, 2]), 0.3)
    assert loss.tolist() == pytest.approx([0.7 * -math.log(2 / 8) + 0.3 * mean, math.log(3)])
    expected = torch.nn.functional.cross_entropy(LOGITS, torch.tensor([1, 2]), label_smoothing=0.3, reduction="none")
    torch.testing.assert_close(loss, expected)


def test_unlikelihood_by_hand():
    """Candidates: the earlier labels of the same text, once each, without the label of this token."""
    logits = LOGITS[:1].expand(6, 3)
    labels, texts = torch.tensor([0, 2, 0, 1, 2, 2]), torch.tensor([0, 0, 0, 0, 1, 1])
    not_0, not_2 = -math.log(7 / 8), -math.log(3 / 8)
    expected = [0, not_0, not_2, not_0 + not_2, 0, 0]
    assert unlikelihood(logits, labels, texts).tolist() == pytest.approx(expected)


def test_unlikelihood_is_finite_where_the_model_is_sure_and_lowers_what_was_written():
    logits = torch.tensor([[0.0, 0.0, 0.0], [60.0, 0.0, 0.0]], requires_grad=True)
    loss = unlikelihood(logits, torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert loss.tolist() == pytest.approx([0, -math.log(1e-6)], rel=1e-4)
    logits = torch.zeros(2, 3, requires_grad=True)
    unlikelihood(logits, torch.tensor([0, 1]), torch.tensor([0, 0])).sum().backward()
    assert not logits.grad[0].any() and logits.grad[1, 0] > 0 and (logits.grad[1, 1:] < 0).all()


def test_the_objective_adds_them_up():
    labels, texts = torch.tensor([1, 2]), torch.tensor([0, 0])
    expected = smoothed_cross_entropy(LOGITS, labels, 0.1) + 0.5 * unlikelihood(LOGITS, labels, texts)
    torch.testing.assert_close(Objective(0.1, 0.5)(LOGITS, labels, texts), expected)
    torch.testing.assert_close(Objective()(LOGITS, labels, texts), cross_entropy(LOGITS, labels))
