"""Which examples of an evaluation every model can read and answer: limits from both sides, and what is said of them.

Readers are set: how many tokens each example has is written down, and a response takes two positions a token.
"""

import math
from argparse import Namespace
from types import SimpleNamespace

import pytest

from eval.models.fitting import Subject, encoded, examples_of, left_out_of_all, too_long
from finllm.errors import UserError


class Reader:
    """Of `positions`; `lengths` holds by id the tokens of a prompt and of its response, None what cannot be written."""

    def __init__(self, positions, **lengths):
        self.positions, self.lengths = positions, lengths
        self.template = SimpleNamespace(prompts=lambda examples: [example["id"] for example in examples])

    def encode(self, prompt, response):
        if self.lengths[prompt] is None:
            raise UserError(f"no {response}")
        asked, answered = self.lengths[prompt]
        return [1] * asked, [2] * answered

    def positions_of(self, prompt_tokens, response_tokens):
        return prompt_tokens + 2 * response_tokens


def examples(ids):
    return [{"id": id, "output": f"answer {id}"} for id in ids]


def out_of(readers, ids, most=None, new_tokens=1, skip=True):
    return too_long(readers, examples(ids), most, new_tokens, skip)


def said_of(*asked, **how):
    with pytest.raises(UserError) as error:
        out_of(*asked, **{"skip": False, **how})
    return str(error.value)


def data(*ids, name="data", outputs=None):
    rows = [{"id": id, "output": (outputs or {}).get(id, f"answer {id}")} for id in ids]
    return SimpleNamespace(path=name, hash=f"hash of {name}", rows=lambda split: rows if split == "test" else [])


def asked(split="test", max_examples=None, **more):
    return Namespace(split=split, max_examples=max_examples, **more)


def test_the_first_by_id():
    dataset = data("c", "a", "d", "b")
    for most, ids in ((None, "abcd"), (1, "a"), (3, "abc"), (9, "abcd")):
        assert examples_of(dataset, asked(max_examples=most)) == examples(ids)


def test_no_examples_and_answers_without_a_byte():
    with pytest.raises(UserError, match="the validation split of data is empty; prepare the dataset with more rows"):
        examples_of(data("a"), asked("validation"))
    for empty in ("a", "c", "abc"):
        dataset = data(*"cba", outputs=dict.fromkeys(empty, ""))
        named = ", ".join(f"example {id}" for id in empty)
        with pytest.raises(UserError, match=f"^data: {named} of test has an answer of 0 bytes, which has no bits"):
            examples_of(dataset, asked())
    with pytest.raises(UserError, match=r"^data: example a, example b, example c, example d, example e of test has"):
        examples_of(data(*"abcdef", outputs=dict.fromkeys("abcdef", "")), asked())


def test_the_tokens_of_each_example_in_their_order():
    reader = Reader(math.inf, a=(1, 2), b=(3, 1), c=(1, 1))
    assert encoded(reader, examples("abc"), [*"abc"]) == [([1], [2, 2]), ([1, 1, 1], [2]), ([1], [2])]
    assert encoded(reader, examples("ca"), [*"ca"]) == [([1], [2]), ([1], [2, 2])] and encoded(reader, [], []) == []
    with pytest.raises(ValueError, match="shorter"):
        encoded(reader, examples("ab"), ["a"])


@pytest.mark.parametrize(("ids", "said"), [
    ("a", "1 problem in the references: example a: no answer a"),
    ("abc", "3 problems in the references: example a: no answer a; example b: no answer b; example c: no answer c"),
    ("abcd", "4 problems in the references: example a: no answer a; example b: no answer b; example c: no answer c; "
             "and 1 more"),
    ("abcdefg", "7 problems in the references: example a: no answer a; example b: no answer b; "
                "example c: no answer c; and 4 more"),
])  # fmt: skip
def test_what_cannot_be_written_is_named(ids, said):
    reader = Reader(math.inf, x=(1, 1), y=(1, 1), **dict.fromkeys(ids))
    with pytest.raises(UserError) as error:
        encoded(reader, examples(["x", *ids, "y"]), ["x", *ids, "y"])
    assert str(error.value) == said


def test_what_fits_to_the_last_position_is_read():
    for skip in (True, False):
        assert out_of({"one": Reader(10, a=(4, 3), b=(8, 1))}, "ab", skip=skip) == set()
        assert out_of({"one": Reader(math.inf, a=(4000, 3000))}, "a", new_tokens=10**9, skip=skip) == set()
    assert out_of({"one": Reader(10, a=(5, 3), b=(4, 3), c=(1, 5))}, "abc") == {"a", "c"}
    assert said_of({"one": Reader(10, a=(5, 3), b=(4, 3), c=(1, 5))}, "abc") == (
        "1 problem in the examples, found before anything was scored: one has 10 positions, and with their answers "
        "these have more: a (11 tokens), c (11 tokens); or leave these examples out, of all models evaluated here "
        "alike, with --skip_too_long"
    )


def test_what_leaves_room_for_the_last_token_is_answered():
    readers = {"one": Reader(10, a=(4, 1), b=(6, 1), c=(5, 1), d=(2, 1))}
    assert out_of(readers, "abcd", new_tokens=2) == set()
    assert out_of(readers, "abcd", new_tokens=3) == {"b", "c"}
    assert out_of({"one": Reader(10, c=(8, 1), a=(3, 1))}, "ca", new_tokens=2) == {"c"}
    assert said_of(readers, "abcd", new_tokens=4) == (
        "1 problem in the examples, found before anything was scored: one has 10 positions, and --max_new_tokens 4 "
        "leaves no room for a (a prompt of 4 tokens), b (a prompt of 6 tokens), c (a prompt of 5 tokens); lower it to "
        "4 or less; or leave these examples out, of all models evaluated here alike, with --skip_too_long"
    )
    for prompt, lower in ((9, "; lower it to 1 or less"), (10, "")):
        reader = Reader(10, x=(prompt, 0), y=(1, 1))
        assert f"x (a prompt of {prompt} tokens){lower}; or leave" in said_of({"one": reader}, "xy", new_tokens=4)


def test_those_that_are_left_are_answered_up_to_as_many_as_are_asked_for():
    """a cannot be read, b and e are too long to be answered."""
    readers = {"one": Reader(10, a=(9, 9), b=(8, 1), c=(1, 1), d=(2, 1), e=(8, 1))}
    for most, out in ((0, "a"), (1, "ab"), (2, "ab"), (3, "abe"), (4, "abe"), (None, "abe")):
        assert out_of(readers, "abcde", most, 2) == set(out), most
    assert "b (a prompt of 8" not in said_of(readers, "abcde", most=0, new_tokens=2)
    assert out_of(readers, "cdbea", 2, 2) == {"a"} and out_of(readers, "cdbea", 3, 2) == {*"abe"}


@pytest.mark.parametrize("names", [("one", "two", "three"), ("three", "one", "two"), ("two", "three", "one")])
def test_what_one_of_the_models_cannot_read_or_answer_is_left_out_of_all(names):
    """The first reads no b, the second answers no c, the third reads and answers all. d is the second that is left."""
    short = {
        "one": Reader(10, a=(1, 1), b=(9, 1), c=(1, 1), d=(5, 1)),
        "two": Reader(10, a=(1, 1), b=(6, 1), c=(7, 1), d=(5, 1)),
        "three": Reader(math.inf, a=(1, 1), b=(9, 1), c=(1, 1), d=(5, 1)),
    }
    readers = {name: short[name] for name in names}
    assert out_of(readers, "abcd", new_tokens=2) == {"b", "c"}
    assert out_of(readers, "abcd", 1, new_tokens=2) == {"b"}
    for name, reader in readers.items():
        assert out_of({name: reader}, "abcd", new_tokens=2) == {"one": {"b"}, "two": {"c"}, "three": set()}[name]
    said = said_of(readers, "abcd", new_tokens=2)
    assert said == (
        "2 problems in the examples, found before anything was scored: one has 10 positions, and with their answers "
        "these have more: b (11 tokens); two has 10 positions, and --max_new_tokens 2 leaves no room for c (a prompt "
        "of 7 tokens); lower it to 3 or less; or leave these examples out, of all models evaluated here alike, with "
        "--skip_too_long"
    )


def test_ten_are_named_and_the_others_counted():
    for count, more in ((10, ""), (11, " and 1 more"), (14, " and 4 more")):
        ids = [f"e{number:02}" for number in range(count)]
        named = ", ".join(f"{id} (11 tokens)" for id in ids[:10])
        reader = Reader(10, **dict.fromkeys(ids, (9, 1)), x=(1, 1))
        assert f"these have more: {named}{more}; or leave" in said_of({"one": reader}, [*ids, "x"])


def test_one_at_least_must_be_left():
    readers = {"one": Reader(10, a=(9, 1), b=(1, 1)), "two": Reader(10, a=(1, 1), b=(9, 1))}
    with pytest.raises(UserError) as error:
        out_of(readers, "ab", new_tokens=1)
    assert str(error.value) == (
        "--skip_too_long leaves none of 2 examples: each is too long for one of one, two; lower --max_new_tokens (now "
        "1) or evaluate fewer models together"
    )


def test_models_on_one_dataset_are_looked_at_together_and_those_on_another_apart():
    first, second = data("a", "b", "c", name="first"), data("b", "c", "d", name="second")
    long = {
        "one": Reader(10, a=(9, 1), b=(1, 1), c=(1, 1)),
        "two": Reader(10, b=(1, 1), c=(1, 1), d=(9, 1)),
        "three": Reader(10, a=(1, 1), b=(1, 1), c=(9, 1)),
    }
    on = {"one": first, "two": second, "three": first}
    subjects = [
        Subject(SimpleNamespace(path=name), on[name], lambda name=name: long[name], lambda: pytest.fail("weights"))
        for name in long
    ]
    how = asked(max_generated=None, max_new_tokens=1, skip_too_long=True)
    assert left_out_of_all(subjects, how) == {"hash of first": {"a", "c"}, "hash of second": {"d"}}
    assert left_out_of_all(subjects[:2], how) == {"hash of first": {"a"}, "hash of second": {"d"}}
    assert left_out_of_all(subjects[2:], how) == {"hash of first": {"c"}} and left_out_of_all([], how) == {}
    fewer = asked(max_examples=2, max_generated=None, max_new_tokens=1, skip_too_long=True)
    assert left_out_of_all(subjects, fewer) == {"hash of first": {"a"}, "hash of second": set()}
    with pytest.raises(UserError, match=r"1 problem in the examples.*one has 10 positions.*a \(11 tokens\)"):
        left_out_of_all(subjects[:1], asked(max_generated=None, max_new_tokens=1, skip_too_long=False))


def test_how_many_are_answered_is_told_from_how_many_tokens():
    """b comes first and has room for five tokens; c does not."""
    reader = Reader(10, b=(0, 1), c=(2, 1))
    subject = Subject(SimpleNamespace(path="one"), data("c", "b"), lambda: reader, lambda: pytest.fail("weights"))
    for most, out in ((0, ""), (1, ""), (2, "c"), (None, "c")):
        how = asked(max_generated=most, max_new_tokens=5, skip_too_long=True)
        assert left_out_of_all([subject], how) == {"hash of data": set(out)}
