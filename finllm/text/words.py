"""Words in any script, for whoever counts or compares texts.

    pieces   what blanks part:  "Rates rose 3.5 %."   →  Rates · rose · 3.5 · %.
    words    what is compared:  "Rates rose 3.5 %."   →  rates · rose · 3 · 5

Where a script writes no blanks between words (Chinese, Japanese, Thai and others), each character with its marks is a
piece and a word of its own. In ASCII `pieces` is `str.split` and `words` the tokenizer of the package rouge_score.
"""

from __future__ import annotations

import re
import unicodedata

import regex

# Scripts whose words no blanks part (Unicode Standard Annex 14: ideographs, kana, and the class SA of Southeast Asia)
WITHOUT_BLANKS = (
    "Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "Tai_Le",
    "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Javanese", "Balinese",
)  # fmt: skip
_ALONE = "[[" + "".join(rf"\p{{Script_Extensions={script}}}" for script in WITHOUT_BLANKS) + r"]&&[\p{L}\p{Nl}]]"
# A letter or digit and what follows it, up to one that stands alone; marks and joiners belong to what they follow.
_WORD = regex.compile(
    rf"(?={_ALONE})\X|(?!{_ALONE})[\p{{L}}\p{{Nd}}\p{{Nl}}](?:(?!{_ALONE})[\p{{L}}\p{{M}}\p{{Nd}}\p{{Nl}}\u200c\u200d])*",
    regex.V1,
)
_PIECE = regex.compile(rf"(?={_ALONE})\X|(?:(?!{_ALONE})\S)+", regex.V1)
_STANDS_ALONE = regex.compile(_ALONE, regex.V1)


def pieces(text: str) -> list[str]:
    """What blanks part, as it is written, with each character of a script without blanks a piece of its own."""
    return text.split() if text.isascii() else [piece for part in text.split() for piece in _PIECE.findall(part)]


def count_of_pieces(text: str) -> int:
    """How many pieces a text has, without holding them."""
    parts = re.finditer(r"\S+", text)
    return sum(1 for part in parts for _ in ((part,) if text.isascii() else _PIECE.finditer(part[0])))


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits, case folded and composed (NFC), as above; nothing of what stands between."""
    if text.isascii():  # the same, ten times as fast
        return re.findall("[a-z0-9]+", text.lower())
    return _WORD.findall(unicodedata.normalize("NFC", text.casefold()))


def stands_alone(word: str) -> bool:
    """Whether a word is one character of a script without blanks."""
    return _STANDS_ALONE.match(word) is not None


def is_han(word: str) -> bool:
    return regex.match(r"\p{Script=Han}", word) is not None
