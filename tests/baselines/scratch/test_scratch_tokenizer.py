"""The tokenizer: every text survives, the vocabulary's limits are named, the same texts give the same model."""

import re

import pytest

from baselines.scratch.tokenizer import BOS, EOS, PAD, UNKNOWN, Tokenizer, template_parts
from finllm.errors import UserError
from finllm.text.prompts import build_prompt
from tests.baselines.scratch.conftest import rows_of

TEXTS = [text for row in rows_of(1, 60) for text in row if text]
HARD = [
    "",
    " ",
    "  two  spaces, and two at the end  ",
    "a\tb\t\tc\n\n\nd\r\ne\x0bf",
    "🙂 👩‍👩‍👧 🇨🇭",
    "漢字かな交じり文 ไทย العربية",
    "\x00\x01\x7f\x9f \u200b\ufeff\u3000\u00a0",
    "e\u0301 é ﬁ ① ² Ω Å",  # what NFKC would change
    "▁ ▁▁x▁ ▅",  # the sign that SentencePiece writes for a space
    "<s> </s> <unk> <pad> <0x0A>",
    "\U0010ffff\uffff",
    build_prompt("What is a bond?\t", "line one\nline two"),
]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request):
    return Tokenizer.train(TEXTS, 340, request.param)


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_every_text_survives_the_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {PAD, UNKNOWN, BOS, EOS} & set(ids)


def test_special_ids_vanish_in_text(tokenizer):
    assert (PAD, UNKNOWN, BOS, EOS) == (0, 1, 2, 3)
    assert tokenizer.decode([BOS, *tokenizer.encode("a bond"), EOS, PAD]) == "a bond"


def test_the_words_of_the_template_are_one_piece_each(tokenizer):
    parts = template_parts()
    assert "\n\n### Response:\n" in parts and len(parts) == len(set(parts))
    assert [len(tokenizer.encode(part)) for part in parts] == [1] * len(parts)
    assert "".join(parts[:1]) + "A" + parts[1] + "B" + parts[2] == build_prompt("A", "B")


def test_the_same_texts_give_the_same_model(tokenizer, tmp_path):
    kind = "bpe" if tokenizer.model == Tokenizer.train(TEXTS, 340, "bpe").model else "unigram"
    assert tokenizer.model == Tokenizer.train(TEXTS, 340, kind).model
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode("a bond") == tokenizer.encode("a bond")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_largest_vocabulary_is_named_and_works(kind):
    messages = []
    for _ in range(2):
        with pytest.raises(UserError, match="vocabulary_size is 9,000 and the training split holds at most") as caught:
            Tokenizer.train(TEXTS, 9000, kind)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    limit = int(re.search(r"set vocabulary_size to (\d+) or less", messages[0])[1])
    assert Tokenizer.train(TEXTS, limit, kind).vocabulary_size == limit
    with pytest.raises(UserError):
        Tokenizer.train(TEXTS, limit + 1, kind)


def test_the_smallest_vocabulary_is_named_and_works():
    with pytest.raises(UserError, match="needs at least") as caught:
        Tokenizer.train(TEXTS, 100)
    limit = int(re.search(r"set vocabulary_size to (\d+) or more", str(caught.value))[1])
    assert Tokenizer.train(TEXTS, limit).vocabulary_size == limit


def test_report():
    tokenizer = Tokenizer.train(TEXTS, 340)
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    smile = tokenizer.encode("🙂")
    assert len(smile) == 4
    report = tokenizer.report([[a, a, b], [a] * 7, [UNKNOWN, *smile, a]], max_length=5)
    assert report == {
        "vocabulary_size": 340,
        "unknown_pieces": 1 / 16,
        "byte_pieces": 4 / 16,
        "vocabulary_seen_never": 1 - 7 / 340,
        "vocabulary_seen_once": 6 / 340,
        "length_percentiles": {50: 6, 90: 7, 99: 7, 100: 7},
        "truncated": 2 / 3,
    }
