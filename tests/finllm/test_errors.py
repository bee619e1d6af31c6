"""Mistakes are named with their fix, all at once."""

import pytest

from finllm.errors import UserError, did_you_mean, raise_problems


def test_all_problems_come_at_once():
    raise_problems([], "nothing")
    with pytest.raises(UserError, match=r"^1 problem in x: a$"):
        raise_problems(["a"], "x")
    with pytest.raises(UserError, match=r"^2 problems in x: a; b$"):
        raise_problems(iter(["a", "b"]), "x")
    assert did_you_mean("lora_rnk", ["lora_r", "seed"]) == " (did you mean 'lora_r'?)"
    assert did_you_mean("zzz", ["lora_r", "seed"]) == ""


@pytest.mark.parametrize(("count", "most", "fix", "said"), [
    (1, None, "", "1 problem in x: p0"),
    (3, None, "", "3 problems in x: p0; p1; p2"),
    (3, 3, "mend them", "3 problems in x: p0; p1; p2; mend them"),
    (4, 3, "", "4 problems in x: p0; p1; p2; and 1 more"),
    (1005, 1, "mend them", "1,005 problems in x: p0; and 1,004 more; mend them"),
])  # fmt: skip
def test_problems_are_counted_whole_and_the_first_named(count, most, fix, said):
    with pytest.raises(UserError) as caught:
        raise_problems((f"p{number}" for number in range(count)), "x", most, fix)
    assert str(caught.value) == said
    assert raise_problems([], "x", most, fix) is None
