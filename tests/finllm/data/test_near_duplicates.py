"""Near duplicates of every kind that docs/trust.md names: kept in one split, found by the audit; others are neither."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from eval.audits.overlap import contamination
from finllm.data.dataset_dir import DatasetDir
from finllm.data.grams import folded
from finllm.data.near_duplicates import NearDuplicates, clusters
from finllm.data.split import SPLITS

ROOT = Path(__file__).parents[3]
QUESTIONS = (
    "How do I build an emergency fund while still repaying a student loan?",
    "What should a first time buyer check before signing a mortgage contract?",
    "Why do some companies buy back their own shares instead of paying dividends?",
    "Is it sensible to keep all of my pension money in one index fund?",
    "When does leasing a delivery van cost less than buying it outright?",
    "Can a landlord deduct the cost of repairs from rental income this year?",
    "Which insurance does a self employed carpenter need in the first year?",
    "How does an inverted yield curve change what a bank earns on lending?",
)
OTHER_QUESTIONS = dict(
    zip(
        QUESTIONS,
        (
            "We spoke about tulips, their prices in Holland and the merchants who lost a fortune with them.",
            "Yesterday the ferry was late, so there was time to talk with a fisherman from Cornwall.",
            "My grandmother used to collect silver coins and kept them in a jar behind the flour.",
            "This newspaper prints a page of letters on money each Saturday, which I like to read.",
            "Our choir needs a treasurer again, and nobody but me wants to touch the accounts.",
            "In the evening class they showed us a film about the harbour and its old warehouses.",
            "The radio had a quiz about famous inventors, and I knew none of the answers but one.",
            "At the market a man sells maps of towns that were never built, quite cheaply too.",
        ),
        strict=True,
    )
)
LOOK_ALIKES = str.maketrans("aeopcxyH", "аеорсхуН")


def one_word(text):
    words = text.split()
    return " ".join([*words[:4], "grandmother", *words[5:]])


def halves_swapped(text):
    words = text.rstrip("?").split()
    return " ".join(words[6:] + words[:6])


def misspelt(text):
    words = text.split()
    swapped = [word[:1] + word[2] + word[1] + word[3:] if len(word) > 5 else word for word in words]
    return " ".join([*words[:5], *swapped[5:8], *words[8:]])


KINDS = {
    "one word changed": one_word,
    "an opening put before": lambda text: f"Please tell me: {text}",
    "a closing put after": lambda text: f"{text} Thanks in advance!",
    "halves swapped": halves_swapped,
    "inside a longer one": lambda text: (  # each in words of its own: what many rows share makes them alike
        f"{OTHER_QUESTIONS[text]} My brother asked me: {text[0].lower()}{text[1:]} And I have no idea at all."
    ),
    "look-alike letters": lambda text: text.translate(LOOK_ALIKES),
    "zero-width characters": lambda text: "\u200b".join(text[:9]) + text[9:].replace("o", "\u200do\u00ad"),
    "misspelt words": misspelt,
    "case, accents and signs": lambda text: text.upper().replace("E", "É").replace(" ", " – "),
}


def row(question, answer="It depends."):
    return {"id": question, "question_id": question, "instruction": question, "input": "", "output": answer}


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """Where `finllm prepare --cluster_near_duplicates` puts each question of a source with all kinds, and others."""
    folder = tmp_path_factory.mktemp("clustered")
    texts = [change(text) for change in (str, *KINDS.values()) for text in QUESTIONS]
    texts += [f"Invoice {n} over {n * 7} euros is due in {n + 3} days: what does a delay cost?" for n in range(60)]
    rows = [{"instruction": text, "output": f"Answer {number} of them"} for number, text in enumerate(texts)]
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(each) + "\n" for each in rows))
    command = [sys.executable, ROOT / "finllm/cli.py", "prepare", source, "--output_dir", folder / "data"]
    command += ["--cluster_near_duplicates", "--validation_fraction", "0.3", "--test_fraction", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    dataset = DatasetDir(folder / "data")
    return {each["instruction"]: split for split in SPLITS for each in dataset.rows(split)}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_stays_in_the_split_of_its_question(placed, kind):
    assert len({placed[text] for text in QUESTIONS}) > 1
    assert [placed[KINDS[kind](text)] for text in QUESTIONS] == [placed[text] for text in QUESTIONS]


def test_the_same_question_with_other_numbers_is_another_one(placed):
    assert len({split for text, split in placed.items() if text.startswith("Invoice")}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_contamination_on_whichever_side_it_stands(kind):
    asked = [row(text) for text in QUESTIONS]
    changed = [row(KINDS[kind](text), "Yes.") for text in QUESTIONS]
    for test, training in ((asked, changed), (changed, asked)):
        found = contamination(test, training)
        assert found["exact_questions"] + found["near_questions"] == len(QUESTIONS), kind
        assert len(found["contaminated"]) == len(QUESTIONS) and found["other_numbers"] == 0


def test_other_numbers_are_counted_apart_and_no_contamination():
    asked = [row("What do 3 shares at 12.50 euros each cost me with a fee of 1,000?", "It costs 37.50 and 1,000.")]
    other = [row("What do 4 shares at 13.50 euros each cost me with a fee of 2,000?", "It costs 54 and 2,000.")]
    found = contamination(asked, other)
    assert found["passed"] and found["other_numbers"] == 1
    assert "1 other questions stand in training with other numbers" in found["summary"]
    same = [row("What do 3 shares at 12.5 euros each cost you with a fee of 1000?")]
    assert contamination(asked, same)["near_questions"] == 1
    assert contamination(asked, same)["other_numbers"] == 0


ANSWER = (
    "Pay the debt with the highest rate first, since every euro that you put there saves more interest than any "
    "other. Keep three months of spending in a savings account that you can reach at once, and only then invest."
)
OTHER = (
    "Landlords may set ordinary repairs against the rent of the year in which they were paid. Whatever makes the house "
    "better than it was counts as an improvement instead, and is written down over the years that follow."
)


def test_half_copied_answers_are_found_and_honest_ones_are_not():
    words, others = ANSWER.split(), OTHER.split()
    half = " ".join(words[:20] + others[20:])
    for text in (half, " ".join(others[:18] + words[20:]), f"{OTHER} {ANSWER}", " ".join(words[5:30])):
        found = contamination([row("Which loan?", ANSWER)], [row("What about repairs?", text)])
        assert found["near_answers"] == 1 and not found["passed"], text
    assert contamination([row("Which loan?", ANSWER)], [row("What about repairs?", OTHER)])["passed"]
    sum_of = "The payment is the loan times the monthly rate over one less the discount, so it is {} × {} = {} euros."
    found = contamination([row("A?", sum_of.format(1200, "0.08", 96))], [row("B?", sum_of.format(3500, "0.02", 70))])
    assert found["passed"]  # the words of a formula, with other numbers


def test_honest_questions_are_no_near_duplicates():
    texts = [
        *QUESTIONS,
        "What is a bond?", "What is a stock?", "How are bonds taxed?", "Why are bonds safe?",
        "👍👍👍", "📈 📉", "。。。", "12 + 30", "12 + 31", "1 2 3 4 5 6 7 8", "8 9 10 11 12 13 14 15 16",
    ]  # fmt: skip
    assert clusters(texts) == list(range(len(texts)))


def test_scripts_without_blanks():
    texts = [
        "请问什么是指数基金，它有哪些主要的风险？", "请问什么是指数基金，它有哪些重要的风险？",
        "你好，请问什么是指数基金，它有哪些主要的风险？谢谢", "国债的利息收入在每年什么时候需要缴税？",
        "ราคาน้ำมันขึ้นแล้วหุ้นกลุ่มไหนได้ประโยชน์", "ราคาน้ำมันลงแล้วหุ้นกลุ่มไหนได้ประโยชน์",
        "什么是指数基金的费用？", "什么是指数基金的成本？",
    ]  # fmt: skip
    assert clusters(texts) == [0, 0, 0, 3, 4, 4, 6, 6]


def test_folding():
    assert folded("Wһаt will €1,000.00 bе\u200b?") == ("what will # be", ("1000",))
    assert folded("Ｃａｆé  Naïve №７ 007 2.50", masked=False) == ("cafe naive no7 7 2 5", ("2.5", "7", "7"))
    assert folded("금리 인상") == ("금리 인상", ()) and folded("?!") == ("?!", ())


SYLLABLES = [f"{a}{b}{c}" for a in "bdfglmnprstvz" for b in "aeiou" for c in "bdfglmnprstvz"]
FIXED = (
    "What is the sentiment of this news? Please choose an answer from {negative/neutral/positive}, and think of the "
    "company, of its sector and of the market as a whole before you choose.\n"
)
CHINESE_FIXED = "请阅读下面的金融新闻，并判断它对公司股价的影响是正面、负面还是中性，只回答一个词语。\n"


def headlines(count, sign=" ", seed=0):
    """Texts of made-up words, no two of which are alike."""
    draw = random.Random(seed)
    return [sign.join(draw.choices(SYLLABLES, k=12)).capitalize() for _ in range(count)]


def test_many_questions_of_one_pattern_differ_by_what_varies():
    texts = [f"Could you tell me in plain words what the shares of {name} are worth today?" for name in SYLLABLES]
    assert len(set(clusters(texts))) > 0.9 * len(texts)
    assert NearDuplicates([])._grams.sizes_N.size == 0 and clusters([]) == []
    index = NearDuplicates(texts[:5], among=texts)
    assert set(zip(*map(list, index.search(texts)), strict=True)) == {(n, n) for n in range(5)}
    assert index.search([])[0].size == 0 and NearDuplicates([]).search(texts)[0].size == 0


@pytest.mark.parametrize("fixed", [FIXED, CHINESE_FIXED])
def test_a_fixed_instruction_makes_no_two_rows_alike_and_hides_no_copy(fixed):
    news = headlines(400) if fixed == FIXED else ["".join(random.Random(n).choices(HAN, k=24)) for n in range(400)]
    changed = [f"{text[:-4]}{text[-2:]}" for text in news[:40]]
    texts = [fixed + text for text in (*news, *changed)]
    found = clusters(texts)
    assert found[:400] == list(range(400)) and found[400:] == list(range(40))
    rows = [row(text) for text in texts]
    audit = contamination(rows[400:] + rows[300:350], rows[:300])
    assert audit["near_questions"] == 40 and audit["exact_questions"] == 0 and len(audit["contaminated"]) == 40


def test_the_instruction_alone_is_like_no_row_that_has_more():
    texts = [FIXED + text for text in headlines(60)]
    assert clusters([*texts, FIXED, FIXED.upper()]) == [*range(61), 60]


HAN = [chr(code) for code in range(0x4E00, 0x5200)]


def test_the_bundled_sample_is_clean_by_its_own_audit(tmp_path):
    command = [sys.executable, ROOT / "finllm/cli.py", "prepare", "sample", "--output_dir", tmp_path / "data"]
    done = subprocess.run([*command, "--cluster_near_duplicates"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    dataset = DatasetDir(tmp_path / "data")
    rows = [each for split in SPLITS for each in dataset.rows(split)]
    assert len(rows) == 2323
    for split in ("test", "validation"):
        found = contamination(dataset.rows(split), dataset.rows("train"))
        assert found["passed"] and found["within"] == {"questions": 0, "answers": 0}, found["summary"]
        assert found["other_numbers"] > 20
    # And so by any split: no two rows are near duplicates.
    for texts, answers in (
        ([f"{each['instruction']}\n{each['input']}" for each in rows], False),
        ([each["output"] for each in rows], True),
    ):
        one, other = NearDuplicates(texts, answers).search(texts)
        assert [(texts[a], texts[b]) for a, b in zip(one, other, strict=True) if a != b] == []
