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
