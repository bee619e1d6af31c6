"""Every figure of a split with its interval against a slow computation in plain loops, and what few answers tell."""

import math

import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer
from scipy import stats

from eval.metrics import rouge
from eval.metrics.bleu import corpus_bleu, counts_of, from_counts, metric, sentence_bleu, signature, tokenizer_for
from eval.metrics.figures import NUMBERS, measure, repetition
from eval.results import NUMBER_METRICS, Interval

Z = 1.959963984540054  # the normal distribution's 97.5 %
ANSWERED = [  # question, answer, reference, nats, tokens, right ones, whether it stopped
    ("rent", "pay the rent in may and then in june", "pay the rent in may or june", 9.0, 8, 5, True),
    ("rent", "pay the bank and pay the bank and pay the bank", "pay the bank at the end of may", 14.0, 10, 2, False),
    ("tax", "tax is due in april or in may", "tax is due in april", 4.0, 6, 6, True),
    ("gold", "gold pays nothing", "gold is one asset that pays nothing at all", 11.0, 12, 4, True),
    ("bond", "a loan to a state or to a firm, or to a state", "a loan to a state or to a firm", 3.0, 11, 9, False),
]
UNANSWERED = ("debt", None, "what one owes", 5.0, 4, 1, None)


def made(question, answer, reference, nll=1.0, tokens=5, correct=2, stopped=True, number=None):
    row = {"question_id": question, "nll": nll, "tokens": tokens, "correct_tokens": correct,
           "bytes": len(reference), "reference": reference, "prediction": answer, "stopped": stopped}  # fmt: skip
    return row | ({"number": dict(zip(("value", "unit", "tolerance"), number, strict=True))} if number else {})


def interval_of(rows, value_of, size_of, most=math.inf):
    """Jackknife over questions: Student's t on the logit scale below `most`, and with Hall's correction without it."""
    names = sorted({row["question_id"] for row in rows})
    value = value_of(rows)
    v = [value - value_of([row for row in rows if row["question_id"] != name]) for name in names]
    sizes = [sum(size_of(row) for row in rows if row["question_id"] == name) for name in names]
    shares = [size / sum(sizes) for size in sizes]
    squares, count = sum(each**2 for each in v), len(names)
    error = math.sqrt(squares * (count - 1) / count)
    quantile = stats.t.ppf(0.975, max(1 / sum(share**2 for share in shares) - 1, 1))
    if most < math.inf:
        part = value / most
        step = quantile * error / most / (part * (1 - part))
        return [value, *(most / (1 + math.exp(-math.log(part / (1 - part)) - way * step)) for way in (-1, 1))]
    skew = sum(each**3 for each in v) / squares**1.5
    bend = skew / 3 - sum(each * share for each, share in zip(v, shares, strict=True)) / squares**0.5
    turned = [(float(np.cbrt(1 + 3 * bend * (q - skew / 6))) - 1) / bend for q in (quantile, -quantile)]
    return [value, max(value - error * max(quantile, turned[0]), 0), value + error * max(quantile, -turned[1])]


def said_before(answer):
    words = answer.split()
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return sum(gram in grams[:place] for place, gram in enumerate(grams)) / len(grams) if grams else 0


def bleu_of(rows):
    return sacrebleu.corpus_bleu([row["prediction"] for row in rows], [[row["reference"] for row in rows]]).score


def total(rows, key):
    return sum(row[key] for row in rows)


def mean(rows, value_of):
    return sum(map(value_of, rows)) / len(rows)


def pieces(rows, key):
    return sum(len(row[key].split()) for row in rows)


def test_every_figure_of_likelihoods_and_answers_has_its_value_and_interval():
    rows = [made(*each) for each in (ANSWERED[0], UNANSWERED, *ANSWERED[1:])]
    answered = [rows[0], *rows[2:]]
    scorer = rouge_scorer.RougeScorer(rouge.TYPES)
    scores = {id(row): scorer.score(row["reference"], row["prediction"]) for row in answered}
    found = measure(rows)
    expected = {
        "nll_per_token": interval_of(
            rows, lambda part: total(part, "nll") / total(part, "tokens"), lambda row: row["tokens"]
        ),
        "bits_per_byte": interval_of(
            rows, lambda part: total(part, "nll") / math.log(2) / total(part, "bytes"), lambda row: row["bytes"]
        ),
        "token_accuracy": interval_of(
            rows, lambda part: total(part, "correct_tokens") / total(part, "tokens"), lambda row: row["tokens"], 1
        ),
        "stop_rate": interval_of(answered, lambda part: mean(part, lambda row: row["stopped"]), lambda row: 1, 1),
        "repetition": interval_of(
            answered, lambda part: mean(part, lambda row: said_before(row["prediction"])), lambda row: 1, 1
        ),
        "length_ratio": interval_of(
            answered, lambda part: pieces(part, "prediction") / pieces(part, "reference"),
            lambda row: len(row["reference"].split()),
        ),
        "bleu": interval_of(answered, bleu_of, lambda row: len(row["reference"].split()), 100),
        **{
            type: interval_of(
                answered, lambda part, t=type: mean(part, lambda row: scores[id(row)][t].fmeasure), lambda row: 1, 1
            )
            for type in rouge.TYPES
        },
    }  # fmt: skip
    expected["perplexity"] = [math.exp(each) for each in expected["nll_per_token"]]
    held = {name: [each.value, each.low, each.high] for name, each in found.metrics.items()}
    assert held == {name: pytest.approx(each) for name, each in expected.items()}
    assert (found.examples, found.questions, found.tokens, found.generated, found.numbers) == (6, 5, 51, 5, 0)
    assert found.bytes == sum(len(row["reference"]) for row in rows)


def test_what_is_written_beside_each_answer():
    rows = [made(*ANSWERED[0]), made(*UNANSWERED), made("a", "a b", "— —"), made("b", "cash", "in cash now")]
    before = [dict(row) for row in rows]
    measure(rows)
    none = dict.fromkeys((*rouge.TYPES, "bleu"))
    assert rows[1] == before[1] | none and rows[2] == before[2] | none
    assert rows[3] == before[3] | {
        **dict.fromkeys(rouge.TYPES, 0.5),
        "rouge2": 0.0,
        "bleu": sentence_bleu("cash", "in cash now"),
    }
    assert rows[0] == before[0] | rouge.scores_of(*ANSWERED[0][1:3]) | {"bleu": sentence_bleu(*ANSWERED[0][1:3])}


FIVE = ("5", "$", "0.5")
ASKED = [  # question, answer and reference: of four questions, all that can be wrong with a number
    ("a", "It is $5.", "It costs $5."), ("a", "It is $7.", "It costs $5."),
    ("b", "$5, as the shop says.", "It costs $5."), ("c", "No idea.", "It costs $5."), ("d", "$5", "It costs $5."),
]  # fmt: skip


def test_figures_of_numbers_are_of_those_answers_that_must_reach_one():
    rows = [*(made(*each, number=FIVE) for each in ASKED), made("e", "$9 and more", "Pay the rent."),
            made("f", None, "It costs $5.", stopped=None, number=FIVE)]  # fmt: skip
    found = measure(rows)
    assert (found.examples, found.generated, found.numbers) == (7, 6, 5)
    verdicts = [[row["number_right"], row["no_number"], row["text_after_number"]] for row in rows[:5]]
    assert verdicts == [[1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert not any(name in row for row in rows[5:] for name in (*NUMBER_METRICS, "number_read"))
    assert [row["number_read"] for row in rows[:5]] == ["5 $", "7 $", "5 $", None, "5 $"]
    assert list(found.metrics)[-5:] == list(NUMBER_METRICS)
    for name in NUMBER_METRICS:
        each = found.metrics[name]
        wanted = interval_of(rows[:5], lambda part, n=name: mean(part, lambda row: row[n]), lambda row: 1, 1)
        assert [each.value, each.low, each.high] == pytest.approx(wanted), name
    assert found.metrics["number_right"].value == 3 / 5 and found.metrics["no_number"].value == 1 / 5


def test_none_or_all_of_few_questions_have_wilsons_interval():
    """Of two questions, though three answers: none is 0 to z² / (2 + z²), and all 2 / (2 + z²) to 1."""
    found = measure([made(name, "$5", "It costs $5.", number=FIVE) for name in "aab"]).metrics
    assert vars(found["number_right"]) == pytest.approx({"value": 1, "low": 2 / (2 + Z**2), "high": 1})
    assert vars(found["no_number"]) == pytest.approx({"value": 0, "low": 0, "high": Z**2 / (2 + Z**2)})
    assert found["no_number"].low >= 0 and found["number_right"].high <= 1
    # A share between is the jackknife's even where all questions share it.
    half = measure([made(name, answer, "It costs $5.", number=FIVE) for name in "ab" for answer in ("$5", "$7")])
    assert half.metrics["number_right"] == Interval(0.5, 0.5, 0.5)
    nobody = measure([made("a", None, "It costs $5.", stopped=None, number=FIVE)])
    assert nobody.numbers == 0 and not set(NUMBER_METRICS) & set(nobody.metrics)


def test_a_share_of_numbers_divides_by_answers_and_ends_at_one():
    assert {name: (each.divided_by, each.low, each.high, each.exponential) for name, each in NUMBERS.items()} == (
        dict.fromkeys(NUMBER_METRICS, (0, 0, 1, False))
    )


def test_a_reference_of_four_tokens_is_enough_for_a_bleu_and_one_of_three_is_none():
    three, four = made("a", "a b c", "a b c"), made("b", "a b c d", "a b c d")
    assert measure([dict(three)]).metrics["bleu"] is None
    assert measure([dict(four)]).metrics["bleu"].value == pytest.approx(100)
    assert measure([dict(three), dict(four)]).metrics["bleu"].value == pytest.approx(100)
    assert measure([dict(four), dict(three)]).metrics["bleu"].value == pytest.approx(100)
    assert corpus_bleu(["a b c", "a b c d"], ["a b c", "a b c d"], "13a") == pytest.approx(100)
    assert corpus_bleu(["a b c d", "a b c"], ["a b c d", "a b c"], "13a") == pytest.approx(100)
    assert corpus_bleu(["a b c d"], ["a b c"], "13a") is None  # the reference decides, whatever the answer
    assert corpus_bleu(["a b"], ["a b c d"], "13a") is not None


def test_a_reference_without_words_says_nothing_of_words_and_all_of_length():
    """Of 3 pieces each: the answer "a b" of the second counts to the length, and to no word."""
    found = measure([made("a", "tax is due in may", "tax is due"), made("b", "a b", "— — —")]).metrics
    assert found["length_ratio"].value == 7 / 6 and found["rouge1"].value == pytest.approx(2 * 3 / 8)
    assert found["rouge1"].low == found["rouge1"].high == found["rouge1"].value  # one question alone has words
    assert found["bleu"] is None


def test_references_choose_one_tokenizer_for_all_and_a_given_one_is_taken():
    rows = [("a", "国家付钱给他们", "国家付钱给银行"), ("b", "tax is due in may", "tax is due in april")]
    answers, references = [row[1] for row in rows], [row[2] for row in rows]
    for given, name in ((None, tokenizer_for(references)), ("char", "char"), ("13a", "13a")):
        held = [made(*row) for row in rows]
        found = measure(held, given).metrics["bleu"].value
        expected = sacrebleu.metrics.BLEU(tokenize=name).corpus_score(answers, [references]).score
        assert found == pytest.approx(expected), name
        assert [row["bleu"] for row in held] == pytest.approx(
            [sacrebleu.metrics.BLEU(tokenize=name, effective_order=True).sentence_score(a, [r]).score
             for a, r in zip(answers, references, strict=True)]
        )  # fmt: skip
    assert tokenizer_for(references) == "zh"


@pytest.mark.parametrize(("references", "name"), [
    (["国" * 3, "tax " * 3], "zh"), (["tax " * 3, "の" * 3], "char"), (["の" + "国" * 3, "é " * 3], "char"),
    (["国 " + "é " * 9], "13a"), (["国 " + "é " * 8], "zh"), (["é " * 9, "国"], "13a"), (["é " * 8, "国"], "zh"),
    (["国の", "国" * 8], "zh"), (["国" * 8, "のの"], "char"), (["tax"], "13a"), (["国"], "zh"), ([""], "13a"),
    (["a a a", "国 é é é é", "a a"], "13a"), (["a a a", "国 é é é é", "a"], "zh"),
    (["国国 " + "a " * 10, "a " * 8], "13a"), (["国国 " + "a " * 10, "a " * 7], "zh"),
])  # fmt: skip
def test_a_tenth_of_the_words_in_a_script_without_blanks_chooses_nothing_and_more_does(references, name):
    assert tokenizer_for(references) == name == tokenizer_for(references[::-1]) == tokenizer_for(iter(references * 3))


def test_a_sentence_is_scored_by_the_grams_it_can_have_and_a_corpus_by_four():
    """One word of two, of grams up to two that there are: (50 · 50 / 1)^½ with sacrebleu's smoothing by halves."""
    assert metric("13a").effective_order is False and metric("13a", True).effective_order is True
    assert sentence_bleu("tax due", "tax paid") == pytest.approx(math.sqrt(50 * 50))
    assert counts_of("tax due", "tax paid now") == [1, 0, 0, 0, 2, 1, 0, 0, 2, 3]
    assert counts_of("国家", "国王", "zh") == [1, 0, 0, 0, 2, 1, 0, 0, 2, 2] != counts_of("国家", "国王")
    # Smoothed by halves: of a corpus 4 of 8, 1 of 7, ½ of 6 and ¼ of 5, and a brevity of 8 to 10
    smoothed = 100 * (4 / 8 * 1 / 7 * 0.5 / 6 * 0.25 / 5) ** 0.25 * math.exp(1 - 10 / 8)
    assert from_counts([4, 1, 0, 0, 8, 7, 6, 5, 8, 10]) == pytest.approx(smoothed)
    assert from_counts(np.array([4.0, 1, 0, 0, 8, 7, 6, 5, 8, 10])) == pytest.approx(smoothed)
    assert from_counts([4, 1, 0, 0, 8, 7, 6, 5, 10, 8]) == pytest.approx(smoothed * math.exp(0.25))
    assert sentence_bleu("国家付钱", "国家付款", "zh") > sentence_bleu("国家付钱", "国家付款") == 0
    assert signature("char").split("|")[:4] == ["nrefs:1", "case:mixed", "eff:no", "tok:char"]


@pytest.mark.parametrize(("text", "share"), [
    ("a b c d a b c d", 1 / 5), ("a b c d a b c d a b c d", 5 / 9), ("x a b c d a b c d", 1 / 6), ("a b c d", 0),
    ("a b c d a b c d x", 1 / 6), ("a b c a b c", 0), ("a a a a", 0), ("a a a a a", 1 / 2), ("国国国国国国", 2 / 3),
])  # fmt: skip
def test_what_is_said_again(text, share):
    assert repetition(text) == pytest.approx(share)


def test_what_is_said_again_in_runs_of_another_length():
    assert repetition("a b a b", n=2) == pytest.approx(1 / 3) and repetition("a b a b", n=3) == 0


def test_one_example_has_figures_and_intervals_of_no_width():
    found = measure([made("a", "tax is due", "tax is due in may", 2.0, 4, 1)]).metrics
    assert all(each.low == each.value == each.high for each in found.values())
    assert {name: each.value for name, each in found.items()} == pytest.approx(
        {
            "nll_per_token": 0.5, "perplexity": math.exp(0.5), "bits_per_byte": 2 / math.log(2) / 17,
            "token_accuracy": 0.25,
            "rouge1": 0.75, "rouge2": 2 / 3, "rougeL": 0.75, "rougeLsum": 0.75, "stop_rate": 1, "repetition": 0,
            "length_ratio": 0.6, "bleu": sacrebleu.corpus_bleu(["tax is due"], [["tax is due in may"]]).score,
        }
    )  # fmt: skip
