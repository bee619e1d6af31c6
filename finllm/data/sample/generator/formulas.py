"""Textbook finance formulas on exact decimals.

Rates are fractions (0.05 for 5 %), amounts are in units of one currency, and nothing is rounded unless the
docstring says so; callers round once, at the end, with `round_half_up`.
"""

from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal

ONE = Decimal(1)


def round_half_up(value: Decimal, places: int = 2) -> Decimal:
    """Value rounded to `places` decimals, halves away from zero."""
    return value.quantize(ONE.scaleb(-places), rounding=ROUND_HALF_UP)


def compound_amount(principal: Decimal, rate: Decimal, years: int, periods_per_year: int) -> Decimal:
    """Principal × (1 + rate/periods_per_year)^(periods_per_year × years); rate is the nominal yearly rate."""
    return principal * (ONE + rate / periods_per_year) ** (periods_per_year * years)


def simple_interest(principal: Decimal, rate: Decimal, months: int) -> Decimal:
    """Principal × rate × months/12; rate is per year and interest earns no interest."""
    return principal * rate * months / 12


def loan_payment(principal: Decimal, period_rate: Decimal, periods: int) -> Decimal:
    """Principal × period_rate / (1 - (1 + period_rate)^-periods), paid at the end of each period."""
    return principal * period_rate / (ONE - (ONE + period_rate) ** -periods)


def loan_interest(principal: Decimal, period_rate: Decimal, periods: int) -> Decimal:
    """Periods × payment - principal, with the payment rounded to the cent, as a lender collects it."""
    return periods * round_half_up(loan_payment(principal, period_rate, periods)) - principal


def present_value(future_sum: Decimal, rate: Decimal, years: int) -> Decimal:
    """Future sum / (1 + rate)^years; rate is per year."""
    return future_sum / (ONE + rate) ** years


def annuity_present_value(payment: Decimal, period_rate: Decimal, periods: int) -> Decimal:
    """Payment × (1 - (1 + period_rate)^-periods) / period_rate, paid at the end of each period."""
    return payment * (ONE - (ONE + period_rate) ** -periods) / period_rate


def saving_future_value(deposit: Decimal, period_rate: Decimal, periods: int) -> Decimal:
    """Deposit × ((1 + period_rate)^periods - 1) / period_rate, paid in at the end of each period."""
    return deposit * ((ONE + period_rate) ** periods - ONE) / period_rate


def bond_price(face: Decimal, coupon: Decimal, market_yield: Decimal, years: int) -> Decimal:
    """Value today of `years` yearly coupons (amounts, the first in one year) and of the face value at the end."""
    return annuity_present_value(coupon, market_yield, years) + present_value(face, market_yield, years)


def current_yield(coupon: Decimal, price: Decimal) -> Decimal:
    """Yearly coupon amount / market price, as a fraction."""
    return coupon / price


def yield_to_maturity(face: Decimal, coupon: Decimal, price: Decimal, years: int) -> Decimal:
    """The yearly rate, between 0.0001 % and 100 %, at which `bond_price` equals the price; found by halving."""
    low, high = Decimal("0.000001"), ONE
    while high - low > Decimal("1e-12"):
        middle = (low + high) / 2
        if bond_price(face, coupon, middle, years) > price:  # worth too much: the rate is too low
            low = middle
        else:
            high = middle
    return (low + high) / 2


def gross_margin(revenue: Decimal, cost_of_goods: Decimal) -> Decimal:
    """(Revenue - cost of goods sold) / revenue, as a fraction."""
    return (revenue - cost_of_goods) / revenue


def converted_amount(amount: Decimal, fee_rate: Decimal, exchange_rate: Decimal) -> Decimal:
    """Amount × (1 - fee_rate) × exchange_rate, in the bought currency; the fee is taken before the exchange."""
    return amount * (ONE - fee_rate) * exchange_rate


def capital_gains_tax(shares: int, bought: Decimal, sold: Decimal, allowance: Decimal, rate: Decimal) -> Decimal:
    """(Shares × (sold - bought) - allowance) × rate, never below zero; prices are per share."""
    return max(Decimal(0), shares * (sold - bought) - allowance) * rate


def real_return(nominal: Decimal, inflation: Decimal) -> Decimal:
    """(1 + nominal) / (1 + inflation) - 1, as a fraction."""
    return (ONE + nominal) / (ONE + inflation) - ONE


def break_even_units(fixed_costs: Decimal, price: Decimal, unit_cost: Decimal) -> int:
    """Fixed costs / (price - unit_cost), rounded up to the next whole unit."""
    return int((fixed_costs / (price - unit_cost)).to_integral_value(rounding=ROUND_CEILING))


def percentage_change(start: Decimal, end: Decimal) -> Decimal:
    """(End - start) / start, as a fraction."""
    return (end - start) / start


def average_growth(start: Decimal, end: Decimal, years: int) -> Decimal:
    """(End / start)^(1/years) - 1, the constant yearly rate that leads from start to end, as a fraction."""
    return (end / start) ** (ONE / years) - ONE


def straight_line_value(cost: Decimal, residual: Decimal, life: int, years: int) -> Decimal:
    """Cost - years × (cost - residual) / life, the book value after `years` of a life of `life` years."""
    return cost - years * (cost - residual) / life


def declining_value(cost: Decimal, rate: Decimal, years: int) -> Decimal:
    """Cost × (1 - rate)^years, the book value when each year writes off `rate` of what is left."""
    return cost * (ONE - rate) ** years
