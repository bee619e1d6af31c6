"""Figures as worked by hand on tiny cases, and what stays the same when the cases are turned about."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import bleu, perplexity, rouge
from eval.metrics.bleu import Bleu, tokenizer_for
from eval.metrics.figures import GENERATION, LIKELIHOOD, measure
from eval.metrics.perplexity import Perplexity, from_sums
from eval.metrics.rouge import Rouge, mean_of


def test_figures_of_sums():
    found = from_sums(12.0, 10, 5, 40)
    assert found == pytest.approx(
        {"nll_per_token": 1.2, "perplexity": 3.3201169, "bits_per_byte": 0.43280851, "token_accuracy": 0.5}
    )
    assert from_sums(math.log(2), 1, 1, 1)["bits_per_byte"] == pytest.approx(1)
    assert from_sums(1398.0, 2, 0, 1)["perplexity"] == pytest.approx(math.exp(699))
    assert from_sums(1400.0, 2, 0, 1)["perplexity"] == math.inf == from_sums(9e9, 2, 0, 1)["perplexity"]
    for tokens, size in ((0, 1), (1, 0), (-1, 1), (1, -1)):
        with pytest.raises(ValueError, match=f"{tokens} tokens and {size} bytes: a reference must have at least one"):
            from_sums(1.0, tokens, 0, size)
    assert from_sums(1.0, 1, 0, 1)["token_accuracy"] == 0


@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(1, 99), st.integers(1, 99)), min_size=1, max_size=9))
def test_twice_the_data_are_the_same_figures_and_their_order_is_none(examples):
    nll, tokens, size = (list(column) for column in zip(*examples, strict=True))
    once = Perplexity()._compute(nll, tokens, [1] * len(nll), size)
    twice = Perplexity()._compute(nll * 2, tokens * 2, [1] * 2 * len(nll), size * 2)
    turned = Perplexity()._compute(nll[::-1], tokens[::-1], [1] * len(nll), size[::-1])
    assert twice == pytest.approx(once) and turned == pytest.approx(once)
    assert once["bits_per_byte"] == pytest.approx(math.fsum(nll) / sum(size) / 0.6931471805599453)


def test_the_modules_take_what_they_say():
    assert list(Perplexity()._info().features) == ["nll", "tokens", "correct_tokens", "bytes"]
    assert [each.dtype for each in Perplexity()._info().features.values()] == ["float64", "int64", "int64", "int64"]
    for module in (Bleu(), Rouge()):
        assert {name: each.dtype for name, each in module._info().features.items()} == {
            "predictions": "string", "references": "string"
        }  # fmt: skip
    answers, references = ["a loan to a state", "cash"], ["a loan to a firm", "cash or gold"]
    lists = Rouge()._compute(answers, references, use_aggregator=False)
    assert lists["rouge1"] == pytest.approx([0.8, 0.5]) and lists["rouge2"] == pytest.approx([0.75, 0])
    assert Rouge()._compute(answers, references)["rougeL"] == pytest.approx(0.65)
    assert Rouge()._compute(["tax", "…"], ["…", "tax"])["rouge1"] == 0  # of the second alone
    assert mean_of([None, 1.0, 3.0]) == 2 and mean_of([None]) is None and mean_of([]) is None


def test_precision_and_recall_are_each_others_when_answer_and_reference_are_swapped_and_f1_is_of_both():
    found = rouge.scores_of("tax is due", "tax is due in april and may")
    assert found == pytest.approx({"rouge1": 0.6, "rouge2": 0.5, "rougeL": 0.6, "rougeLsum": 0.6})
    assert rouge.scores_of("may april", "april may")["rougeL"] == 0.5
    lines = rouge.scores_of("one two\nthree four", "three four\none two")
    assert lines["rougeLsum"] == 1 and lines["rougeL"] == 0.5
    assert rouge.scores_of("国债", "国家")["rouge1"] == 0.5  # each a word
    assert rouge.scores_of("running", "run")["rouge1"] == 0  # no stemmer
    assert rouge.scores_of("a", "…") == dict.fromkeys(rouge.TYPES)


def test_the_references_choose_the_tokenizer():
    nine, ten = ["国 " + "word " * 9], ["国 " + "word " * 8]
    assert tokenizer_for(nine) == "13a" and tokenizer_for(ten) == "zh"  # a tenth of the words, and more
    assert tokenizer_for(["words " * 9, "国"]) == "13a" and tokenizer_for(["words " * 8, "国"]) == "zh"
    assert tokenizer_for(["国" * 9 + "の"]) == "zh" and tokenizer_for(["国" * 8 + "の"]) == "char"
    assert tokenizer_for(["ภาษี"]) == "char" and tokenizer_for([]) == "13a"
    assert tokenizer_for(["naïve é"]) == "13a"


def test_bleu_by_hand():
    """Of "a b c d e" against "a b c d f" match 4 of 5, 3 of 4, 2 of 3 and 1 of 2: (1/5)^¼ of 1."""
    assert bleu.counts_of("a b c d e", "a b c d f") == [4, 3, 2, 1, 5, 4, 3, 2, 5, 5]
    assert bleu.from_counts([4, 3, 2, 1, 5, 4, 3, 2, 5, 5]) == pytest.approx(100 * 0.2**0.25)
    short = bleu.corpus_bleu(["a b c d"], ["a b c d e f"], "13a")
    assert short == pytest.approx(100 * math.exp(1 - 6 / 4))  # the brevity penalty
    assert bleu.corpus_bleu(["a b c"], ["a b c"], "13a") is None and bleu.corpus_bleu([], [], "13a") is None
    assert bleu.corpus_bleu(["a b c d"], ["a b c d"], "13a") == pytest.approx(100)
    assert bleu.corpus_bleu(["x", "a b c d"], ["…", "a b c d"], "13a") == pytest.approx(100)  # one has no word
    assert bleu.corpus_bleu(["x"], ["…"], "13a") is None and bleu.sentence_bleu("x", "…") is None
    assert bleu.sentence_bleu("a b", "a b") == pytest.approx(100)  # of as many grams as there are
    assert bleu.corpus_bleu(["国家付钱"], ["国家付钱"], "zh") == pytest.approx(100)
    assert bleu.from_counts([4, 3, 2, 1, 5, 4, 3, 2, 5, 5], "zh") == pytest.approx(100 * 0.2**0.25)
    assert "tok:zh" in bleu.signature("zh") and bleu.signature().startswith("nrefs:1|case:mixed|eff:no|tok:13a|")
    made = Bleu()._compute(["国家付钱"], ["国家付钱"])
    assert made["bleu"] == pytest.approx(100) and "tok:zh" in made["signature"]


def row(question, answer, reference, nll=1.0, tokens=4, correct=1, stopped=True):
    return {"question_id": question, "nll": nll, "tokens": tokens, "correct_tokens": correct,
            "bytes": len(reference.encode()), "reference": reference, "prediction": answer,
            "stopped": stopped if answer is not None else None}  # fmt: skip


def test_a_split_by_hand():
    rows = [
        row("a", "a loan a loan a loan", "a loan to a state", 8.0, 6, 3),
        row("a", "cash", "£5 in cash", 2.0, 4, 4, stopped=False),
        row("b", "", "pay in April or May", 4.0, 5, 0),
        row("c", "?!", "— — —", 1.0, 5, 1),
        row("d", None, "never answered", 9.0, 20, 2),
    ]
    split = measure(rows)
    assert (split.examples, split.questions, split.generated, split.tokens, split.bytes) == (5, 4, 4, 40, 72)
    value = {name: interval.value for name, interval in split.metrics.items()}
    assert value["nll_per_token"] == 24 / 40 and value["token_accuracy"] == 10 / 40
    assert value["bits_per_byte"] == pytest.approx(24 / 72 / math.log(2))
    assert value["stop_rate"] == 0.75 and value["length_ratio"] == 8 / 16
    assert value["repetition"] == pytest.approx((1 / 3) / 4)  # of three runs of four words one was said before
    rouge1 = [6 / 11, 0.5, 0.0]
    assert value["rouge1"] == pytest.approx(sum(rouge1) / 3)  # the fourth reference has no word
    assert [each["rouge1"] for each in rows] == pytest.approx([*rouge1, None, None])
    assert rows[4]["bleu"] is None and rows[3]["bleu"] is None and rows[2]["bleu"] == 0
    texts = [(each["prediction"], each["reference"]) for each in rows[:3]]
    assert value["bleu"] == pytest.approx(bleu.corpus_bleu(*zip(*texts, strict=True), "13a"))
    assert measure(rows, "char").metrics["bleu"].value != value["bleu"]
    nothing = measure([row("c", "?!", "— — —")]).metrics
    assert (
        nothing["rouge1"] is None and nothing["bleu"] is None and nothing["length_ratio"].value == pytest.approx(1 / 3)
    )
    assert measure([row("c", "a b c", "a b c")]).metrics["bleu"] is None
    unanswered = measure([row("a", None, "x"), row("b", None, "y")])
    assert set(unanswered.metrics) == set(LIKELIHOOD) and unanswered.generated == 0


def test_what_each_figure_divides_by_and_where_it_ends():
    """Of the columns of summed statistics: 0 answers, 4 pieces of references, 5 references with words."""
    assert {name: (each.divided_by, each.low, each.high, each.exponential) for name, each in LIKELIHOOD.items()} == {
        "nll_per_token": (1, 0, math.inf, False), "perplexity": (1, 1, math.inf, True),
        "bits_per_byte": (3, 0, math.inf, False), "token_accuracy": (1, 0, 1, False),
    }  # fmt: skip
    assert {name: (each.divided_by, each.low, each.high, each.exponential) for name, each in GENERATION.items()} == {
        **dict.fromkeys(rouge.TYPES, (5, 0, 1, False)), "stop_rate": (0, 0, 1, False), "repetition": (0, 0, 1, False),
        "length_ratio": (4, 0, math.inf, False), "bleu": (4, 0, 100, False),
    }  # fmt: skip


def test_the_order_of_examples_and_the_names_of_questions_change_nothing():
    draw = np.random.default_rng(0)
    rows = [
        row(f"q{n % 7}", "tax " * (n % 4), "tax is due in " + "may " * (n % 3), *draw.integers(1, 9, 3))
        for n in range(20)
    ]
    first = measure([dict(each) for each in rows]).metrics
    turned = [{**each, "question_id": "x" + each["question_id"][::-1]} for each in reversed(rows)]
    assert {name: vars(each) for name, each in measure(turned).metrics.items()} == {
        name: pytest.approx(vars(each)) for name, each in first.items()
    }
    many = measure([dict(each, question_id=f"{copy}{each['question_id']}") for each in rows for copy in "ab"]).metrics
    for name, each in first.items():
        assert many[name].value == pytest.approx(each.value)
        assert many[name].high - many[name].low <= each.high - each.low


def test_perplexity_is_that_of_the_module():
    sums = np.array([6.0, 3.0, 1.0, 9.0])
    assert perplexity.from_sums(*sums) == Perplexity()._compute([6.0], [3], [1], [9])
