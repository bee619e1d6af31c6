"""The split: by question, for ever."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finllm.data.split import (
    SPLITS,
    bounds_of,
    bounds_with_one_each,
    check_fractions,
    normalised_question,
    place_of,
    split_at,
)
from finllm.errors import UserError


def split(question, seed=42, validation=0.2, test=0.3):
    return split_at(place_of(question, seed), bounds_of(validation, test))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("What is an ETF?", "what is an etf"),
        ("What's  a\nbond ?", "Whats a bond"),
        ("Ｆｕｌｌ width", "full width"),
        ("STRASSE", "straße"),
        ("“Fiat” currency", '"fiat" currency'),
    ],
)
def test_the_same_question(left, right):
    assert normalised_question(left) == normalised_question(right)


@pytest.mark.parametrize(
    ("left", "right"), [("2 + 2", "2 - 2"), ("What is a put?", "What is a call?"), ("?", "!"), ("€5", "$5")]
)
def test_other_questions(left, right):
    assert normalised_question(left) != normalised_question(right)


def test_the_input_is_part_of_the_question():
    assert normalised_question("Sum up.", "Rates rose.") == normalised_question("sum up", "rates rose")
    assert normalised_question("Sum up.", "Rates rose.") != normalised_question("Sum up.", "Rates fell.")
    assert normalised_question("Sum up.", "") == "sum up"


def test_nothing_but_punctuation_falls_back_to_the_text():
    assert normalised_question("?!") == "?!"
    assert normalised_question("…", "--") == "…\n--"


def test_no_question_stands_in_two_splits_and_spelling_does_not_matter():
    random_numbers = random.Random(1)
    words = [
        "what",
        "is",
        "a",
        "bond",
        "fund",
        "rate",
        "tax",
        "ETF",
        "on",
        "in",
        "Straße",
        "naïve",
        "401k",
        "£5",
        "don’t",
    ]
    seen = {}
    for _ in range(3000):
        question = " ".join(random_numbers.choices(words, k=random_numbers.randint(1, 6)))
        spelled = "".join(
            character + random_numbers.choice(["", "", "", "?", "!"])
            for character in random_numbers.choice([question, question.upper()])
        ).replace(" ", random_numbers.choice([" ", "  ", "\n"]))
        found = split(normalised_question(spelled))
        assert seen.setdefault(normalised_question(question), found) == found
    assert set(seen.values()) == set(SPLITS)


def test_shares_are_near_the_fractions_and_seeds_differ():
    questions = [f"question {number}" for number in range(20_000)]
    counts = Counter(map(split, questions))
    assert counts["validation"] / 20_000 == pytest.approx(0.2, abs=0.01)
    assert counts["test"] / 20_000 == pytest.approx(0.3, abs=0.01)
    assert [split(question) for question in questions] != [split(question, seed=43) for question in questions]


def test_the_split_of_a_question_is_the_same_for_ever():
    letters = "".join(split(f"question {number}")[:2] + " " for number in range(12))
    assert letters == "va va tr tr tr va tr tr te tr te tr "


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        (0, 0.1, "validation_fraction is 0 and must be above 0"),
        (0.1, 1.0, "test_fraction is 1.0 and must be above 0 and below 1"),
        (float("nan"), -1, "2 problems in the split"),
        (0.5, 0.5, r"validation_fraction \+ test_fraction is 1.0 and must be below 1"),
    ],
)
def test_fractions_out_of_range(validation, test, message):
    with pytest.raises(UserError, match=message):
        check_fractions(validation, test)


def test_a_split_that_the_source_has_itself_needs_no_fraction():
    check_fractions(0, 0.1, {"validation"})
    check_fractions(0, 0, {"validation", "test"})
    check_fractions(0.9, 0.9, {"test"})
    assert bounds_of(0.2, 0.3, {"test"}) == (0, 0.2) and bounds_of(0.2, 0.3, {"validation"}) == (0.3, 0.3)
    with pytest.raises(UserError, match="0 is for sources with a test split of their own"):
        check_fractions(0, 0, {"validation"})


def test_few_questions_give_each_split_one():
    for places in ([0.5, 0.6, 0.7], [0.01, 0.02, 0.03], [0.06, 0.5, 0.9], [0.2, 0.97, 0.98]):
        bounds = bounds_with_one_each(bounds_of(0.05, 0.05), places)
        assert {split_at(place, bounds) for place in places} == set(SPLITS), places
    assert bounds_with_one_each(bounds_of(0.05, 0.05), [0.5, 0.6]) is None
    bounds = bounds_with_one_each(bounds_of(0.05, 0.05, {"test"}), [0.5, 0.6], {"test"})
    assert [split_at(place, bounds) for place in (0.5, 0.6)] == ["validation", "train"]


@given(st.data())
def test_bounds_move_to_the_next_question_and_no_farther(data):
    """Against counts: each split that is cut has as many questions as its fraction gives it, but one at least."""
    own = data.draw(st.sampled_from([(), ("test",), ("validation",), ("train", "test"), SPLITS]))
    fractions = [data.draw(st.sampled_from([0.0 if name in own else 0.01, 0.05, 0.3, 0.6])) for name in SPLITS[1:]]
    places = data.draw(st.lists(st.integers(0, 99), unique=True, max_size=8).map(lambda all: [n / 100 for n in all]))
    natural, cut = bounds_of(*fractions, own), [name for name in ("test", "validation") if name not in own]
    bounds = bounds_with_one_each(natural, places, own)
    if len(places) < 1 + len(cut):
        assert bounds is None
        return
    counts, before, in_order = {}, 0, sorted(places)
    for number, name in enumerate(cut):
        bound, by_fraction = getattr(bounds, name), getattr(natural, name)
        reached = sum(place < by_fraction for place in places)
        counts[name] = min(max(reached - before, 1), len(places) - before - (len(cut) - number))
        before += counts[name]
        assert bound == by_fraction if before == reached else 0 < bound - in_order[before - 1] < 1e-9
    assert Counter(split_at(place, bounds) for place in places) == Counter({**counts, "train": len(places) - before})


def test_the_end_of_a_split_is_the_next_ones():
    bounds = bounds_of(0.25, 0.25)
    assert [split_at(place, bounds) for place in (0, 0.249, 0.25, 0.499, 0.5, 0.999)] == [
        "test", "test", "validation", "validation", "train", "train"
    ]  # fmt: skip
