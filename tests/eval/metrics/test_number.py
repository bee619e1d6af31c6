"""Is the number right: pairs of an answer and a reference with their verdict, and where a reference has no number."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from eval.metrics.number import Wanted, floors, looked_at, wanted_of
from finllm.data.number_columns import shown
from finllm.text.number import Number, final_number, numbers, sure_number

ROOT = Path(__file__).parents[3]
RIGHT, WRONG, CLOSE, BARE, NONE = "right", "wrong", "close", "bare", "none"
# An answer, a reference, and what the answer is: right; wrong; close, within 1 % of it alone; bare, right but for the
# percent sign; or none, without a number that could be meant.
PAIRS = [
    # signs
    ("The change is -1.15%.", "-1.15%", RIGHT),
    ("The change is −1.15%.", "-1.15%", RIGHT),
    ("The change is –1.15 %.", "-1.15%", RIGHT),
    ("The change is 1.15%.", "-1.15%", WRONG),
    ("That gives 80 - 81.15 = -1.15%", "-1.15%", RIGHT),
    ("That gives = - 1.15 %", "-1.15%", RIGHT),
    ("a return of minus 1.15 percent", "-1.15%", RIGHT),
    ("100 - 5", "5", RIGHT),
    ("100 - 5", "-5", WRONG),
    ("-$250", "-$250", RIGHT),
    ("$-250", "-$250", RIGHT),
    ("+$250", "$250", RIGHT),
    ("- $250 in all", "$250", RIGHT),
    ("It stayed at 0.00%", "0%", RIGHT),
    ("-0.4", "0.3", WRONG),
    # brackets
    ("Net income was (1,234).", "-1,234", RIGHT),
    ("($1,234)", "-$1,234", RIGHT),
    ("$(1,234)", "-$1,234", RIGHT),
    ("Net income was (1,234).", "1,234", WRONG),
    ("It fell to (5.2)%", "-5.2%", RIGHT),
    ("five percent (5%)", "5%", RIGHT),
    ("The net margin (5.2%)", "5.2%", RIGHT),
    ("one thousand dollars ($1,000)", "$1,000", RIGHT),
    # thousands and decimals
    ("£29,898.27", "£29,898.27", RIGHT),
    ("£29898.27", "£29,898.27", RIGHT),
    ("£29'898.27", "£29,898.27", RIGHT),
    ("£29 898.27", "£29,898.27", RIGHT),
    ("£29\u202f898.27", "£29,898.27", RIGHT),
    ("£29,898.2743", "£29,898.27", RIGHT),
    ("£29,898.3", "£29,898.27", CLOSE),
    ("£29,898", "£29,898.27", CLOSE),
    ("£30,000", "£29,898.27", CLOSE),
    ("£31,000", "£29,898.27", WRONG),
    ("£29.898,27", "£29,898.27", WRONG),  # another notation: not read, and not taken for 29.898
    ("₹12,34,567", "₹1,234,567", RIGHT),
    ("The ratio is .53", "0.53", RIGHT),
    # percent, fractions, basis points
    ("9.4 percent", "9.4%", RIGHT),
    ("9.4 per cent", "9.4%", RIGHT),
    ("9.4 percentage points", "9.4%", RIGHT),
    ("0.094", "9.4%", BARE),
    ("9.4", "9.4%", BARE),
    ("0.094%", "9.4%", WRONG),
    ("9.4%", "0.094", WRONG),
    ("940 basis points", "9.4%", RIGHT),
    ("25 bps", "0.25%", RIGHT),
    ("25 bp", "25%", WRONG),
    # currencies
    ("1,070.36 euros", "€1,070.36", RIGHT),
    ("EUR 1,070.36", "€1,070.36", RIGHT),
    ("1,070.36 EUR", "€1,070.36", RIGHT),
    ("1,070.36", "€1,070.36", RIGHT),
    ("$1,070.36", "€1,070.36", WRONG),
    ("US$50", "$50", RIGHT),
    ("50 cents", "$0.50", RIGHT),
    ("A$50", "$50", WRONG),
    ("$1.53", "1.53", WRONG),
    ("1.53x", "1.53", RIGHT),
    # thousands, millions, billions
    ("$1.5 million", "$1,500,000", RIGHT),
    ("$1.5m", "$1,500,000", RIGHT),
    ("1,500k", "1,500,000", RIGHT),
    ("$1,500 thousand", "$1.5 million", RIGHT),
    ("EUR 2.4bn", "€2.4 billion", RIGHT),
    ("€2,400 mn", "€2.4 billion", RIGHT),
    ("$5mm", "$5,000,000", RIGHT),
    ("$1.5 billion", "$1.5 million", WRONG),
    ("1.2 × 10^6", "1,200,000", RIGHT),
    ("1.2e6", "1,200,000", RIGHT),
    ("1.23e-2", "0.0123", RIGHT),
    # what is no number, and which one is the answer
    ("About $500 in 2030.", "$500", RIGHT),
    ("$500 on December 31, 2030", "$500", RIGHT),
    ("$500 (due 2030-12-31)", "$500", RIGHT),
    ("The balance is $500 after 15 years.", "$500", RIGHT),
    ("1. $400\n2. $500\n3. Tax it.", "$500", RIGHT),
    ("It beats the S&P 500.", "$500", NONE),
    ("See Form 1040 and your 401(k) in Q1, after COVID-19.", "$500", NONE),
    ("I cannot say.", "$500", NONE),
    ("", "$500", NONE),
    ("fifteen", "15%", NONE),
    ("Between $400 and $500", "$500", RIGHT),
    ("$400–500", "$500", WRONG),
    ("5-7%", "7%", WRONG),
    ("$5k-$6k", "$5,000", WRONG),
    (f"0.{'3' * 99}", "0.333", WRONG),
    ("100/5", "20", WRONG),
    ("Answer: $500. Question 2: what of 600?", "$500", RIGHT),
    ("The answer is $500, not $600", "$500", RIGHT),
    ("48 / 2 = 24\n#### 24", "24", RIGHT),
    ("\\boxed{24} of 30", "24", RIGHT),
    ("It takes \\$500.", "$500", RIGHT),
    ("**$500**", "$500", RIGHT),
    ("１２．５％", "12.5%", RIGHT),
    ("It takes 5 years", "5 years", RIGHT),
    ("It takes 5 months", "5 years", WRONG),
    ("2,014 notebooks", "2014", RIGHT),
]


def verdict(answer: str, reference: str) -> str:
    found = looked_at(answer, reference, Wanted(*shown(sure_number(reference))))
    if found["no_number"]:
        assert not any(found[key] for key in ("number_right", "number_close", "number_right_bare"))
        return NONE
    if found["number_right"]:
        assert found["number_close"] and found["number_right_bare"]
        return RIGHT
    return BARE if found["number_right_bare"] else CLOSE if found["number_close"] else WRONG


def test_the_table_is_as_large_as_it_says() -> None:
    assert len(PAIRS) >= 60 and len({pair[:2] for pair in PAIRS}) == len(PAIRS)


@pytest.mark.parametrize(("answer", "reference", "said"), PAIRS)
def test_an_answer_is_what_the_table_says(answer: str, reference: str, said: str) -> None:
    assert verdict(answer, reference) == said, [*numbers(answer)]


@pytest.mark.parametrize("text", [
    "In the end it is $5 or more.", "The S&P 500.", "It was founded in 1998", "He holds 12 shares of 3 firms, 5 in all",
    "between 5% and 7%", "5–7%", "1.234,50", "Call 555-1234", "on 12/31/2024", "Ask for the 10-K", "A 30-day",
    "It is a ratio of 2:1", "", "No number.", "1. Save.\n2. Spend.", "Version 1.2.3", "It has 12 members",
])  # fmt: skip
def test_a_reference_whose_number_cannot_be_told_for_sure_asks_for_none(text: str) -> None:
    assert wanted_of({"output": text}) is None


@pytest.mark.parametrize(("text", "wanted"), [
    ("42", ("42", "", "0.5")), ("It costs $5.", ("5", "$", "0.5")), ("… = 3.50", ("3.50", "", "0.005")),
    ("So 6 × 4 = 24.", ("24", "", "0.5")), ("48 - 24\n#### 24", ("24", "", "0.5")), ("-1.5 %", ("-1.5", "%", "0.05")),
    ("The answer is **12.5%**.", ("12.5", "%", "0.05")), ("$2.5 million", ("2500000", "$", "50000")),
])  # fmt: skip
def test_a_reference_that_ends_in_a_number_for_sure_asks_for_it(text: str, wanted: tuple[str, str, str]) -> None:
    assert wanted_of({"output": text}) == Wanted(*wanted)


@pytest.mark.parametrize(("text", "value", "unit"), [
    ("3 yrs", 3, "years"), ("1 year", 1, "years"), ("4 installments", 4, "instalments"), ("18 months", 18, "months"),
    ("2 instalments", 2, "instalments"), ("5-day", 5, "days"),
])  # fmt: skip
def test_times_are_counted_in_words_of_one_spelling(text: str, value: int, unit: str) -> None:
    assert numbers(text) == [Number(Decimal(value), unit, Decimal(1), 0, len(text))] and numbers(text)[0].is_time


# What stands before an amount, and the currency that it is
CURRENCY_OF = {
    "$": "$", "US$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹", "C$": "CAD", "CA$": "CAD", "A$": "AUD",
    "AU$": "AUD", "NZ$": "NZD", "HK$": "HKD", "S$": "SGD", "R$": "BRL", "USD": "$", "EUR": "€", "GBP": "£",
    "JPY": "¥", "INR": "₹", "Rs": "₹", "RMB": "CNY", "CNY": "CNY", "CAD": "CAD", "AUD": "AUD", "NZD": "NZD",
    "HKD": "HKD", "SGD": "SGD", "BRL": "BRL", "CHF": "CHF", "SEK": "SEK", "NOK": "NOK", "DKK": "DKK", "PLN": "PLN",
    "MXN": "MXN", "ZAR": "ZAR", "KRW": "KRW", "TRY": "TRY",
}  # fmt: skip


@pytest.mark.parametrize(("written", "unit"), CURRENCY_OF.items())
def test_a_currency_has_one_name_before_an_amount_and_after_it(written: str, unit: str) -> None:
    for text in (f"{written} 5", f"5 {written}"):
        assert numbers(text) == [Number(Decimal(5), unit, Decimal(1), 0, len(text))], text


def test_what_cannot_be_read_begins_at_its_sign() -> None:
    assert numbers("It is -1.234,50 now") == [Number(None, "", Decimal(0), 6, 15)]


@pytest.mark.parametrize(("text", "value", "start"), [
    ("It was negative 5", -5, 7), ("negative      5", -5, 0), ("negative       5", 5, 15), ("minus         5", -5, 0),
    ("minus          5", 5, 15), ("It is 8 minus 5", 5, 14), ("Terminus 5", 5, 9),
])  # fmt: skip
def test_minus_in_a_word_stands_up_to_fourteen_characters_before_its_number(text: str, value: int, start: int) -> None:
    assert final_number(text, "") == Number(Decimal(value), "", Decimal(1), start, len(text))


@pytest.mark.parametrize(("text", "value"), [
    ("Net loss (1,234)", -1234), ("Net loss 7,000 (1,234)", 1234), ("a loss of one thousand (1,234)", 1234),
    ("Net loss (5 %)", 5), ("Net loss: (5 %)", -5),
])  # fmt: skip
def test_a_number_alone_in_brackets_is_negative_unless_it_says_a_thing_once_more(text: str, value: int) -> None:
    assert final_number(text, "").value == value


def test_a_number_says_where_it_stands_whatever_stands_before_it() -> None:
    text = "Since 1998 the S&P 500 rose; on 12/31/2024 it was $1,500, not 3 %."
    assert [text[number.start : number.end] for number in numbers(text)] == ["$1,500", "3 %"]


def test_the_ends_of_a_range_have_a_place_and_a_unit_and_no_value() -> None:
    assert numbers("From $40.5–500 it is") == [
        Number(None, "$", Decimal("0.1"), 5, 10), Number(None, "", Decimal(1), 11, 14)
    ]  # fmt: skip


def test_a_dataset_that_says_which_numbers_it_asks_for_is_not_read_for_others() -> None:
    assert wanted_of({"output": "It costs $5.", "value": "", "unit": "", "tolerance": ""}) is None
    assert wanted_of({"output": "No.", "value": "5", "unit": "$", "tolerance": "0"}) == Wanted("5", "$", "0")


def test_every_reference_of_the_bundled_questions_is_right_and_nothing_stands_after_it() -> None:
    lines = (ROOT / "finllm/data/sample/computed.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        found = looked_at(row["output"], row["output"], wanted_of(row))
        assert found["number_right"] and found["number_close"], row
        assert not found["no_number"] and not found["text_after_number"], row
        if sure := sure_number(row["output"]):  # what can be read for sure is what the generator says
            assert (f"{sure.value:f}", sure.unit) == (row["value"], row["unit"]), row


def test_text_after_the_number_is_told_apart_from_a_noun_that_the_reference_has_too() -> None:
    wanted = Wanted("1235", "", "0")
    reference = "That is 1,235 jars of honey."
    for answer, more in (
        ("1,235 jars of honey.", False),
        ("1,235", False),
        ("1,235 jars of honey. And then he sleeps.", True),
    ):
        assert looked_at(answer, reference, wanted)["text_after_number"] is more
    assert not looked_at("-0.1", "0.3", Wanted("0.3", "", "0.5"))[
        "number_right"
    ]  # within the tolerance, of another sign
    assert looked_at("1,234.6", reference, wanted)["number_right"] is False  # a count is exact


def test_floors_are_what_no_thought_would_score() -> None:
    def row(question: str, value: str, unit: str = "$") -> dict:
        number = {"value": value, "unit": unit, "tolerance": "0.5"}
        return {"instruction": question, "input": "", "prediction": "?", "number": number}

    rows = [row("From $5 and $7?", "7"), row("From $5 and 9 %, $7 and $6?", "7"), row("How much?", "12"),
            {**row("From $5?", "5"), "prediction": None}]  # fmt: skip
    training = [{"output": "= $12"}, {"output": "= $12"}, {"output": "= $7"}, {"output": "Save."}]
    assert floors(rows, training) == {"a number of the question": 2 / 3, "the most frequent number": 1 / 3}
    assert floors(rows, None) == {"a number of the question": 2 / 3} and floors([], training) == {}


def test_reading_long_and_hostile_texts_takes_no_time() -> None:
    for text in (
        "1" * 20_000,
        "1," * 10_000,
        "- " * 10_000,
        "(" * 20_000,
        "$ " * 10_000,
        "1 000 " * 4_000,
        "5%-" * 6_000,
    ):
        final_number(text, "$")
