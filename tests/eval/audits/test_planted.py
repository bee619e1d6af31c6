"""Models that know what they are asked to predict, each in another way, and models that only look like it."""

import numpy as np
import pytest
import torch
from evaluated_runs import make_run, report
from small_models import audits_of, many_rows, small_model

from eval.models.language_model import Description, Score
from eval.models.transformers_lm import TransformersLM
from eval.results import UNRANKED
from finllm.text.prompts import build_prompt


@pytest.fixture
def unranked(tmp_path):
    """Why a leaderboard does not rank a model with these audits; None where it does."""

    def why(audits: dict) -> str | None:
        run = make_run(tmp_path / "planted", 0.5, audits=audits)
        honest = make_run(tmp_path / "honest", 1.0)
        held = {row["name"]: row for row in report(run, honest, out=tmp_path / "out")["models"]}
        page = (tmp_path / "out/index.html").read_text()
        assert (held["planted"]["unranked"] is None) == (held["planted"]["position"] is not None)
        assert held["planted"]["unranked"] is None or held["planted"]["unranked"] in page
        return held["planted"]["unranked"]

    return why


def moving(lm, move):
    """Have `move(hidden, ids, tokens)` change the last hidden states (B, T, C); `tokens` (B,) is without padding."""

    def hook(module, positional, given, output):
        ids = positional[0] if positional else given["input_ids"]
        tokens = (ids != lm.tokenizer.pad_token_id).sum(1)
        if not given.get("inputs_embeds"):
            move(output.last_hidden_state, ids, tokens)

    lm.model.transformer.register_forward_hook(hook, with_kwargs=True)
    return lm


def reads(ahead, of=lambda position, length: True, strength=1.0):
    """Position t is drawn towards the token at t + `ahead`, in texts and places that `of` says."""

    def plant(lm):
        def move(hidden, ids, tokens):
            for row, length in enumerate(tokens.tolist()):
                for position in range(ids.shape[1] - ahead):
                    if of(position, length):
                        hidden[row, position] += strength * lm.model.transformer.wte.weight[ids[row, position + ahead]]

        return moving(lm, move)

    return plant


def one_head(lm):
    """One head of the first layer sees one place more than the others."""
    attention = lm.model.transformer.h[0].attn
    width = attention.head_dim

    def hook(module, positional, given, output):
        hidden = positional[0] if positional else given["hidden_states"]
        values = module.c_attn(hidden)[..., -width:]
        ahead = torch.cat([values[:, 1:], values[:, -1:]], 1)
        return (output[0] + 50 * torch.nn.functional.pad(ahead, (hidden.shape[-1] - width, 0)), *output[1:])

    attention.register_forward_hook(hook, with_kwargs=True)
    return lm


def whole_text(lm):
    for module in lm.model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    return lm


def first_token(lm):
    """The end of the prompt is drawn towards what comes first after it, and nothing else sees anything."""
    marker = torch.tensor(lm.encode(build_prompt("What?"), "")[0][-4:])

    def move(hidden, ids, tokens):
        for row, position in ((ids.unfold(1, len(marker), 1) == marker).all(-1)).nonzero().tolist():
            last = position + len(marker) - 1
            if last + 1 < ids.shape[1]:
                hidden[row, last] += lm.model.transformer.wte.weight[ids[row, last + 1]]

    return moving(lm, move)


def unshifted(lm):
    """The logits of a position are those of its own token's place: what was read is predicted."""

    def move(hidden, ids, tokens):
        hidden[:, :-1] = hidden[:, 1:].clone()

    return moving(lm, move)


def mean_of_all(lm):
    """Every position knows which tokens the text has, not where."""

    def move(hidden, ids, tokens):
        for row, length in enumerate(tokens.tolist()):
            hidden[row] += lm.model.transformer.wte.weight[ids[row, :length]].mean(0)

    return moving(lm, move)


def end(lm):
    """The position before the last token is drawn towards EOS."""

    def move(hidden, ids, tokens):
        for row, length in enumerate(tokens.tolist()):
            if length > 2:
                hidden[row, length - 1] += 40 * lm.model.transformer.wte.weight[lm.tokenizer.eos_token_id]

    return moving(lm, move)


def oracle(lm):
    """0.000 bits per byte, whatever it is asked."""

    class Oracle(TransformersLM):
        def log_probs(self, pairs):
            return [np.zeros(len(response)) for _, response in pairs]

        def score(self, prompts, responses):
            pairs = [self.encode(*pair) for pair in zip(prompts, responses, strict=True)]
            return [Score(0.0, len(response), len(response)) for _, response in pairs]

    lm.__class__ = Oracle
    return lm


def prompt_with_the_answer(lm):
    class Reads(TransformersLM):
        def encode(self, prompt, response):
            prompt, response = super().encode(prompt, response)
            return [*prompt, *response[:3]], response

    lm.__class__ = Reads
    return lm


FUTURE = {
    "an oracle": oracle,
    "the next token": reads(1),
    "the next token, weakly": reads(1, strength=0.01),
    "the next but one": reads(2),
    "the next token from position 100 on": reads(1, lambda position, length: position >= 100),
    "the next token in long texts": reads(1, lambda position, length: length > 150),
    "the next token in the last fifth of a text": reads(1, lambda position, length: position > 0.8 * length),
    "the first token of the response": first_token,
    "one head looks one place ahead": one_head,
    "the whole text": whole_text,
    "labels that were never shifted": unshifted,
    "which tokens the text has": mean_of_all,
    "where the text ends": end,
    "the answer stands in the prompt": prompt_with_the_answer,
}


COARSE = ("an oracle", "the next token, weakly", "one head looks one place ahead", "where the text ends")


@pytest.mark.parametrize(
    ("plant", "dtype"), [*((plant, "float32") for plant in FUTURE), *((plant, "bfloat16") for plant in COARSE)]
)
def test_what_knows_what_it_is_asked_for_is_not_ranked(gpt2_dir, unranked, plant, dtype):
    lm = small_model(gpt2_dir, 0)
    lm.model.to(getattr(torch, dtype))
    lm.description = Description("base", "m", "m", 1, 0, dtype)
    found = audits_of(FUTURE[plant](lm), many_rows())
    assert not found["causality"]["passed"], found["causality"]
    said = ("sees the future", "knows where the text ends", "reads what it is asked for")
    assert any(words in found["causality"]["summary"] for words in said)
    assert unranked(found) == UNRANKED["causality"]


def beside(lm):
    """Batch statistics: every hidden state loses the mean over the batch."""

    def move(hidden, ids, tokens):
        if len(hidden) > 1:
            hidden -= 0.5 * hidden.mean(0, keepdim=True)

    return moving(lm, move)


def padding_seen(lm):
    """Much padding moves every position: a text beside a much longer one is another text."""

    def move(hidden, ids, tokens):
        at_end = ids.shape[1] - tokens
        hidden += (at_end > 30)[:, None, None] * lm.model.transformer.wpe.weight[0]

    return moving(lm, move)


@pytest.mark.parametrize("plant", [beside, padding_seen])
def test_what_depends_on_its_neighbours_is_told_so_and_not_accused(gpt2_dir, unranked, plant):
    found = audits_of(plant(small_model(gpt2_dir, 0)), many_rows())
    assert found["causality"]["passed"], found["causality"]
    assert not found["reproducibility"]["passed"] and found["reproducibility"]["depends_on_neighbours"]
    assert "what stands beside a text in its batch" in found["reproducibility"]["summary"]
    assert unranked(found) == "its likelihood is not reproducible"


def test_dropout_that_was_left_on_is_told_so_and_not_accused(gpt2_dir, unranked):
    lm = small_model(gpt2_dir, 0)
    lm.model.to(torch.bfloat16)
    lm.description = Description("base", "m", "m", 1, 0, "bfloat16")
    lm.model.train()
    found = audits_of(lm, many_rows())
    assert found["reproducibility"]["random"] and "dropout" in found["reproducibility"]["summary"]
    assert unranked(found) == "its likelihood is not reproducible"


def two_lengths(lm):
    """As longrope: another model from 120 tokens on, whatever stands there."""

    def move(hidden, ids, tokens):
        hidden *= torch.where(tokens > 120, 1.5, 1.0)[:, None, None]

    return moving(lm, move)


def longrope(folder):
    from transformers import AutoModelForCausalLM, Phi3Config

    from finllm.models.find import load_tokenizer

    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=600, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, original_max_position_embeddings=120, pad_token_id=0,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8,
                         "long_factor": [16.0] * 8, "original_max_position_embeddings": 120},
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    for layer in model.model.layers:  # random weights look at all tokens alike, wherever they stand
        layer.self_attn.qkv_proj.weight.data *= 20
    return TransformersLM(model, load_tokenizer(str(folder)), Description("base", "m", "m", 1, 0), batch_size=4)


@pytest.mark.parametrize("make", [longrope, lambda folder: two_lengths(small_model(folder, 0))])
def test_what_depends_on_the_length_of_the_text_is_told_so_and_not_accused(gpt2_dir, unranked, make):
    found = audits_of(make(gpt2_dir), many_rows())
    assert found["causality"]["passed"] and found["causality"]["depends_on_length"], found["causality"]
    assert "no leak" in found["causality"]["summary"]
    if found["reproducibility"]["passed"]:  # longrope takes its factors by the longest row of a batch
        assert unranked(found) is None


def cheating(of):
    """`score` reports a tenth less for texts that `of` names; the audited log-probabilities are honest."""

    class Cheats(TransformersLM):
        def score(self, prompts, responses):
            return [
                Score(score.nll * (0.9 if of(number, score.tokens) else 1), score.tokens, score.correct_tokens)
                for number, score in enumerate(super().score(prompts, responses))
            ]

    return Cheats


@pytest.mark.parametrize("of", [lambda number, tokens: tokens > 80, lambda number, tokens: number % 2])
def test_a_score_that_is_not_the_sum_of_the_audited_log_probabilities_is_not_ranked(gpt2_dir, unranked, of):
    lm = small_model(gpt2_dir, 0)
    lm.__class__ = cheating(of)
    found = audits_of(lm, many_rows())
    assert found["causality"]["passed"] and "two computations" in found["likelihood"]["summary"]
    assert unranked(found) == UNRANKED["likelihood"]


def test_probabilities_that_sum_to_more_than_one_are_not_ranked(gpt2_dir, unranked):
    class Inflated(TransformersLM):
        def log_probs(self, pairs):
            return [each + 0.5 for each in super().log_probs(pairs)]

        def distributions(self, pairs, positions):
            return [each + 0.5 for each in super().distributions(pairs, positions)]

        def score(self, prompts, responses):
            return [
                Score(score.nll - 0.5 * score.tokens, score.tokens, score.correct_tokens)
                for score in super().score(prompts, responses)
            ]

    lm = small_model(gpt2_dir, 0)
    lm.__class__ = Inflated
    found = audits_of(lm, many_rows())
    assert "do not sum to 1" in found["likelihood"]["summary"]
    assert unranked(found) == UNRANKED["likelihood"]
