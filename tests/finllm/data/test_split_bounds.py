"""Where splits end that the fractions alone would leave without a question, in numbers by hand."""

import math

import pytest

from finllm.data.split import Bounds, bounds_of, bounds_with_one_each, split_at


def after(place):
    return math.nextafter(place, 1)


BOTH, TEST, VALIDATION = (), {"test"}, {"validation"}


@pytest.mark.parametrize(
    ("own", "validation", "test", "places", "ends"),
    [
        # Nothing moves where each split has a question
        (BOTH, 0.25, 0.25, [0.75, 0.25, 0.125], (0.25, 0.5)), (TEST, 0.25, 0, [0.5, 0.125], (0, 0.25)),
        (VALIDATION, 0, 0.25, [0.125, 0.25], (0.25, 0.25)), ({"test", "validation", "train"}, 0, 0, [0.5], (0, 0)),
        # Too few before an end, and too few after it
        (BOTH, 0.25, 0.25, [0.5, 0.6, 0.7], (after(0.5), after(0.6))),
        (BOTH, 0.25, 0.25, [0.3, 0.6, 0.7], (after(0.3), after(0.6))),
        (BOTH, 0.25, 0.25, [0.01, 0.02, 0.03], (after(0.01), after(0.02))),
        (BOTH, 0.25, 0.25, [0.1, 0.3, 0.4], (0.25, after(0.3))),
        (BOTH, 0.25, 0.25, [0.1, 0.2, 0.3, 0.4], (0.25, after(0.3))),
        (BOTH, 0.25, 0.25, [0.1, 0.15, 0.2, 0.4], (after(0.15), after(0.2))),
        (TEST, 0.25, 0, [0.5, 0.6], (0, after(0.5))), (TEST, 0.25, 0, [0.1, 0.2], (0, after(0.1))),
        (TEST, 0.25, 0.25, [0.1, 0.2, 0.24], (0, after(0.2))),
        (VALIDATION, 0, 0.25, [0.5, 0.6], (after(0.5), after(0.5))),
        (VALIDATION, 0, 0.25, [0.1, 0.2], (after(0.1), after(0.1))),
        (VALIDATION, 0.5, 0.25, [0.1, 0.2, 0.3], (0.25, 0.25)),
        # Too few questions
        (BOTH, 0.25, 0.25, [0.1, 0.6], None), (TEST, 0.25, 0, [0.1], None), (VALIDATION, 0, 0.25, [0.1], None),
        ({"test", "validation"}, 0, 0, [], None), ({"train"}, 0.25, 0.25, [0.1, 0.6], None),
    ],
)  # fmt: skip
def test_where_the_splits_end(own, validation, test, places, ends):
    for each in (places, places[::-1]):
        bounds = bounds_with_one_each(bounds_of(validation, test, own), each, own)
        assert bounds == (ends and Bounds(*ends))
    if bounds:
        cut = {"train", *(name for name in ("test", "validation") if name not in own)}
        assert {split_at(place, bounds) for place in places} == cut


def test_what_is_not_cut_ends_at_zero_as_it_is_written_to_files():
    assert str(tuple(bounds_of(0.25, 0.5, TEST))) == "(0.0, 0.25)" and bounds_of(0.25, 0.5, VALIDATION) == (0.5, 0.5)
    assert str(tuple(bounds_of(0.25, 0.5, {"test", "validation"}))) == "(0.0, 0.0)" and bounds_of(0.25, 0.5) == (
        0.5,
        0.75,
    )
