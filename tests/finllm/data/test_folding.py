"""How a text is folded before it is compared, letter by letter and number by number."""

import re

import pytest

from finllm.data.grams import folded


@pytest.mark.parametrize(
    ("text", "letters", "numbers"),
    [
        # Signs and case go, what is between words is one blank, and a text of signs alone stays
        ("What IS it?", "what is it", ()), ("  a\t–\n b.c ", "a b c", ()),
        ("a_b-c", "a b c", ()), ("don't", "don t", ()),
        ("?!", "?!", ()), ("", "", ()), (" ", " ", ()), ("…", "…", ()), ("a#b", "a b", ()), ("#", "#", ()),
        # Accents, forms and what nobody sees
        ("Café naïve", "cafe naive", ()), ("cafe\u0301", "cafe", ()), ("ﬁnance ½", "finance # #", ("1", "2")),
        ("ＦＵＬＬ　ｗｉｄｔｈ", "full width", ()), ("Straße", "strasse", ()), ("ab\u200bc\u00add", "abcd", ()),
        ("a\u0301\u0302b", "ab", ()), ("금리 인상", "금리 인상", ()), ("だ", "た", ()),
        ("คำ", "คํา", ()), ("कि का", "कि का", ()),
        # Letters that look like Latin ones
        ("авекмнорстухіјѕԁһԛԝӏ", "abekmhopctyxijsdhqwl", ()), ("αβεζηικμνορτυχɑɡı", "abezhikmvoptuxagi", ()),
        ("ΝΥ", "ny", ()), ("νυ", "vu", ()), ("ΑΒ", "ab", ()), ("ж债", "ж债", ()),
        # Numbers, each written in one way, sorted as texts
        ("b 10 a 9 9", "b # a # #", ("10", "9", "9")), ("1,000.50", "#", ("1000.5",)), ("007", "#", ("7",)),
        ("0 0.0 00", "# # #", ("0", "0", "0")), ("1,234,567.00", "#", ("1234567",)), ("12,50", "#", ("12,50",)),
        ("1,0000", "#", ("1,0000",)), ("0.10", "#", ("0.1",)), ("10.", "#", ("10",)), (".5", "#", ("5",)),
        ("1.2.30", "#", ("1.2.3",)), ("100", "#", ("100",)), ("a1b", "a#b", ("1",)), ("é1,000é", "e#e", ("1000",)),
        ("№７", "no#", ("7",)), ("1 , 2", "# #", ("1", "2")), ("1,2,3", "#", ("1,2,3",)),
    ],
)  # fmt: skip
def test_what_is_compared_of_a_text(text, letters, numbers):
    assert folded(text) == (letters, numbers)
    if re.search(r"\w", text):  # in ASCII or not
        assert folded(f"{text} –") == (letters, numbers) and folded(f"é {text}") == (f"e {letters}", numbers)


def test_numbers_stand_in_their_places_where_they_are_not_masked():
    assert folded("b 10 and 1,000.50 or 007", masked=False) == ("b 10 and 1000 5 or 7", ("10", "1000.5", "7"))
    assert folded("é ７", masked=False) == ("e 7", ("7",))
