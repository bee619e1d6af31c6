"""A letter of a script without blanks is a word of its own, with its marks; one of another script is none."""

import pytest

from finllm.text.words import count_of_pieces, is_han, pieces, stands_alone, words

# Two letters of each script whose words no blanks part
LETTERS = {
    "Han": "利率", "Hiragana": "ひか", "Katakana": "カナ", "Bopomofo": "ㄅㄆ", "Yi": "ꀀꀁ", "Thai": "กข", "Lao": "ກຂ",
    "Khmer": "កខ", "Myanmar": "ကခ", "Tibetan": "ཀཁ", "Tai_Le": "ᥐᥑ", "New_Tai_Lue": "ᦀᦁ", "Tai_Tham": "ᨠᨡ",
    "Tai_Viet": "ꪀꪁ", "Javanese": "ꦏꦐ", "Balinese": "ᬓᬔ",
}  # fmt: skip


@pytest.mark.parametrize("script", LETTERS)
def test_each_letter_of_a_script_without_blanks_is_a_word_and_a_piece(script: str) -> None:
    first, second = LETTERS[script]
    assert words(f"ab{first}{second}1") == ["ab", first, second, "1"]
    assert pieces(f"ab{first}{second}1.") == ["ab", first, second, "1."]
    assert count_of_pieces(f"ab{first}{second}1. c") == 5
    assert stands_alone(first) and stands_alone(second)


@pytest.mark.parametrize("word", ["น้ำ", "ငွေ", "利\ufe00"])
def test_a_character_stands_alone_with_its_marks(word: str) -> None:
    assert words(word) == [word] and stands_alone(word)


@pytest.mark.parametrize("word", ["rates", "5", "금리", "ставка", "a利", "5カ", ""])
def test_other_words_do_not_stand_alone_and_are_not_han(word: str) -> None:
    assert not stands_alone(word) and not is_han(word)


def test_han_is_the_script_of_chinese_alone() -> None:
    assert is_han("利") and is_han("利\ufe00") and is_han("々")
    assert not any(is_han(letters) for script, letters in LETTERS.items() if script != "Han")
