"""Families about firms, prices and tax: ratios, break-even, growth, depreciation, exchange, gains and inflation.

Each function draws the figures of one row and returns the text that fills the family's sentences in `wordings.yaml`.
"""

from decimal import Decimal

from finllm.data.sample.generator import formulas
from finllm.data.sample.generator.draw import SMALLEST_COIN, Draw, Result, Slots, percent, percent_result, plain

CURRENCIES = {"$": "US dollars", "£": "pounds", "€": "euros"}
# Units of the second currency for one of the first, lowest and highest.
EXCHANGE_RATES = {
    ("$", "€"): ("0.86", "0.95"),
    ("€", "$"): ("1.05", "1.17"),
    ("£", "$"): ("1.22", "1.36"),
    ("$", "£"): ("0.74", "0.82"),
    ("£", "€"): ("1.14", "1.2"),
    ("€", "£"): ("0.83", "0.88"),
}
# Name, the two figures, the rule in words, what it shows, lowest and highest second figure, first/second figure, step.
RATIOS = (
    (
        "current ratio",
        "current assets",
        "current liabilities",
        "current assets divided by current liabilities",
        "how far short-term assets cover short-term debts",
        "40000",
        "900000",
        ("0.8", "3"),
        "500",
    ),
    (
        "debt-to-equity ratio",
        "total debt",
        "shareholders' equity",
        "total debt divided by shareholders' equity",
        "how heavily the firm leans on borrowing",
        "100000",
        "5000000",
        ("0.2", "2.5"),
        "1000",
    ),
    (
        "gross margin",
        "revenue",
        "cost of goods sold",
        "revenue less cost of goods sold, divided by revenue",
        "the share of sales left after paying for the goods",
        "50000",
        "3000000",
        ("1.2", "3"),
        "1000",
    ),
    (
        "return on equity",
        "net income",
        "year-end equity",
        "net income divided by year-end equity",
        "what the firm earned on its owners' capital",
        "200000",
        "6000000",
        ("0.03", "0.3"),
        "1000",
    ),
    (
        "price/earnings ratio",
        "a share price",
        "earnings per share",
        "the share price divided by earnings per share",
        "how many years of present earnings a buyer pays for",
        "0.8",
        "9",
        ("7", "32"),
        "0.05",
    ),
)
PRODUCTS = (
    ("candles", 6, 20),
    ("bicycles", 240, 700),
    ("tote bags", 9, 25),
    ("coffee mugs", 8, 18),
    ("garden chairs", 35, 120),
    ("notebooks", 4, 12),
    ("desk lamps", 25, 80),
    ("jars of honey", 5, 14),
)
ASSETS = (
    ("delivery van", 18000, 45000),
    ("bread oven", 6000, 30000),
    ("laser cutter", 8000, 40000),
    ("tractor", 30000, 90000),
    ("server rack", 5000, 25000),
    ("printing press", 20000, 80000),
)


def ratio(draw: Draw) -> Slots:
    name, first_name, second_name, rule, meaning, low, high, multiples, step = draw.choice(RATIOS)
    second = draw.number(low, high, step)
    first = draw.number(second * Decimal(multiples[0]), second * Decimal(multiples[1]), step)
    first_shown, second_shown = draw.money(first), draw.money(second)
    working = f"{first_shown} / {second_shown}"
    rounded = formulas.round_half_up(first / second)
    result = Result(str(rounded), rounded)
    if name == "gross margin":
        working = f"({first_shown} - {second_shown}) / {first_shown}"
        result = percent_result(formulas.gross_margin(first, second))
    elif name == "return on equity":
        result = percent_result(first / second)
    return {
        "ratio": name,
        "first_name": first_name,
        "second_name": second_name,
        "rule": rule,
        "meaning": meaning,
        "first_label": first_name.removeprefix("a "),
        "first": first_shown,
        "second": second_shown,
        "rounding": "as a percentage to two decimals" if result.endswith("%") else "rounded to two decimals",
        "working": working,
        "result": result,
    }


def currency_conversion(draw: Draw) -> Slots:
    (source, target), (low, high) = draw.choice(tuple(EXCHANGE_RATES.items()))
    draw.symbol = source
    # Multiples of 20 and of 0.25 % keep the fee itself free of fractions of a cent.
    amount, fee, rate = draw.number("100", "5000", "20"), draw.rate("0.5", "4", "0.25"), draw.number(low, high, "0.001")
    working = f"{draw.money(amount)} × (1 - {plain(fee)}) × {plain(rate)}"
    left = amount * (1 - fee)
    slots = {
        "amount": draw.money(amount),
        "fee": percent(fee),
        "source": CURRENCIES[source],
        "target": CURRENCIES[target],
        "quote": f"{source}1 = {target}{plain(rate)}",
        "left": draw.money(left),
        "target_coin": SMALLEST_COIN[target],
        "working": working,
    }
    draw.symbol = target
    return slots | {"result": draw.result(formulas.converted_amount(amount, fee, rate))}


def gains_tax(draw: Draw) -> Slots:
    shares, bought, rate = draw.count(8, 80) * 10, draw.number("8", "90", "0.05"), draw.rate("10", "30", "1")
    sold = bought + draw.number("3", "40", "0.05")
    gain = shares * (sold - bought)
    allowance = draw.choice([Decimal(0)] + [Decimal(size) for size in (500, 1000, 3000) if size < gain])
    free, difference = draw.money(allowance), f"{shares} × ({draw.money(sold)} - {draw.money(bought)})"
    return {
        "shares": str(shares),
        "bought": draw.money(bought),
        "sold": draw.money(sold),
        "rate": percent(rate),
        "gain": draw.money(gain),
        "taxed": draw.money(gain - allowance),
        "relief": f"the first {free} of gain is tax-free" if allowance else "no part of it is tax-free",
        "working": f"({difference} - {free}) × {plain(rate)}" if allowance else f"{difference} × {plain(rate)}",
        "result": draw.result(formulas.capital_gains_tax(shares, bought, sold, allowance, rate)),
    }


def real_return(draw: Draw) -> Slots:
    inflation = draw.rate("1.5", "7", "0.1")
    nominal = inflation + draw.choice((draw.rate("0.2", "6", "0.1"), -draw.rate("0.2", "1.2", "0.1")))
    return {
        "nominal": percent(nominal),
        "inflation": percent(inflation),
        "verdict": "outpaced" if nominal > inflation else "fell short of",
        "working": f"{plain(1 + nominal)} / {plain(1 + inflation)} - 1",
        "result": percent_result(formulas.real_return(nominal, inflation)),
    }


def break_even(draw: Draw) -> Slots:
    product, low, high = draw.choice(PRODUCTS)
    price, fixed_costs = draw.number(str(low), str(high), "0.5"), draw.number("2000", "60000", "100")
    unit_cost = draw.number(price * Decimal("0.3"), price * Decimal("0.7"), "0.25")
    quotient = fixed_costs / (price - unit_cost)
    units = formulas.break_even_units(fixed_costs, price, unit_cost)
    # Three decimals, so that a quotient just above a whole number does not look whole.
    outcome = " =" if quotient == units else f", about {formulas.round_half_up(quotient, 3):,}, rounded up to"
    return {
        "product": product,
        "fixed": draw.money(fixed_costs),
        "price": draw.money(price),
        "cost": draw.money(unit_cost),
        "margin": draw.money(price - unit_cost),
        "working": f"{draw.money(fixed_costs)} / ({draw.money(price)} - {draw.money(unit_cost)}){outcome}",
        "result": Result(f"{units:,} {product}", Decimal(units), tolerance=Decimal(0)),
    }


def growth(draw: Draw) -> Slots:
    subject, low, high, step = draw.choice(
        (
            (f"the yearly revenue of {draw.firm}", "200000", "5000000", "5000"),
            (f"{draw.person}'s rent", "600", "2200", "10"),
            (f"{draw.person}'s yearly salary", "22000", "90000", "100"),
            (f"the share price of {draw.firm}", "10", "180", "0.1"),
            (f"the value of {draw.person}'s house", "150000", "600000", "1000"),
            (f"the energy bill of {draw.firm}", "3000", "40000", "50"),
        )
    )
    start, years = draw.number(low, high, step), draw.count(2, 10)
    end = draw.number(start * Decimal("0.8"), start * Decimal("1.6"), step)
    end += Decimal(step) * (start == end)
    start_shown, end_shown = draw.money(start), draw.money(end)
    slots = {"subject": subject, "start": start_shown, "end": end_shown, "years": str(years)}
    if draw.choice((True, False)):
        return slots | {
            "measure": "total percentage change",
            "rule": "the change divided by the starting value",
            "working": f"({end_shown} - {start_shown}) / {start_shown}",
            "result": percent_result(formulas.percentage_change(start, end)),
        }
    return slots | {
        "measure": "compound average growth rate per year",
        "rule": "the yearly root of end over start, less one",
        "working": f"({end_shown} / {start_shown})^(1/{years}) - 1",
        "result": percent_result(formulas.average_growth(start, end, years)),
    }


def depreciation(draw: Draw) -> Slots:
    asset, low, high = draw.choice(ASSETS)
    cost, life = draw.number(str(low), str(high), "100"), draw.count(5, 12)
    years = draw.count(2, life - 1)
    slots = {"asset": asset, "cost": draw.money(cost), "years": str(years)}
    if draw.choice((True, False)):
        residual = draw.number(cost * Decimal("0.05"), cost * Decimal("0.2"), "100")
        shown = draw.money(residual)
        return slots | {
            "method": f"straight-line depreciation over {life} years to a residual value of {shown}",
            "rule": "the same charge every year",
            "working": f"{slots['cost']} - {years} × ({slots['cost']} - {shown}) / {life}",
            "result": draw.result(formulas.straight_line_value(cost, residual, life, years)),
        }
    rate = draw.rate("10", "40", "2.5")
    return slots | {
        "method": f"declining-balance depreciation at {percent(rate)} a year",
        "rule": "a charge that shrinks with the book value",
        "working": f"{slots['cost']} × {plain(1 - rate)}^{years}",
        "result": draw.result(formulas.declining_value(cost, rate, years)),
    }
