"""Planted faults are found, and honest models are not accused."""

import numpy as np
import pytest
import torch
from evaluated_runs import make_run, report
from transformers import AutoModelForCausalLM

from eval.audits.audit import stopping, template
from eval.audits.likelihood import causality, sanity, tolerance
from eval.audits.overlap import contamination, longest_overlaps, memorisation, nearest_answers
from eval.models.language_model import Description, Score
from eval.models.transformers_lm import TransformersLM, load_base
from finllm.data.near_duplicates import clusters
from finllm.models.find import load_tokenizer
from finllm.text.prompts import TEMPLATE_HASH, build_prompt

QUESTIONS = ["What is a bond?", "How do I save for a house?", "Is tax due in April?", "What does a fund cost?"]
ANSWERS = [
    "A loan to a state.",
    "Put some money aside each month.",
    "Yes, by the fifteenth.",
    "A share of what it holds.",
]


def rows(answers=None):
    return [
        {"id": str(number), "question_id": str(number), "instruction": question, "input": "", "output": answer,
         "prompt": build_prompt(question), "reference": answer, "prediction": answers[number] if answers else None,
         "stopped": True if answers else None, "rougeL": 0.5 if answers else None}
        for number, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]  # fmt: skip


def audited(model, repeated=1):
    """The causality audit, on answers that are so many times as long."""
    texts = [(row["prompt"], row["reference"] * repeated) for row in rows()]
    pairs = [model.encode(*text) for text in texts]
    scores = model.score(*zip(*texts, strict=True))
    return causality(model, pairs, scores)


def small_model(folder, seed, config_changes=None):
    torch.manual_seed(seed)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    for name, value in (config_changes or {}).items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    return TransformersLM(model, load_tokenizer(str(folder)), Description("base", "m", "m", 1, 0), batch_size=4)


def test_a_leaky_model_among_ten_is_caught_and_no_honest_one_is_accused(gpt2_dir, llama_dir, tmp_path):
    """All ten are made alike; in one of them attention looks ahead. Its report lists it and gives it no rank."""
    models = [small_model((gpt2_dir, llama_dir)[seed % 2], seed) for seed in range(10)]
    leaky = 4
    for module in models[leaky].model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    found = [audited(model) for model in models]
    assert [number for number, audit in enumerate(found) if not audit["passed"]] == [leaky]
    assert found[leaky]["largest_difference"] > 0.001 and "sees the future" in found[leaky]["summary"]
    assert all(audit["largest_difference"] < 2e-5 for number, audit in enumerate(found) if number != leaky)
    runs = [
        make_run(tmp_path / f"m{number}", 0.5 if number == leaky else 1 + number / 10, audits={"causality": audit})
        for number, audit in enumerate(found)
    ]
    ranked = {row["name"]: row["position"] for row in report(*runs, out=tmp_path / "out")["models"]}
    assert [name for name, rank in ranked.items() if rank is None] == [f"m{leaky}"]
    assert list(ranked)[-1] == f"m{leaky}"


def test_an_adapter_on_an_honest_model_is_honest(gpt2_dir):
    from peft import LoraConfig, get_peft_model

    lm = small_model(gpt2_dir, 0)
    settings = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    lm.model = get_peft_model(lm.model, settings).eval()
    assert audited(lm)["passed"]


def test_a_model_that_only_knows_how_long_the_answer_is_is_caught_too(gpt2_dir):
    class KnowsLength(TransformersLM):
        def log_probs(self, pairs):
            found = super().log_probs(pairs)
            return [each + 0.01 * len(response) for each, (_, response) in zip(found, pairs, strict=True)]

    lm = small_model(gpt2_dir, 0)
    lm.__class__ = KnowsLength
    assert not audited(lm)["passed"]


def test_a_model_that_sees_its_padding_is_caught(gpt2_dir):
    """An answer that was cut off stands beside whole ones, much longer, so that it is padded."""
    lm = small_model(gpt2_dir, 0)
    lm.batch_size = 16

    def see(module, positional, given, output):
        ids = positional[0] if positional else given["input_ids"]
        at_end = (ids == lm.tokenizer.pad_token_id).flip(1).cumprod(1).sum(1)
        output.last_hidden_state += (at_end > 16)[:, None, None] * module.wpe.weight[0]

    hook = lm.model.transformer.register_forward_hook(see, with_kwargs=True)
    assert "sees the future" in audited(lm, repeated=9)["summary"]
    hook.remove()
    assert audited(lm, repeated=9)["passed"]


def test_a_score_that_is_not_the_sum_of_the_audited_log_probabilities_fails(gpt2_dir):
    lm = small_model(gpt2_dir, 0)
    pairs = [lm.encode(row["prompt"], row["reference"]) for row in rows()]
    scores = lm.score([row["prompt"] for row in rows()], [row["reference"] for row in rows()])
    better = [type(score)(score.nll * 0.9, score.tokens, score.correct_tokens) for score in scores]
    audit = causality(lm, pairs, better)
    assert not audit["passed"] and "two computations" in audit["summary"]


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

    def __init__(self, nll):
        self.nll = nll

    def encode(self, prompt, response):
        return [1] * len(prompt), [1] * len(response)

    def otherwise(self, pairs):
        return {}

    def score(self, prompts, responses):
        self.calls = len(prompts)
        return [Score(self.nll(*pair, len(prompts)), 4, 1) for pair in zip(prompts, responses, strict=True)]


@pytest.mark.parametrize(
    ("nll", "passed", "said"),
    [
        (lambda prompt, response, batch: 4.0 if OWN[prompt] == response else 8.0, True, "are likelier"),
        (lambda prompt, response, batch: 4.0, False, "are NOT likelier"),
        (
            lambda prompt, response, batch: (4.0 if OWN[prompt] == response else 8.0) + batch / 10,
            False,
            "CHANGES the likelihood",
        ),
    ],
)
def test_controls_of_likelihood(nll, passed, said):
    model, data = Table(nll), rows(ANSWERS)
    pairs = [model.encode(row["prompt"], row["reference"]) for row in data]
    scores = model.score([row["prompt"] for row in data], [row["reference"] for row in data])
    audit = sanity(model, data, pairs, scores, batch_size=4)
    assert audit["passed"] is passed and said in audit["summary"]
    assert audit["shuffled_rougeL"] < audit["rougeL"]


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


def test_a_model_that_another_padding_moves_is_noticed(gpt2_dir):
    lm, data = small_model(gpt2_dir, 0), rows(ANSWERS)
    pairs = [lm.encode(row["prompt"], row["reference"]) for row in data]
    scores = lm.score([row["prompt"] for row in data], [row["reference"] for row in data])
    honest = sanity(lm, data, pairs, scores, batch_size=4)
    assert honest["summary"].count("changes nothing") == 3
    assert all(honest[f"{way}_difference"] < 1e-4 for way in ("padded_on_the_left", "packed", "alone"))
    forward = lm.model.forward

    def without_positions(*arguments, position_ids=None, **others):
        return forward(*arguments, **others)

    lm.model.forward = without_positions
    moved = sanity(lm, data, pairs, scores, batch_size=4)
    assert not moved["passed"] and moved["padded_on_the_left_difference"] > tolerance(lm)
    assert "scoring padded on the left instead of in batches of 4 CHANGES" in moved["summary"]


OWN = {build_prompt(question): answer for question, answer in zip(QUESTIONS, ANSWERS, strict=True)}


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
