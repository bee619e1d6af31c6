"""Numbers of a text as literals: value, unit, worth of the last digit, and the piece of the text that says it."""

from decimal import Decimal

import pytest

from finllm.text.number import CURRENCIES, Number, final_number, numbers, numbers_asked, sure_number

# A text, and of each of its numbers: value (None for one that cannot be read), unit, worth of a digit, piece
READ = [
    # scales
    *((f"{word}", "5" + "0" * zeros, "", "1" + "0" * zeros) for word, zeros in (
        ("5 hundred", 2), ("5 hundreds", 2), ("5k", 3), ("5 thousand", 3), ("5 Thousands", 3), ("5 lakh", 5),
        ("5 lakhs", 5), ("5m", 6), ("5M", 6), ("5mm", 6), ("5 mn", 6), ("5 million", 6), ("5 millions", 6),
        ("5 crore", 7), ("5 crores", 7), ("5b", 9), ("5 bn", 9), ("5 billion", 9), ("5t", 12), ("5 tn", 12),
        ("5 trillion", 12), ("5 trillions", 12),
    )),
    ("$5 k", "5000", "$", "1000"),
    ("$2.50 million", "2500000", "$", "10000"),
    ("1.2 × 10^-6", "0.0000012", "", "0.0000001"),
    ("1.2 x 10^(6)", "1200000", "", "100000"),
    ("1.2e−2", "0.012", "", "0.001"),
    ("1.2E+2k", "120000", "", "10000"),
    # units
    *((f"5 {word}", "5", unit, "1") for word, unit in (
        ("dollar", "$"), ("US dollars", "$"), ("Euros", "€"), ("pounds", "£"), ("yen", "¥"), ("rupees", "₹"),
        ("yuan", "CNY"), ("francs", "CHF"), ("%", "%"), ("percent", "%"), ("Per cent", "%"), ("pct", "%"), ("pp", "%"),
        ("percentage  point", "%"), ("years", "years"), ("yr", "years"), ("quarters", "quarters"), ("month", "months"),
        ("weeks", "weeks"), ("day", "days"), ("hours", "hours"), ("minutes", "minutes"), ("period", "periods"),
        ("periods", "periods"), ("payments", "payments"), ("instalments", "instalments"),
        ("installment", "instalments"), ("×", ""),
    )),
    ("Rs. 5", "5", "₹", "1"),
    ("￥５", "5", "¥", "1"),
    ("￡５．５", "5.5", "£", "0.1"),
    ("25.5 bps", "0.255", "%", "0.001"),
    ("5 bp", "0.05", "%", "0.01"),
    ("5 basis points", "0.05", "%", "0.01"),
    ("5 cent", "0.05", "", "0.01"),
    ("50 Cents", "0.50", "", "0.01"),
    ("5 pence", "0.05", "£", "0.01"),
    # digits
    ("1'234.50", "1234.50", "", "0.01"),
    ("12,34,567", "1234567", "", "1"),
    (".5", "0.5", "", "0.1"),
    ("𝟓", "5", "", "1"),  # as mathematics sets it
    ("1.2.3", None, "", "0"),
    ("1" + "0" * 59, "1" + "0" * 59, "", "1"),
    ("1" + "0" * 60, None, "", "0"),
    # signs and brackets
    ("−5", "-5", "", "1"),
    ("+5", "5", "", "1"),
    ("$-5", "-5", "$", "1"),
    ("-$5", "-5", "$", "1"),
    ("-$-5", "-5", "$", "1"),  # a minus that is said twice is one
    ("minus $-5", "-5", "$", "1"),
    ("($-250)", "-250", "$", "1"),
    ("(\\$250)", "-250", "$", "1"),  # as TeX writes it
    ("-\\$250", "-250", "$", "1"),
    ("\\$-250", "-250", "$", "1"),
    ("\\$ 250", "250", "$", "1"),
    ("US\\$250", "250", "$", "1"),
    ("(5 %)", "-5", "%", "1"),
    ("( 5 ) %", "-5", "%", "1"),
    ("US$ ( 5 )", "-5", "$", "1"),
    ("$ (5k)", "-5000", "$", "1000"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value", "unit", "digit"), READ)
def test_a_number_alone(text: str, value: str | None, unit: str, digit: str) -> None:
    (found,) = numbers(text)
    assert found == Number(value and Decimal(value), unit, Decimal(digit), 0, len(text))
    assert found.value is None or found.value.is_signed() == (value[0] == "-")
    (found,) = numbers(f"It is={text} in all")
    assert (found.unit, found.digit, found.start, found.end) == (unit, Decimal(digit), 6, 6 + len(text))


@pytest.mark.parametrize(("text", "found"), [
    ("COVID-19", []), ("A-5", []), ("A-5 and 6", [("6", "6")]), ("a-5 and b-6", []), ("x 1 A-5", [("1", "1")]),
    ("a -5", [("-5", "-5")]), ("5 - 6", [("5", "5"), ("6", "6")]), ("8% -6", [("8", "8%"), ("-6", "-6")]),
    ("8%-6", [(None, "8%"), (None, "6")]), ("x = - 5", [("-5", "- 5")]), ("x: + 5", [("5", "+ 5")]),
    ("- 5", [("5", "5")]), ("(-5)", [("-5", "-5")]), ("(- 5)", [("-5", "- 5")]), ("(+5)", [("5", "+5")]),
    ("$5k-$6k", [(None, "$5k"), (None, "$6k")]), ("5-6-7", [(None, "5"), (None, "6"), (None, "7")]),
    ("1 or 5—6", [("1", "1"), (None, "5"), (None, "6")]), ("5~6 or 7", [(None, "5"), (None, "6"), ("7", "7")]),
    ("5～6", [(None, "5"), (None, "6")]), ("5‑6", [(None, "5"), (None, "6")]), ("5–6", [(None, "5"), (None, "6")]),
    ("5‐6", [(None, "5"), (None, "6")]), ("5−6", [(None, "5"), (None, "6")]), ("5, 6", [("5", "5"), ("6", "6")]),
    ("(5", [("5", "5")]), ("( 5 of 6)", [("5", "5"), ("6", "6")]), ("gold (5) %", [("-5", " (5) %")]),
    ("five ($-5)", [("-5", " ($-5)")]), ("five $(5)", [("-5", "$(5)")]),
    ("\\$5-\\$6", [(None, "\\$5"), (None, "\\$6")]),
    ("five (5)", [("5", " (5)")]), ("$7 (5)", [("7", "$7"), ("5", " (5)")]), ("Loss (5)", [("-5", " (5)")]),
    ("Rate (5%)", [("5", " (5%)")]), ("Rate: (5%)", [("-5", " (5%)")]),
    ("5 \\% of \\$6", [("5", "5 \\%"), ("6", "\\$6")]),
    ("5 %, or 1998 in 1998", [("5", "5 %"), ("1998", "1998")]),
])  # fmt: skip
def test_numbers_in_their_place(text: str, found: list[tuple[str | None, str]]) -> None:
    read = [(number.value, text[number.start : number.end]) for number in numbers(text)]
    assert read == [(value and Decimal(value), piece) for value, piece in found]


@pytest.mark.parametrize(("blanks", "value"), [(35, 5), (36, -5)])
def test_what_a_number_in_brackets_says_once_more_stands_within_forty_characters(blanks: int, value: int) -> None:
    text = f"five{' ' * blanks}(5)"
    (found,) = numbers(text)
    assert found.value == value and text[found.start : found.end].strip() == "(5)"


def test_a_time_is_a_unit_of_time_in_any_spelling_and_answers_no_other_question() -> None:
    text = "5 yrs, 6 periods, $7, 8 % and 9"
    assert [number.is_time for number in numbers(text)] == [True, True, False, False, False]
    for unit in ("$", "%", "", "any"):
        assert numbers_asked(text, unit) == numbers(text)[2:]
    for unit in ("years", "periods", "days"):
        assert numbers_asked(text, unit) == numbers(text)
    assert final_number("$7 over 5 years", "$").value == 7 and final_number("$7 over 5 years", "years").value == 5


@pytest.mark.parametrize(("text", "value"), [
    ("5, then 6", 6), ("Answer: 5, not 6", 5), ("The final answer is 5 and 6", 5), ("answer = 5 6", 5),
    ("**Answer**: 5 6", 5),
    ("4 and **answer:** 5, 6", 5), ("#### 5 6", 5),
    ("4 \\boxed{5} 6", 5), ("5, answer: none", 5),
    ("5 6 Answer:", 6), ("answers 5 6", 6), ("5 Answer:6 7", 6), ("no", None), ("Answer: no", None),
])  # fmt: skip
def test_the_answer_is_the_first_number_after_the_mark_or_the_last_of_all(text: str, value: int | None) -> None:
    found = final_number(text, "")
    assert (found and found.value) == value


@pytest.mark.parametrize(("reference", "value"), [
    ("5", 5), ("(5)", -5), ("**$5**", 5), ("$5", 5), ("It is $5.", 5), ("It is 5 %!", 5), ("It is 5.", None),
    ("x = 5", 5), ("3 x ≈ 5", 5), ("So 3, and Answer: 5", 5), ("3, so the answer is 5", 5), ("3 #### 5", 5),
    ("3 is \\boxed{5}.", 5), ("3 = (5)", -5), ("$3 or $5", None), ("It is $5 now", None), ("It is 5 years.", None),
    ("$5" + "." * 40, 5),
    ("$5" + "." * 41, None), ("It is CHF 5", 5), ("1.2.3", None), ("x = 1.2.3", None), ("", None), ("no", None),
    ("1.2.3, so x = 5", 5), ("((5))", -5), ("3 = ((5))", -5), ("3 = X((5))", None), ("**5**", 5), ("X 5", None),
    ("2 = 5 apples", None), ("5\n", 5), ("x=5 )]}*_$", 5),
])  # fmt: skip
def test_a_reference_asks_for_the_number_that_it_ends_in_for_sure(reference: str, value: int | None) -> None:
    found = sure_number(reference)
    assert (found and found.value) == value


def test_currencies_are_those_that_a_dataset_may_name() -> None:
    assert {
        "$", "€", "£", "¥", "₹", "CAD", "AUD", "NZD", "HKD", "SGD", "BRL", "CNY", "CHF", "SEK", "NOK", "DKK", "PLN",
        "MXN", "ZAR", "KRW", "TRY",
    } == CURRENCIES  # fmt: skip
