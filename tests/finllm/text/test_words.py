"""Words of all scripts; in English they are those that rouge_score and `str.split` have always given."""

import json
import random
import string
import unicodedata
from pathlib import Path

import pytest
from rouge_score import rouge_scorer
from rouge_score.tokenizers import DefaultTokenizer

from eval.metrics import rouge
from finllm.text.words import count_of_pieces, pieces, words

SAMPLE = Path(__file__).parents[3] / "finllm" / "data" / "sample"


@pytest.fixture(scope="module")
def english() -> list[str]:
    """Every seventh bundled row: some hundreds of texts, with £, € and × in them."""
    rows = [json.loads(line) for path in sorted(SAMPLE.glob("*.jsonl")) for line in path.open(encoding="utf-8")]
    return [row[key] for row in rows[::7] for key in ("instruction", "input", "output") if row.get(key)]


def test_english_words_are_those_of_before(english):
    own = DefaultTokenizer(use_stemmer=False)
    assert len(english) > 300 and any("£" in text for text in english)
    assert [words(text) for text in english] == [own.tokenize(text) for text in english]
    assert [pieces(text) for text in english] == [text.split() for text in english]


def test_any_ascii_and_signs_among_it_give_the_words_of_before():
    draw, own = random.Random(0), DefaultTokenizer(use_stemmer=False)
    for signs in (string.printable, string.printable + "£€×–—’“”…½²\u00a0\u2028\x1c\x85"):
        for _ in range(2000):
            text = "".join(draw.choices(signs, k=40))
            assert words(text) == own.tokenize(text) and pieces(text) == text.split(), text


def test_rouge_of_english_is_to_the_digit_that_of_rouge_score(english):
    scorer = rouge_scorer.RougeScorer(rouge.TYPES, use_stemmer=False)
    for answer, reference in zip(english, english[1:] + english[:1], strict=True):
        expected = {type: score.fmeasure for type, score in scorer.score(reference, answer).items()}
        assert rouge.scores_of(answer, reference) == expected
        mixed = answer[: len(answer) // 2] + "\n" + reference[len(reference) // 3 :]
        expected = {type: score.fmeasure for type, score in scorer.score(reference, mixed).items()}
        assert rouge.scores_of(mixed, reference) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("利率上升3.5%，GDP增长。", ["利", "率", "上", "升", "3", "5", "gdp", "增", "长"]),
        ("データの々", ["デ", "ー", "タ", "の", "々"]),
        ("ﾃﾞｰﾀ", ["ﾃﾞ", "ｰ", "ﾀ"]),
        ("น้ำมัน 10 บาท", ["น้ำ", "มั", "น", "10", "บ", "า", "ท"]),
        ("ລາຄາ", ["ລ", "າ", "ຄ", "າ"]),
        ("ငွေ", ["ငွေ"]),
        ("བོད་ཡིག", ["བོ", "ད", "ཡི", "ག"]),
        ("Ставка, Ёлка!", ["ставка", "ёлка"]),
        ("سعر الفائدة", ["سعر", "الفائدة"]),
        ("می‌خواهم", ["می‌خواهم"]),
        ("नमस्ते दुनिया।", ["नमस्ते", "दुनिया"]),
        ("Το επιτόκιο ΟΔΟΣ", ["το", "επιτόκιο", "οδοσ"]),
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
        ("금리 인상", ["금리", "인상"]),
        ("cafe\u0301 CAFÉ", ["café", "café"]),
        ("👍👨‍👩‍👧 ❤️ !?", []),
        ("１２ 3", ["１２", "3"]),
        ("", []),
    ],
)
def test_words_of_other_scripts(text, expected):
    assert words(text) == [unicodedata.normalize("NFC", word) for word in expected]


def test_pieces_keep_what_is_written():
    assert pieces("GDP增长3.5%。 Rates rose") == ["GDP", "增", "长", "3.5%。", "Rates", "rose"]
    assert "".join(pieces("ราคาน้ำมัน。中文，テスト!")) == "ราคาน้ำมัน。中文，テスト!"


@pytest.mark.parametrize(
    "text", ["", " a  b\x1fc\n", "Zins 3,5 % – 利率上升 now", "株価は何ですか", "ราคา a\u3000b\u00a0c"]
)
def test_pieces_are_counted_as_they_are(text):
    assert count_of_pieces(text) == len(pieces(text))
