"""Families about interest over time: deposits, loans, present values and bonds.

Each function draws the figures of one row and returns the text that fills the family's sentences in `wordings.yaml`.
"""

from decimal import Decimal

from finllm.data.sample.generator import formulas
from finllm.data.sample.generator.draw import Draw, Slots, percent, percent_result, plain


def compound_interest(draw: Draw) -> Slots:
    principal, rate = draw.number("500", "40000", "50"), draw.rate("1.5", "8", "0.25")
    years, periods = draw.count(2, 20), draw.choice((1, 12))
    growth = f"{plain(1 + rate)}^{years}" if periods == 1 else f"(1 + {plain(rate)}/12)^{12 * years}"
    return {
        "principal": draw.money(principal),
        "rate": percent(rate),
        "years": str(years),
        "often": "compounded yearly" if periods == 1 else "compounded monthly",
        "count": str(periods * years),
        "working": f"{draw.money(principal)} × {growth}",
        "result": draw.result(formulas.compound_amount(principal, rate, years, periods)),
    }


def simple_interest(draw: Draw) -> Slots:
    principal, rate = draw.number("400", "25000", "50"), draw.rate("2", "12", "0.25")
    months = draw.choice((3, 4, 5, 7, 8, 9, 10, 15, 18, 24, 36, 48))
    whole_years = months % 12 == 0
    return {
        "principal": draw.money(principal),
        "rate": percent(rate),
        "time": f"{months // 12} years" if whole_years else f"{months} months",
        "working": f"{draw.money(principal)} × {plain(rate)} × {months // 12 if whole_years else f'{months}/12'}",
        "result": draw.result(formulas.simple_interest(principal, rate, months)),
    }


def loan(draw: Draw) -> Slots:
    principal, rate = draw.number("2000", "60000", "100"), draw.rate("3", "15", "0.15")  # rate/12 is then exact
    years = draw.count(2, 10)
    months, monthly_rate = 12 * years, rate / 12
    payment = formulas.round_half_up(formulas.loan_payment(principal, monthly_rate, months))
    return {
        "principal": draw.money(principal),
        "rate": percent(rate),
        "years": str(years),
        "months": str(months),
        "monthly_rate": percent(monthly_rate),
        "payment": draw.result(payment),
        "total": draw.result(payment * months),
        "working": f"{draw.money(principal)} × {plain(monthly_rate)} / (1 - {plain(1 + monthly_rate)}^-{months})",
        "interest": draw.result(formulas.loan_interest(principal, monthly_rate, months)),
    }


def present_value(draw: Draw) -> Slots:
    future_sum, rate, years = draw.number("1000", "90000", "100"), draw.rate("2", "10", "0.25"), draw.count(2, 25)
    return {
        "sum": draw.money(future_sum),
        "rate": percent(rate),
        "years": str(years),
        "working": f"{draw.money(future_sum)} / {plain(1 + rate)}^{years}",
        "result": draw.result(formulas.present_value(future_sum, rate, years)),
    }


def annuity_value(draw: Draw) -> Slots:
    payment, rate, years = draw.number("500", "24000", "50"), draw.rate("2", "9", "0.25"), draw.count(4, 30)
    return {
        "payment": draw.money(payment),
        "rate": percent(rate),
        "years": str(years),
        "total": draw.money(payment * years),
        "working": f"{draw.money(payment)} × (1 - {plain(1 + rate)}^-{years}) / {plain(rate)}",
        "result": draw.result(formulas.annuity_present_value(payment, rate, years)),
    }


def regular_saving(draw: Draw) -> Slots:
    deposit, rate, years = draw.number("25", "900", "5"), draw.rate("1.2", "7.5", "0.15"), draw.count(2, 30)
    months, monthly_rate = 12 * years, rate / 12
    return {
        "deposit": draw.money(deposit),
        "rate": percent(rate),
        "years": str(years),
        "months": str(months),
        "monthly_rate": percent(monthly_rate),
        "paid_in": draw.money(deposit * months),
        "working": f"{draw.money(deposit)} × ({plain(1 + monthly_rate)}^{months} - 1) / {plain(monthly_rate)}",
        "result": draw.result(formulas.saving_future_value(deposit, monthly_rate, months)),
    }


def bond_yield(draw: Draw) -> Slots:
    face, coupon_rate = draw.choice((Decimal(100), Decimal(1000))), draw.rate("3", "8", "0.25")
    years, gap = draw.count(3, 15), draw.rate("0.3", "2", "0.1") * draw.choice((1, -1))
    coupon = face * coupon_rate
    # A round price near that of a likely yield; the yield asked for follows from the price.
    price = face / 200 * round(200 * formulas.bond_price(face, coupon, coupon_rate + gap, years) / face)
    slots = {
        "face": draw.money(face),
        "coupon_rate": percent(coupon_rate),
        "years": str(years),
        "price": draw.money(price),
        "coupon": draw.money(coupon),
    }
    if draw.choice((True, False)):
        value = percent_result(formulas.current_yield(coupon, price))
        return slots | {
            "measure": "current yield",
            "rule": "the yearly coupon over the market price",
            "equation": f"the current yield is {slots['coupon']} / {slots['price']} = {value}",
            "result": value,
        }
    value = percent_result(formulas.yield_to_maturity(face, coupon, price, years))
    flows = f"{slots['coupon']} × (1 - (1 + y)^-{years}) / y + {slots['face']} / (1 + y)^{years}"
    return slots | {
        "measure": "yield to maturity",
        "rule": "the rate y at which coupons and face value are worth the price",
        "equation": f"solving {slots['price']} = {flows} for y gives {value}",
        "result": value,
    }


def bond_price(draw: Draw) -> Slots:
    face, years = draw.choice((Decimal(100), Decimal(1000))), draw.count(2, 20)
    market_yield, gap = draw.rate("3", "7", "0.25"), draw.rate("0.25", "2.5", "0.25") * draw.choice((1, -1))
    coupon_rate = market_yield + gap
    coupon, growth = draw.money(face * coupon_rate), plain(1 + market_yield)
    return {
        "face": draw.money(face),
        "coupon_rate": percent(coupon_rate),
        "market_yield": percent(market_yield),
        "years": str(years),
        "coupon": coupon,
        "level": "above" if gap > 0 else "below",
        "working": f"{coupon} × (1 - {growth}^-{years}) / {plain(market_yield)} "
        f"+ {draw.money(face)} / {growth}^{years}",
        "result": draw.result(formulas.bond_price(face, face * coupon_rate, market_yield, years)),
    }
