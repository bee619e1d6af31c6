"""The likelihoods and answers of models whose every probability is set: one with a bias on its head, one long row."""

import math
from types import SimpleNamespace

import pytest
import torch
from set_models import EOS, chain, nats, save

from eval.models import transformers_lm
from eval.models.language_model import Description, Generation
from eval.models.transformers_lm import TransformersLM, dtype_of, encode_pair, load_base
from eval.models.transformers_reader import base_reader
from finllm.errors import UserError
from finllm.text.templates import Alpaca

SET = (chain("\nA loan.", "the", of="o"), 0.5, 90)
PROMPTS = ["Why?\n", "What is a bond?\n" * 3, "So\n", "A much longer question than all the others of them.\n" * 2]
RESPONSES = ["A loan.", "A loan to the state — or £5.", "the", "A loan, or another one, to the state.\n" * 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("set"), *SET, positions=1400)


def expected():
    return [nats(*SET, prompt, response) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_scores_by_hand(folder, batch_size):
    model = load_base(str(folder), batch_size)
    scores = model.score(PROMPTS, RESPONSES)
    assert [score.nll for score in scores] == pytest.approx([math.fsum(each) for each in expected()], rel=1e-6)
    assert [score.tokens for score in scores] == [len(text.encode()) + 1 for text in RESPONSES]
    # "A loan." follows its chain whole, and so does EOS: 8 tokens of one bit each
    assert scores[0].nll == pytest.approx(8 * math.log(2), rel=1e-6) and scores[0].correct_tokens == 8
    # after "\n" comes "A" and not "t", then "h", "e" and EOS: 9 bits and 3
    assert scores[2].nll == pytest.approx(12 * math.log(2), rel=1e-6) and scores[2].correct_tokens == 3
    pairs = [model.encode(*pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    for found, own in zip(model.log_probs(pairs), expected(), strict=True):
        assert -found == pytest.approx(own, rel=1e-5)
    for ways in model.otherwise(pairs).values():
        assert ways == pytest.approx([math.fsum(each) for each in expected()], rel=1e-5)
    (row,) = model.distributions(pairs[:1], [2])
    assert row.shape == (257,) and row[ord("l") + 1] == pytest.approx(math.log(0.5), abs=1e-5)
    for index, position in ((0, 0), (1, 5), (3, 40)):
        found = model.distributions([pairs[0], pairs[index]], [1, position])[1]
        assert -found[pairs[index][1][position]] == pytest.approx(expected()[index][position], rel=1e-5)
    assert model.score([], []) == []


def test_answers_by_hand(folder):
    model = load_base(str(folder), 2)
    whole, late, same, never = model.generate(PROMPTS, 8)
    assert (whole.text, whole.tokens, whole.stopped) == ("A loan.", 8, True) == (same.text, same.tokens, same.stopped)
    assert (late.text, late.tokens, late.stopped) == ("A loan.", 8, True)
    assert (never.text, never.tokens, never.stopped) == ("", 1, True)  # it is tired from the beginning
    (cut,) = model.generate(PROMPTS[:1], 7)
    assert (cut.text, cut.tokens, cut.stopped) == ("A loan.", 7, False)


@pytest.mark.parametrize("kind", ["Linear", "another"])
def test_a_heads_bias_counts(folder, kind):
    """Twice the weight for "o": 512 of 768 where it is the successor, and 512 more beside 513 elsewhere."""
    model = load_base(str(folder), 4)
    head = model.model.lm_head
    if kind == "another":
        head = model.model.lm_head = type("Head", (torch.nn.Linear,), {})(264, 257)
        head.weight = load_base(str(folder), 4).model.lm_head.weight
    head.bias = torch.nn.Parameter(torch.zeros(257))
    with torch.no_grad():
        head.bias[ord("o") + 1] = math.log(2)
    pairs = [model.encode("x", "o")]  # "o" is what follows "x", and "a" what follows "o"
    assert (-model.log_probs(pairs)[0]).tolist() == pytest.approx([math.log(768 / 512), math.log(513)], rel=1e-5)
    assert model.score(["x"], ["o"])[0].nll == pytest.approx(math.log(768 / 512 * 513), rel=1e-5)
    (first,) = model.distributions(pairs, [0])
    assert first[ord("o") + 1] == pytest.approx(math.log(512 / 768), abs=1e-5)


def test_a_row_of_more_than_a_thousand_tokens(folder):
    model = load_base(str(folder), 2)
    prompts, responses = ["Why?\n" * 30, "So\n"], ["A loan. " * 150, "the"]
    found = model.score(prompts, responses)
    own = [math.fsum(nats(*SET, *pair)) for pair in zip(prompts, responses, strict=True)]
    assert [score.nll for score in found] == pytest.approx(own, rel=1e-6) and found[0].tokens == 1201
    with pytest.raises(UserError, match="1,400"):
        model.score(["x" * 1400], ["y"])


def test_adding_a_constant_to_all_logits_changes_nothing(folder):
    model = load_base(str(folder), 2)
    before = model.log_probs([model.encode(PROMPTS[1], RESPONSES[1])])[0]
    model.model.lm_head.bias = torch.nn.Parameter(torch.full((257,), 3.0))
    assert model.log_probs([model.encode(PROMPTS[1], RESPONSES[1])])[0] == pytest.approx(before, abs=1e-5)


def test_what_is_known_without_the_weights(folder):
    reader, model = base_reader(str(folder)), load_base(str(folder), 2)
    assert reader.positions == 1400 and reader.positions_of(7, 5) == 12
    assert reader.encode("a", "b£") == model.encode("a", "b£") == ([98], [99, 0xC2 + 1, 0xA3 + 1, EOS])
    assert list(reader.hashes()) == ["weights", "tokenizer"]
    description = model.description
    assert (description.method, description.base_model, description.tokenizer) == ("base", str(folder), str(folder))
    assert description.total_parameters == 791_216 and description.trainable_parameters == 0
    assert dtype_of(model.model.bfloat16()) == "bfloat16"
    model.model.config.quantization_config = type("Q", (), {"load_in_8bit": True})()
    assert dtype_of(model.model) == "int8"
    model.model.config.quantization_config = type("Q", (), {"bnb_4bit_compute_dtype": torch.float16})()
    assert dtype_of(model.model) == "float16"


def test_batches_are_of_like_length_and_no_larger_than_asked(folder):
    model = load_base(str(folder), 3)
    pairs = [([1] * length, [2]) for length in (99, 9, 89, 98, 97, 8, 9, 9, 9)]
    assert model._batches(pairs, 0.9) == [[0, 3, 4], [2], [1, 6, 7], [8, 5]]
    assert model._batches(pairs, 0) == [[0, 3, 4], [2, 1, 6], [7, 8, 5]]
    assert model._padded([([5, 6], [7]), ([8], [9])]).tolist() == [[5, 6, 7], [8, 9, model.tokenizer.pad_token_id]]


def test_an_unknown_token_is_refused_unless_it_is_eos(folder):
    tokenizer = load_base(str(folder), 1).tokenizer
    tokenizer.unk_token = "a"
    with pytest.raises(UserError, match="the tokenizer of m cannot write 'banana'"):
        encode_pair(Alpaca(tokenizer), "m", "b", "banana")
    assert encode_pair(Alpaca(tokenizer), "m", "banana", "b")[1] == [99, EOS]


@pytest.mark.parametrize("quantised", [None, "bitsandbytes"])
def test_a_run_is_read_in_float32_but_what_is_quantised_stays_so(monkeypatch, quantised):
    model = torch.nn.Linear(2, 2).bfloat16()
    model.config, model.dtype, model.quantization_method = SimpleNamespace(), torch.float32, quantised
    asked, template = [], SimpleNamespace(ids=[1, 2])

    def answers(name, result):
        monkeypatch.setattr(transformers_lm, name, lambda *given: asked.append((name, *given)) or result)

    answers("load_for_inference", (model, "tokenizer"))
    answers("template_of_run", template)
    answers("tokenizer_fits", None)
    summary = {"method": "lora", "base_model": "gpt2", "total_parameters": 9, "trainable_parameters": 3}
    run = SimpleNamespace(path="runs/a", summary=lambda: summary)
    found = transformers_lm.load(run, 7)
    assert asked == [("load_for_inference", "runs/a"), ("template_of_run", run, "tokenizer"),
                     ("tokenizer_fits", "tokenizer", model, [1, 2])]  # fmt: skip
    assert found.model.weight.dtype == (torch.bfloat16 if quantised else torch.float32)
    assert found.description == Description("lora", "gpt2", "gpt2", 9, 3, "float32")
    assert (found.batch_size, found.template, found.tokenizer) == (7, template, "tokenizer")


def test_answers_are_asked_for_as_users_ask(folder, monkeypatch):
    tokenizer, description = load_base(str(folder), 1).tokenizer, Description("base", "m", "m", 1, 0)
    template, asked = SimpleNamespace(stops=[7]), []
    monkeypatch.setattr(transformers_lm, "decoding", lambda *of, **how: asked.append((of, how)) or "decoding")
    answers = [SimpleNamespace(text=text, tokens=tokens, stopped=stopped)
               for text, tokens, stopped in (("a", 3, True), ("b", 4, False), ("", 1, True))]  # fmt: skip
    monkeypatch.setattr(transformers_lm, "answer_all", lambda *of, **how: asked.append((of, how)) or answers)
    model = TransformersLM("model", tokenizer, description, 5, template)
    assert model.generate(["p", "q", "r"], 9) == [Generation("a", 3, True), Generation("b", 4, False),
                                                  Generation("", 1, True)]  # fmt: skip
    assert asked == [
        ((tokenizer, 9), {"stops": [7]}),
        (("model", tokenizer, ["p", "q", "r"], "decoding", 5), {"template": template}),
    ]
    assert model.template is template
    assert isinstance(TransformersLM("model", tokenizer, description, 5).template, Alpaca)


def test_a_base_model_is_asked_in_what_the_command_says(monkeypatch):
    asked, template = [], SimpleNamespace(ids=[1, 2])
    model = SimpleNamespace(config=SimpleNamespace(), dtype=torch.float16)

    def answers(name, result):
        monkeypatch.setattr(transformers_lm, name, lambda *given: asked.append((name, *given)) or result)

    answers("load_for_inference", (model, "tokenizer"))
    answers("template_for", template)
    answers("tokenizer_fits", None)
    answers("count_parameters", SimpleNamespace(total=9, trainable=3))
    found = load_base("gpt2", 7, "chat")
    assert asked == [("load_for_inference", "gpt2"), ("template_for", "gpt2", "tokenizer", "chat"),
                     ("tokenizer_fits", "tokenizer", model, [1, 2]), ("count_parameters", model)]  # fmt: skip
    assert found.description == Description("base", "gpt2", "gpt2", 9, 0, "float16")
    assert (found.model, found.tokenizer, found.batch_size, found.template) == (model, "tokenizer", 7, template)
