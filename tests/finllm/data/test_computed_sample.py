"""The generator of finance questions: its formulas, and every answer against its own question.

The checks of answers know nothing of the generator: they read the figures out of the question and work the
result out in another way (running a loan down, adding up discounted payments, searching by secant) where there is one.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from finllm.data.sample.generator import computed, formulas

ROOT = Path(__file__).parents[3]
FILE = ROOT / "finllm/data/sample/computed.jsonl"
ROWS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
HALF_A_CENT = 0.005 + 1e-6  # results are rounded to two decimals; the rest is room for binary fractions
NUMBER = r"-?\d+(?:,\d{3})*(?:\.\d+)?"


def d(text: str) -> Decimal:
    return Decimal(text)


# --- formulas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        (formulas.compound_amount(d("1000"), d("0.05"), 7, 1), "1407.10"),
        (formulas.compound_amount(d("1000"), d("0.12"), 1, 12), "1126.83"),
        (formulas.simple_interest(d("2000"), d("0.06"), 9), "90.00"),
        (formulas.present_value(d("1102.50"), d("0.05"), 2), "1000.00"),
        (formulas.annuity_present_value(d("100"), d("0.1"), 3), "248.69"),
        (formulas.saving_future_value(d("100"), d("0.1"), 3), "331.00"),
        (formulas.bond_price(d("1000"), d("50"), d("0.05"), 9), "1000.00"),
        (100 * formulas.current_yield(d("45"), d("900")), "5.00"),
        (100 * formulas.gross_margin(d("500"), d("300")), "40.00"),
        (formulas.converted_amount(d("200"), d("0.01"), d("0.9")), "178.20"),
        (formulas.capital_gains_tax(100, d("20"), d("35"), d("500"), d("0.2")), "200.00"),
        (formulas.capital_gains_tax(100, d("20"), d("24"), d("500"), d("0.2")), "0.00"),
        (100 * formulas.real_return(d("0.071"), d("0.05")), "2.00"),
        (formulas.break_even_units(d("1000"), d("15"), d("10")), "200.00"),
        (formulas.break_even_units(d("1001"), d("15"), d("10")), "201.00"),
        (100 * formulas.percentage_change(d("80"), d("60")), "-25.00"),
        (100 * formulas.average_growth(d("100"), d("133.1"), 3), "10.00"),
        (formulas.straight_line_value(d("10000"), d("1000"), 9, 4), "6000.00"),
        (formulas.declining_value(d("10000"), d("0.2"), 3), "5120.00"),
    ],
)
def test_formula_gives_the_value_worked_out_by_hand(value: Decimal | int, literal: str) -> None:
    assert str(formulas.round_half_up(Decimal(value))) == literal


def test_halves_are_rounded_away_from_zero() -> None:
    assert [str(formulas.round_half_up(d(text))) for text in ("0.125", "2.675", "-0.125", "3")] == [
        "0.13",
        "2.68",
        "-0.13",
        "3.00",
    ]
    assert str(formulas.round_half_up(d("0.0625"), 3)) == "0.063"


def test_payments_run_a_loan_down_to_zero() -> None:
    payment, balance = formulas.loan_payment(d("12000"), d("0.005"), 48), d("12000")
    for _ in range(48):
        assert balance > 1
        balance = balance * d("1.005") - payment
    assert abs(balance) < d("1e-15")


def test_loan_interest_adds_up_what_rounded_payments_exceed_the_loan_by() -> None:
    # 12,000 at 0.5 % a month: the payment of 281.82 is known from any annuity table; 48 × 281.82 = 13,527.36.
    assert formulas.loan_interest(d("12000"), d("0.005"), 48) == d("1527.36")


def test_annuity_and_saving_equal_the_sum_of_their_payments() -> None:
    growth = d("1.0425")
    discounted = sum(d("730") / growth**year for year in range(1, 18))
    assert abs(formulas.annuity_present_value(d("730"), d("0.0425"), 17) - discounted) < d("1e-18")
    balance = d(0)
    for _ in range(17):
        balance = balance * growth + 730
    assert abs(formulas.saving_future_value(d("730"), d("0.0425"), 17) - balance) < d("1e-18")


def test_bond_price_equals_the_sum_of_its_discounted_payments() -> None:
    flows = [d("45")] * 9 + [d("1045")]
    discounted = sum(flow / d("1.052") ** year for year, flow in enumerate(flows, start=1))
    assert abs(formulas.bond_price(d("1000"), d("45"), d("0.052"), 10) - discounted) < d("1e-18")


@pytest.mark.parametrize("price", ["870", "1000", "1115"])
def test_repricing_at_the_yield_to_maturity_returns_the_price(price: str) -> None:
    found = formulas.yield_to_maturity(d("1000"), d("60"), d(price), 8)
    assert abs(sum(60 / (1 + found) ** year for year in range(1, 9)) + 1000 / (1 + found) ** 8 - d(price)) < d("1e-6")


# --- every answer against its question ------------------------------------------------------------------------------


class Question:
    """The figures of one question, in the order in which they are read."""

    def __init__(self, row: dict[str, str]) -> None:
        self.text = f"{row['instruction']} {row['input']}"
        self.money = [value(text) for text in re.findall(rf"[$£€]({NUMBER})", self.text)]
        self.rates = [value(text) / 100 for text in re.findall(rf"({NUMBER})%", self.text)]

    def after(self, pattern: str) -> float:
        """The one number that the pattern, in which # stands for a number, finds."""
        found = {
            text
            for match in re.findall(pattern.replace("#", f"[$£€]?({NUMBER})"), self.text)
            for text in ([match] if isinstance(match, str) else match)
            if text
        }
        assert len(found) == 1, (pattern, found, self.text)
        return value(found.pop())

    def months(self) -> int:
        """A duration given in years or months (payments, deposits)."""
        years = re.findall(r"(\d+) years", self.text)
        found = [12 * int(text) for text in years] or [
            int(text) for text in re.findall(r"(\d+) (?:months|equal|deposits)", self.text)
        ]
        assert len(found) == 1, self.text
        return found[0]


def value(text: str) -> float:
    return float(text.replace(",", ""))


def run_down(principal: float, monthly: float, months: int) -> float:
    """The level payment: what remains unpaid is linear in the payment, so two trial payments settle it."""

    def left(payment: float) -> float:
        balance = principal
        for _ in range(months):
            balance += balance * monthly - payment
        return balance

    return left(0) / (left(0) - left(1))


def worth(payments: list[float], rate: float) -> float:
    """Value today of payments made at the end of each of the coming years."""
    total = 0.0
    for payment in reversed(payments):
        total = (total + payment) / (1 + rate)
    return total


def expect_compound(q: Question) -> float:
    yearly = "compounded yearly" in q.text
    assert yearly != ("compounded monthly" in q.text)
    balance, rate = q.money[0], q.rates[0]
    for _ in range(q.months() // 12 if yearly else q.months()):
        balance += balance * (rate if yearly else rate / 12)
    return balance


def expect_simple(q: Question) -> float:
    return q.money[0] * q.rates[0] * q.months() / 12


def expect_payment(q: Question) -> float:
    return run_down(q.money[0], q.rates[0] / 12, q.months())


def expect_loan_interest(q: Question) -> float:
    payment = run_down(q.money[0], q.rates[0] / 12, q.months())
    assert abs((100 * payment) % 1 - 0.5) > 1e-6  # no tie, so that `round` may be used
    return round(payment, 2) * q.months() - q.money[0]


def expect_present_value(q: Question) -> float:
    return worth([0.0] * (q.months() // 12 - 1) + q.money, q.rates[0])


def expect_annuity(q: Question) -> float:
    years = q.after(r"# (?:years|year-end)|years: #")
    return worth(q.money * int(years), q.rates[0])


def expect_saving(q: Question) -> float:
    balance = 0.0
    for _ in range(q.months()):
        balance += balance * q.rates[0] / 12 + q.money[0]
    return balance


def expect_bond_yield(q: Question) -> float:
    face = q.after("(?i)face value of #")
    (price,) = [amount for amount in q.money if amount != face] or [face]
    coupon, years = face * q.rates[0], int(q.after("# years"))
    if "current yield" in q.text:
        return 100 * coupon / price
    assert "yield to maturity" in q.text
    flows = [coupon] * (years - 1) + [coupon + face]
    low, high = 0.01, 0.02  # secant steps
    for _ in range(30):
        below, above = worth(flows, low) - price, worth(flows, high) - price
        if abs(below - above) < 1e-12:
            break
        low, high = high, high - above * (high - low) / (above - below)
    return 100 * high


def expect_bond_price(q: Question) -> float:
    face, years = q.after("(?i)face value of #"), int(q.after("# years"))
    coupon = face * q.after(r"coupons? of #%|coupon: #%|pays #% at") / 100
    market = q.after(r"yield is #%|require #%|yield of #%|exactly #%|flows of a bond at #%|moved to #%|yield: #%") / 100
    return worth([coupon] * (years - 1) + [coupon + face], market)


def expect_ratio(q: Question) -> float:
    first, second = q.money
    if "gross margin" in q.text:
        return 100 * (1 - second / first)
    return first / second * (100 if "return on equity" in q.text else 1)


def expect_conversion(q: Question) -> float:
    rate = q.after(r"[$£€]1 = #")
    (amount,) = [amount for amount in q.money if amount not in (1, rate)]
    return (amount - amount * q.rates[0]) * rate


def expect_gains_tax(q: Question) -> float:
    free = q.after("the first # of gain") if "the first" in q.text else 0
    low, high = sorted(amount for amount in q.money if not free or amount != free)
    shares = q.after(r"(?i)# shares|all # of|shares: #")
    return (shares * high - shares * low - free) * q.rates[0]


def expect_real_return(q: Question) -> float:
    nominal = q.after(r"earned #%|pays #%|return of #%|gained #%|grew by #%|return: #%") / 100
    (inflation,) = [rate for rate in q.rates if rate != nominal]
    return 100 * (nominal - inflation) / (1 + inflation)


def expect_break_even(q: Question) -> float:
    unit_cost, price, fixed = sorted(q.money)  # fixed costs start at 2,000 and a price at most at 700
    units = 0
    for step in (10_000, 1_000, 100, 10, 1):
        while (units + step) * (price - unit_cost) < fixed:
            units += step
    return units + 1


def expect_growth(q: Question) -> float:
    start, end = q.money
    if "percentage change" in q.text:
        return 100 * (end / start - 1)
    assert "compound average growth rate per year" in q.text
    return 100 * ((end / start) ** (1 / q.after("# years")) - 1)


def expect_depreciation(q: Question) -> float:
    age = int(q.after(r"after # (?:full )?years|year #,|exactly # years|age: # full years"))
    if "straight-line" in q.text:
        life, residual = q.after("over # years to"), q.after("residual value of #")
        (cost,) = [amount for amount in q.money if amount != residual]
        return (cost * (life - age) + residual * age) / life
    book = q.money[0]
    for _ in range(age):
        book -= book * q.rates[0]
    return book


EXPECTED: dict[str, Callable[[Question], float]] = {
    "compound interest": expect_compound,
    "simple interest": expect_simple,
    "loan payment": expect_payment,
    "loan interest": expect_loan_interest,
    "present value of a sum": expect_present_value,
    "present value of an annuity": expect_annuity,
    "regular saving": expect_saving,
    "bond yield": expect_bond_yield,
    "bond price": expect_bond_price,
    "financial ratio": expect_ratio,
    "currency conversion": expect_conversion,
    "capital gains tax": expect_gains_tax,
    "real return": expect_real_return,
    "break-even": expect_break_even,
    "growth rate": expect_growth,
    "depreciation": expect_depreciation,
}


@pytest.mark.parametrize("kind", [family.kind for family in computed.FAMILIES])
def test_last_figure_of_each_answer_follows_from_the_question(kind: str) -> None:
    checked = 0
    for row in ROWS:
        if row["kind"] != kind:
            continue
        question = Question(row)
        last = re.findall(NUMBER, row["output"])[-1]
        assert abs(value(last) - EXPECTED[kind](question)) < HALF_A_CENT, row
        decimals = "" if kind == "break-even" else r"\.\d\d"
        assert re.fullmatch(rf"-?\d{{1,3}}(,\d{{3}})*{decimals}", last), row
        checked += 1
    assert checked == 105


def test_value_unit_and_tolerance_are_those_of_the_last_figure() -> None:
    for row in ROWS:
        before, last, after = re.search(rf"([$£€]?)({NUMBER})(%?)[^\d]*$", row["output"]).groups()
        assert row["value"] == last.replace(",", "") and row["unit"] == before + after, row
        assert row["tolerance"] == ("0" if row["kind"] == "break-even" else "0.005"), row


def test_results_carry_the_unit_the_question_asks_for() -> None:
    for row in ROWS:
        before, _last, after = re.search(rf"([$£€]?)({NUMBER})(%?)[^\d]*$", row["output"]).groups()
        text = f"{row['instruction']} {row['input']}"
        if row["kind"] in ("bond yield", "real return", "growth rate") or "as a percentage" in text:
            assert after == "%", row
        elif row["kind"] == "currency conversion":
            assert before == re.search(r"[$£€]1 = ([$£€])", text)[1], row
        elif row["kind"] == "financial ratio":
            assert (before, after) == ("", ""), row
        elif row["kind"] == "break-even":
            product = re.search(rf"{NUMBER} ([a-z ]+)\.$", row["output"])[1]
            assert product in text.lower(), row
        else:
            assert {before} == set(re.findall("[$£€]", text)), row


def test_working_shown_leads_to_the_result() -> None:
    """Whoever types the shown sum into a calculator gets the result (or, for a yield, the price)."""
    checked: dict[str, int] = defaultdict(int)
    for row in ROWS:
        last = value(re.findall(NUMBER, row["output"])[-1])
        shown = max(re.findall(r"[$£€(\d][$£€\d.,()y +×/^-]*[×/^][$£€\d.,()y +×/^-]*[\dy)]", row["output"]), key=len)
        python = re.sub(r"[$£€,]", "", shown).replace("×", "*").replace("^", "**")
        if "y" in python:
            price = value(re.search(rf"solving [$£€]({NUMBER}) =", row["output"])[1])
            nearby = [eval(python, {"y": (last + error) / 100}) for error in (-HALF_A_CENT, HALF_A_CENT)]
            assert nearby[1] < price < nearby[0], row
        else:
            found = eval(python)
            if row["kind"] == "loan interest":
                found = round(found, 2)
                assert value(re.findall(NUMBER, row["output"].split(shown)[1])[0]) == found, row
            elif row["kind"] == "break-even":
                assert last - 1 < found <= last, row
            else:
                assert abs(found * (100 if row["output"].endswith("%.") else 1) - last) < HALF_A_CENT, row
        checked[row["kind"]] += 1
    assert checked == {kind: 105 for kind in EXPECTED}
