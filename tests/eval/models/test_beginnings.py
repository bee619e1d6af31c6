"""What texts begin with is computed once, where the model says the same of what comes after it; else it is not."""

import sys
from pathlib import Path

import pytest

from eval.models import beginnings
from eval.models.transformers_lm import TransformersLM, load_base

sys.path.insert(0, str(Path(__file__).parents[2] / "architectures"))
import tiny

LEAD = "Below is an instruction. Write what completes the request well."
PROMPTS = [f"{LEAD}\n\n### {number}: " + "why " * (number % 4) for number in range(10)] + ["Say.", "Tell me."]
RESPONSES = [f"Since {number} is less." for number in range(12)]
# A window that slides, and a state in place of keys and values
STAYS_WHOLE = {"mistral", "mamba"}


@pytest.fixture(scope="module", params=["gpt2", "llama", "bloom", *sorted(STAYS_WHOLE)])
def model(request, tmp_path_factory, tokenizer_dir) -> TransformersLM:
    return load_base(str(tiny.save(request.param, tmp_path_factory.mktemp("model"), tokenizer_dir)), 4)


@pytest.fixture
def computed(model, monkeypatch):
    """The scores of the texts by a fresh look at the model, and how many tokens went through it."""

    def call(goes_on: bool | None = None):
        monkeypatch.setattr(model, "_goes_on", goes_on)
        monkeypatch.setattr(model, "_beginnings", {})
        seen: list[int] = []

        def count(module, given, named):
            seen.append((named["input_ids"] if "input_ids" in named else given[0]).numel())

        handle = model.model.base_model.register_forward_pre_hook(count, with_kwargs=True)
        scores = model.score(PROMPTS, RESPONSES)
        handle.remove()
        return scores, sum(seen)

    return call


def test_scores_are_those_of_whole_texts_and_fewer_tokens_are_computed(model, computed):
    model.score(PROMPTS[:1], RESPONSES[:1])  # what is looked at once a model
    (scores, _), (again, fewer), (plain, all_of_them) = computed(), computed(True), computed(False)
    whole = model.log_probs([model.encode(*pair) for pair in zip(PROMPTS, RESPONSES, strict=True)])
    for found in (scores, again, plain):
        for score, own, other in zip(found, whole, plain, strict=True):
            assert score.nll == pytest.approx(-own.sum(), abs=1e-4) and score.tokens == len(own)
            assert score.correct_tokens == other.correct_tokens
    if model.model.config.model_type in STAYS_WHOLE:
        assert fewer >= all_of_them
    else:
        assert fewer < 0.7 * all_of_them


def test_a_model_that_says_something_else_after_kept_keys_is_asked_for_whole_texts(model, computed, monkeypatch):
    plain, all_of_them = computed(False)
    forward = model.model.base_model.forward

    def other(*given, **named):
        output = forward(*given, **named)
        if named.get("past_key_values") is not None:
            output.last_hidden_state = output.last_hidden_state * 1.01
        return output

    monkeypatch.setattr(model.model.base_model, "forward", other)
    scores, tokens = computed()
    assert scores == plain and model._goes_on is False and tokens >= all_of_them


def test_one_that_computes_coarsely_is_too(model, computed, monkeypatch):
    monkeypatch.setattr("eval.models.transformers_lm.is_exact", lambda model: False)
    assert computed(True)[1] == computed(False)[1]


def test_what_texts_begin_with_is_computed_once_for_texts_that_come_later(model, computed, monkeypatch):
    asked, own = [], beginnings.computed
    monkeypatch.setattr(beginnings, "computed", lambda body, ids, device: asked.append(ids) or own(body, ids, device))
    scores, _ = computed()
    assert len(asked) == 1
    assert model.score(PROMPTS, RESPONSES) == scores and len(asked) == 1
    other = [prompt.replace("Below", "Above") for prompt in PROMPTS]
    model.score(other, RESPONSES)
    assert len(asked) == 1 + model._goes_on and len(model._beginnings) == len(asked)


def test_groups_share_what_all_of_them_begin_with_and_leave_a_token_to_go_on_from():
    lead, many = list(range(16)), range(8)
    same, other = [[*lead, 7, 7, n] for n in many], [[99, *lead, n] for n in many]
    assert beginnings.groups([*same, *other]) == [(18, [*many]), (17, [n + 8 for n in many])]
    assert beginnings.groups([*same[:3], lead, *other]) == [(17, [n + 4 for n in many]), (0, [*range(4)])]
    assert beginnings.groups([[*lead, 5]] * 8) == [(16, [*many])]  # the last token predicts the answer's first
    assert beginnings.groups([lead] * 8) == [(0, [*many])] and beginnings.groups([]) == []
