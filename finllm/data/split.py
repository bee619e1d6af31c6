"""Train, validation and test by question: no question stands in two splits, and new rows move no old question.

A question is the system text where there is one, and what the user says before the first answer: the instruction, plus
the input where there is one. It is normalised: Unicode NFKC, case-folded, punctuation dropped, white space folded.
SHA-256 of seed and question gives a number in [0, 1), the same for ever:

    0 ──── test ──── test_fraction ──── validation ──── + validation_fraction ──────────── train ──────────── 1

`finllm prepare --cluster_near_duplicates` gives near duplicates the number of the first of them in the source, so there
a new row can join two clusters and move one.
"""

from __future__ import annotations

import hashlib
import unicodedata

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


def split_of(question: str, seed: int, validation_fraction: float, test_fraction: float) -> str:
    """The split of a normalised question."""
    digest = hashlib.sha256(f"{seed}\0{question}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    if place < test_fraction:
        return "test"
    return "validation" if place < test_fraction + validation_fraction else "train"


def check_fractions(validation_fraction: float, test_fraction: float) -> None:
    """Refuse fractions that leave a split without a question whatever the data."""
    named = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    problems = [
        f"{name} is {value} and must be above 0 and below 1" for name, value in named.items() if not 0 < value < 1
    ]
    if not problems and validation_fraction + test_fraction >= 1:
        problems = [f"validation_fraction + test_fraction is {validation_fraction + test_fraction} and must be below 1"]
    raise_problems(problems, "the split")
