"""Attention of joined rows in numpy's float64: short, long, grouped and scaled; and what may be joined at all."""

import types

import numpy as np
import pytest
import torch

from finllm.cpu import joined, kernels
from finllm.cpu.joined import UNSUPPORTED, attend, can_join, join


def reference(query, key, value, parts, scale):
    """Each token of a part over its prefix and its own part up to itself: (T, H, D)."""
    heads, length, width = query.shape
    per = heads // len(key)
    found = np.zeros((length, heads, width))
    for prefix_begin, prefix_end, begin, end in parts:
        for head in range(heads):
            for token in range(begin, end):
                seen = [*range(prefix_begin, prefix_end), *range(begin, token + 1)]
                scores = key[head // per, seen] @ query[head, token] * scale
                weights = np.exp(scores - scores.max())
                found[token, head] = weights @ value[head // per, seen] / weights.sum()
    return found


def drawn(heads, groups, length, width=8):
    draw = np.random.default_rng(1)
    return [draw.normal(size=(each, length, width)) for each in (heads, groups, groups)]


def tensors(*arrays):
    return [torch.tensor(array)[None].requires_grad_() for array in arrays]


@pytest.mark.parametrize("long", [1024, 4])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_attention_of_parts(monkeypatch, long, groups, scale):
    monkeypatch.setattr(joined, "LONG", long)
    parts = [(0, 0, 0, 5), (0, 5, 5, 12), (0, 5, 12, 13), (0, 0, 13, 16), (13, 16, 16, 20), (0, 0, 20, 21)]
    arrays = drawn(4, groups, 21)
    expected = reference(*arrays, parts, 8**-0.5 if scale is None else scale)
    query, key, value = tensors(*arrays)
    found, nothing = attend(None, query, key, value, None, scaling=scale, parts=torch.tensor(parts))
    assert nothing is None and found.shape == (1, 21, 4, 8)
    np.testing.assert_allclose(found[0].detach().numpy(), expected, atol=1e-12)
    (found**2).sum().backward()
    step, place = 1e-6, (0, 2, 3)  # a key that the prefix's readers read
    for tensor, array, number in ((key, arrays[1], 1), (value, arrays[2], 2)):
        moved = [array.copy(), array.copy()]
        moved[0][place], moved[1][place] = array[place] + step, array[place] - step
        sums = []
        for each in moved:
            given = [each if n == number else arrays[n] for n in range(3)]
            sums.append((reference(*given, parts, 8**-0.5 if scale is None else scale) ** 2).sum())
        assert tensor.grad[0][place].item() == pytest.approx((sums[0] - sums[1]) / 2 / step, rel=1e-5)


def test_a_row_of_more_than_a_thousand_tokens():
    rows = [{"input_ids": [7] * 20 + list(range(20, 1130)), "labels": [-100] * 30 + list(range(30, 1130))},
            {"input_ids": [7] * 20 + [9, 8], "labels": [-100] * 21 + [8]}]  # fmt: skip
    batch = join(rows)
    assert batch["parts"].tolist() == [[0, 0, 0, 20], [0, 20, 20, 1130], [0, 20, 1130, 1132]]
    arrays = drawn(2, 1, 1132, 4)
    found, _ = attend(None, *tensors(*arrays), None, scaling=0.9, parts=batch["parts"])
    some = [0, 19, 20, 21, 1000, 1128, 1129, 1130, 1131]
    expected = reference(*arrays, batch["parts"].tolist(), 0.9)
    np.testing.assert_allclose(found[0].detach().numpy()[some], expected[some], atol=1e-12)


@pytest.mark.parametrize("length", [16, 17])
def test_the_length_from_which_torchs_kernel_is_taken_counts_the_prefix(monkeypatch, length):
    monkeypatch.setattr(joined, "LONG", 16)
    asked = []
    own = joined.scaled_dot_product_attention
    monkeypatch.setattr(joined, "scaled_dot_product_attention", lambda *a, **how: asked.append(1) or own(*a, **how))
    parts = torch.tensor([(0, 0, 0, 5), (0, 5, 5, length)])
    attend(None, *tensors(*drawn(2, 2, length)), None, parts=parts)
    assert len(asked) == (length > 16)
    attend(None, *tensors(*drawn(2, 2, length)), None, parts=parts, dropout=0.5)
    assert len(asked) == (length > 16)  # with dropout ours, whatever the length


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_no_attention_of_ours_computes_is_refused(name):
    given = tensors(*drawn(2, 2, 3))
    with pytest.raises(AssertionError):
        attend(None, *given, None, parts=torch.tensor([(0, 0, 0, 3)]), **{name: 4})
    attend(None, *given, None, parts=torch.tensor([(0, 0, 0, 3)]), **{name: None})
    with pytest.raises(AssertionError):
        attend(None, *given, torch.ones(1), parts=torch.tensor([(0, 0, 0, 3)]))


@pytest.mark.parametrize(("settings", "may"), [
    ({}, True), ({"layer_types": ["full_attention"] * 2}, True), ({"layer_types": ["full_attention", "s"]}, False),
    ({"sliding_window": 4}, False), ({"_attn_implementation": "eager"}, False), ({"can": False}, False),
])  # fmt: skip
def test_what_may_be_joined(settings, may):
    can = settings.pop("can", True)
    config = types.SimpleNamespace(**{"_attn_implementation": "sdpa", **settings})
    config.get_text_config = lambda: config
    model = types.SimpleNamespace(config=config, _can_set_attn_implementation=lambda: can)
    assert can_join(model) is may


def test_rows_are_alike_in_their_first_ten_tokens():
    def row(ids):
        return {"input_ids": ids, "labels": [-100] * (len(ids) - 1) + ids[-1:]}

    ten = list(range(1, 11))
    shared = join([row([*ten, 20, 21, 30]), row([*ten, 20, 22, 31]), row([*ten[:9], 99, 20, 32])])
    assert shared["parts"].tolist() == [[0, 0, 0, 11], [0, 11, 11, 13], [0, 11, 13, 15], [0, 0, 15, 27]]
    inside = join([row([*ten, 20, 21, 30]), row([*ten, 20])])  # one ends where the other goes on
    assert inside["parts"].tolist() == [[0, 0, 0, 9], [0, 9, 9, 13], [0, 9, 13, 15]]


def test_dropped_gradients_and_the_bias_of_what_comes_later():
    torch.manual_seed(0)
    values = torch.full((1000,), 3.0, requires_grad=True)
    dropped = kernels.dropout(values, 0.25)
    (dropped * torch.arange(1000.0)).sum().backward()
    kept = (dropped != 0).float()
    torch.testing.assert_close(dropped.detach(), kept * 4)
    torch.testing.assert_close(values.grad, kept * torch.arange(1000.0) * 4 / 3)
