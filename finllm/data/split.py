"""Train, validation and test by question: no question stands in two splits, and new rows move no old question.

A question is the system text where there is one, and what the user says before the first answer: the instruction, plus
the input where there is one. It is normalised: Unicode NFKC, case-folded, punctuation dropped, white space folded.
SHA-256 of seed and question gives a number in [0, 1), the same for ever:

    0 ──── test ──── test_fraction ──── validation ──── + validation_fraction ──────────── train ──────────── 1

`finllm prepare --cluster_near_duplicates` gives near duplicates the number of the first of them in the source, and
`--group_column` all rows of a group; there a new row can join two clusters and move one. Where a small source would
leave a split without a question, its bound moves to the next question. Splits that a source has itself stay.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import unicodedata
from collections.abc import Collection
from typing import NamedTuple

from finllm.errors import raise_problems

SPLITS = ("train", "validation", "test")


class _WithoutPunctuation(dict):
    """A table for `str.translate` that fills itself: Unicode's categories P* go, all else stays."""

    def __missing__(self, codepoint: int) -> int | None:
        self[codepoint] = None if unicodedata.category(chr(codepoint)).startswith("P") else codepoint
        return self[codepoint]


_WITHOUT_PUNCTUATION = _WithoutPunctuation()


def normalised_question(instruction: str, input: str = "") -> str:
    """What makes two questions the same one; a question of nothing but punctuation is taken as it is written."""
    question = f"{instruction}\n{input}" if input else instruction
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", question).casefold())
    return " ".join(folded.translate(_WITHOUT_PUNCTUATION).split()) or question


def place_of(question: str, seed: int) -> float:
    """Where a normalised question stands in [0, 1)."""
    digest = hashlib.sha256(f"{seed}\0{question}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def split_at(place: float, bounds: Bounds) -> str:
    """The split of a question that stands there."""
    if place < bounds.test:
        return "test"
    return "validation" if place < bounds.validation else "train"


def check_fractions(validation_fraction: float, test_fraction: float, own: Collection[str] = ()) -> None:
    """Refuse fractions that leave a split without a question whatever the data; `own` splits the source has itself."""
    named = {"validation": validation_fraction, "test": test_fraction}
    problems = [
        f"{name}_fraction is {value} and must be above 0 and below 1"
        + (f" (0 is for sources with a {name} split of their own)" if value == 0 else "")
        for name, value in named.items()
        if not 0 < value < 1 and not (name in own and 0 <= value < 1)
    ]
    cut = {name: value for name, value in named.items() if name not in own}
    if not problems and sum(cut.values()) >= 1:
        names = " + ".join(f"{name}_fraction" for name in cut)
        problems = [f"{names} is {sum(cut.values())} and must be below 1"]
    raise_problems(problems, "the split")


class Bounds(NamedTuple):
    """Where the splits end on the line above, [0, 1]."""

    test: float
    validation: float


def bounds_of(validation_fraction: float, test_fraction: float, own: Collection[str] = ()) -> Bounds:
    """Where the splits end by the fractions; nothing is cut for one that the source has itself."""
    test = 0.0 if "test" in own else test_fraction
    return Bounds(test, test + (0.0 if "validation" in own else validation_fraction))


def bounds_with_one_each(bounds: Bounds, places: Collection[float], own: Collection[str] = ()) -> Bounds | None:
    """The nearest bounds that leave no split without a question; None where there are too few questions for that."""
    in_order = sorted(places)
    if len(in_order) < 3 - len({"test", "validation"} & set(own)):
        return None

    def end(bound: float, before: int, after: int) -> tuple[float, int]:
        """Where a split ends that `before` questions stand before, and how many stand before its end.

        The splits after it need `after` questions.
        """
        natural = bisect.bisect_left(in_order, bound)
        count = min(max(natural, before + 1), len(in_order) - after)
        return (bound if count == natural else math.nextafter(in_order[count - 1], 2)), count

    test, count = (bounds.test, 0) if "test" in own else end(bounds.test, 0, 1 if "validation" in own else 2)
    return Bounds(test, test if "validation" in own else end(bounds.validation, count, 1)[0])
