"""Planted faults are found, and honest models are not accused."""

import math
import random

import numpy as np
import pytest
import torch
from small_models import ANSWERS, QUESTIONS, audits_of, many_rows, rows, small_model

from eval.audits.audit import stopping, template
from eval.audits.likelihood import padding, question, tolerance
from eval.audits.overlap import contamination, longest_overlaps, memorisation, nearest_answers
from eval.models.language_model import Description, Score
from eval.models.transformers_lm import load_base
from finllm.data.near_duplicates import clusters
from finllm.text.prompts import TEMPLATE_HASH, build_prompt
from finllm.text.templates import Alpaca


def test_an_adapter_on_an_honest_model_is_honest(gpt2_dir):
    from peft import LoraConfig, get_peft_model

    lm = small_model(gpt2_dir, 0)
    settings = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    lm.model = get_peft_model(lm.model, settings).eval()
    assert all(audit["passed"] for audit in audits_of(lm, many_rows()).values())


def test_log_probs_are_the_models_own(gpt2_dir):
    lm = load_base(str(gpt2_dir), batch_size=2)
    pairs = [lm.encode(row["prompt"], row["reference"]) for row in rows()]
    for (prompt, response), found in zip(pairs, lm.log_probs(pairs), strict=True):
        with torch.no_grad():
            logits = lm.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)[range(len(response)), response]
        assert found.dtype == np.float64 and found == pytest.approx(expected.numpy(), abs=1e-5)
        assert response[-1] == lm.tokenizer.eos_token_id


class Table:
    """A model that gives each (prompt, response) the likelihood that `nll` says."""

    description = Description("base", "m", "m", 1, 0)
    template = Alpaca()

    def __init__(self, nll):
        self.nll = nll

    def encode(self, prompt, response):
        return [1] * len(prompt), [1] * len(response)

    def score(self, prompts, responses):
        return [Score(self.nll(*pair), 4, 1) for pair in zip(prompts, responses, strict=True)]


def twelve_rows():
    found = many_rows(12)
    return [{**row, "prediction": row["reference"], "rougeL": 1.0} for row in found]


@pytest.mark.parametrize(
    ("own", "other", "passed", "said"),
    [
        (4.0, 8.0, True, "are likelier"),
        (4.0, 4.0, True, "cannot be told"),
        (8.0, 4.0, False, "are LESS likely"),
        (4.0, math.nan, False, "no finite number"),
    ],
)
def test_references_belong_to_their_questions(own, other, passed, said):
    data = twelve_rows()
    own_prompt = {row["reference"] + row["prompt"]: row for row in data}
    model = Table(lambda prompt, response: own if response + prompt in own_prompt else other)
    pairs = [model.encode(row["prompt"], row["reference"]) for row in data]
    scores = model.score([row["prompt"] for row in data], [row["reference"] for row in data])
    audit = question(model, data, pairs, scores)
    assert audit["passed"] is passed and said in audit["summary"]
    assert audit["shuffled_rougeL"] < audit["rougeL"]


def test_a_model_that_was_barely_trained_is_not_accused_by_chance():
    """Of a hundred models that ignore the question, those that seem less likely after it are as many as the level."""
    failed = 0
    for seed in range(100):
        draw = random.Random(seed)
        model, data = Table(lambda prompt, response, draw=draw: 4 + draw.gauss(0, 1)), twelve_rows()
        pairs = [model.encode(row["prompt"], row["reference"]) for row in data]
        scores = model.score([row["prompt"] for row in data], [row["reference"] for row in data])
        failed += not question(model, data, pairs, scores)["passed"]
    assert failed <= 8  # 2.5 of 100 are expected


@pytest.mark.parametrize("folder", ["gpt2_dir", "llama_dir"])
def test_padding_on_the_left_and_packing_change_nothing(folder, request):
    lm = small_model(request.getfixturevalue(folder), 0)
    pairs = [lm.encode(row["prompt"], row["reference"]) for row in rows()]
    expected = [-log_probs.sum() for log_probs in lm.log_probs(pairs)]
    found = lm.otherwise(pairs)
    assert list(found) == ["padded on the left", "packed"]
    assert all(nll == pytest.approx(expected, abs=1e-3) for nll in found.values())
    assert lm.otherwise(pairs)["padded on the left"] == found["padded on the left"]  # the attention is put back


def test_the_ids_of_a_response_are_looked_up_as_they_are_in_bfloat16(gpt2_dir):
    """bfloat16 has eight bits: no odd number above 256 is one of its own."""
    lm = small_model(gpt2_dir, 0)
    lm.model.to(torch.bfloat16)
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(20)  # which tells one token from the next
    pairs = [([1, 2, 3], list(range(first, 600, 30))) for first in (257, 259)]
    expected = [-log_probs.sum() for log_probs in lm.log_probs(pairs)]
    assert lm.otherwise(pairs)["padded on the left"] == pytest.approx(expected, rel=2e-2)


def without_positions(lm):
    """Positions are counted from the left, padding and all."""
    forward = lm.model.forward
    lm.model.forward = lambda *arguments, position_ids=None, **others: forward(*arguments, **others)
    return lm


def test_a_way_that_moves_the_likelihood_is_noticed(gpt2_dir, monkeypatch):
    lm, data = small_model(gpt2_dir, 0), rows(ANSWERS)
    pairs = [lm.encode(row["prompt"], row["reference"]) for row in data]
    scores = lm.score([row["prompt"] for row in data], [row["reference"] for row in data])
    honest = padding(lm, pairs, scores)
    assert honest["passed"] and honest["summary"].count("changes nothing") == 2
    assert all(honest[f"{way}_difference"] < 1e-4 for way in ("padded_on_the_left", "packed"))
    monkeypatch.setattr("eval.models.transformers_lm.may_be_padded_left", lambda *_: True)
    moved = padding(without_positions(lm), pairs, scores)
    assert not moved["passed"] and moved["padded_on_the_left_difference"] > tolerance(lm)
    assert "scoring padded on the left CHANGES" in moved["summary"]


def test_a_model_that_padding_on_the_left_moves_is_not_padded(gpt2_dir, monkeypatch):
    """Its answers are those to each prompt alone, and nothing is said of a way that it is never run in."""
    texts = [row["prompt"] for row in many_rows(12)]
    assert len({len(text) for text in texts}) > 2
    lm = without_positions(small_model(gpt2_dir, 0))
    with torch.no_grad():  # what is written depends on where it stands
        lm.model.transformer.wpe.weight.normal_(0, 2)
    alone = [lm.generate([text], 8)[0] for text in texts]
    assert lm.generate(texts, 8) == alone
    pairs = [lm.encode(row["prompt"], row["reference"]) for row in rows()]
    assert "padded on the left" not in lm.otherwise(pairs)
    monkeypatch.setattr("finllm.models.generate.may_be_padded_left", lambda *_: True)
    assert lm.generate(texts, 8) != alone


def test_stopping_counts_training_examples_that_keep_their_eos():
    model = Table(None)
    lengths = [len(build_prompt(q)) + len(a) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    whole = stopping(model, rows(), max(lengths), rows(ANSWERS))
    assert whole["passed"] and whole["eos_supervised"] == 1 and whole["stop_rate"] == 1 and whole["cut_by_limit"] == 0
    cut = stopping(model, rows(), max(lengths) - 1, rows())
    assert not cut["passed"] and cut["eos_supervised"] == 0.75 and "stop_rate" not in cut
    assert stopping(model, None, None, rows())["passed"]
    running = [{**row, "stopped": row["id"] == "0"} for row in rows(ANSWERS)]
    assert stopping(model, None, None, running)["cut_by_limit"] == 3


def test_another_template_in_training_fails():
    assert template(True, TEMPLATE_HASH)["passed"] and template(False, None)["passed"]
    assert not template(True, "0" * 64)["passed"] and not template(True, None)["passed"]


LONG = "My partner and I earn about forty thousand a year, how much of it should we put aside for our pension?"


def row(id, question, answer="It depends on what you earn and on what you owe to others."):
    return {"id": id, "question_id": id, "instruction": question, "input": "", "output": f"{answer}"}


def test_a_near_duplicate_planted_across_splits_is_found():
    training = [row(f"t{number}", f"Question number {number} about {number * 7} things?", f"Answer {number} to it")
                for number in range(50)]  # fmt: skip
    test = [
        row("a", "What is a bond, and who sells it?"),
        row("b", LONG),
        row("c", "Why?", "Because of the tax office."),
    ]
    assert contamination(test, training)["passed"]
    planted = row("t50", LONG.replace("forty", "sixty"), "Half of it, if you can.")
    audit = contamination(test, [*training, planted])
    assert not audit["passed"] and audit["contaminated"] == ["b"]
    assert (audit["exact_questions"], audit["near_questions"]) == (0, 1)
    copied = contamination(test, [*training, row("t51", "Other?", "because of the TAX office")])
    assert copied["contaminated"] == ["c"] and copied["exact_answers"] == 1 and copied["near_answers"] == 0
    assert contamination([*test, row("d", LONG + " Please.")], training)["within"]["questions"] == 1


def test_near_duplicates_of_near_duplicates_are_one_cluster():
    words = LONG.split()
    texts = ["Why?", LONG, " ".join([*words, "Thank", "you", "all"]), " ".join([*words[6:], "Thank", "you", "all"])]
    assert clusters(texts) == [0, 1, 1, 1]
    assert clusters(["same text here", "Same text, here!", "other"]) == [0, 0, 2]


def test_the_longest_verbatim_run_of_words():
    training = ["one two three four five six seven", "a b c d e f", "x one two three four five y"]
    answers = ["so: two three four five six seven.", "a b c d", "a b c d e g", "zero one two three four five six seven"]
    assert longest_overlaps(answers, training) == [5, 0, 5, 7]


def test_copied_answers_fail_and_copying_is_scored():
    long = " ".join(f"word{number}" for number in range(30))
    training = [row("t", QUESTIONS[0] + " Please explain.", long), row("u", "Who pays?", "The firm.")]
    data = rows([long + " end", *ANSWERS[1:]])
    audit = memorisation(data, training, trained=True)
    assert not audit["passed"] and audit["longest_words"] == 30 and audit["memorised_share"] == 0.25
    assert [each["verbatim_words"] for each in data] == [30, 0, 0, 0]
    assert set(audit["baselines"]) == {"copy the question", "nearest training answer"}
    assert 0 < audit["baselines"]["copy the question"]["rougeL"] < 1
    assert memorisation(rows(ANSWERS), training, trained=True)["passed"]
    assert nearest_answers(rows()[:1], training) == [long]
