"""The random choices behind a computed question, and how figures are written in it."""

from decimal import Decimal
from random import Random

from finllm.data.sample.generator import formulas

PEOPLE = (
    "Amara",
    "Bram",
    "Chidi",
    "Dalia",
    "Elena",
    "Farid",
    "Greta",
    "Hana",
    "Imran",
    "Joana",
    "Kwame",
    "Leila",
    "Marek",
    "Nadia",
    "Olga",
    "Pavel",
    "Quinn",
    "Rosa",
    "Samir",
    "Tessa",
    "Umar",
    "Vera",
    "Wen",
    "Yusuf",
    "Zofia",
)
BANKS = ("Quillmere Bank", "Northgate Savings", "Fernhollow Credit Union", "Redwick Bank", "Harbour Savings")
FIRMS = (
    "Tallow Lane Ltd",
    "Bluebarn Trading",
    "Kestrel Supply",
    "Marlow and Finch",
    "Northbeck Makers",
    "Ashcombe Mill",
    "Osprey Works",
    "Juniper Stores",
)
PLACES = (
    "an airport desk",
    "a high-street bank",
    "a railway station kiosk",
    "a hotel reception",
    "a post office",
    "an online exchange",
    "a ferry terminal",
)
SMALLEST_COIN = {"$": "cent", "£": "penny", "€": "cent"}

Slots = dict[str, str]  # what fills the braces of a sentence


class Result(str):
    """A result as a sentence writes it. `value`, in `unit`, is what an answer is held against: it may be off by
    `tolerance`."""

    value: Decimal
    unit: str
    tolerance: Decimal

    def __new__(cls, text: str, value: Decimal, unit: str = "", tolerance: Decimal = Decimal("0.005")) -> "Result":
        """The default tolerance is half a unit of the second decimal, to which most results are rounded."""
        result = super().__new__(cls, text)
        result.value, result.unit, result.tolerance = value, unit, tolerance
        return result


def percent(fraction: Decimal) -> str:
    """A rate from a question, without needless zeros: 0.045 becomes '4.5%'."""
    return f"{plain(fraction * 100)}%"


def percent_result(fraction: Decimal) -> Result:
    """A result with two decimals: 0.045 becomes '4.50%'."""
    rounded = formulas.round_half_up(fraction * 100)
    return Result(f"{rounded}%", rounded, "%")


def plain(number: Decimal) -> str:
    """The number without exponent, trailing zeros or separators."""
    return f"{number:f}".rstrip("0").rstrip(".") if "." in f"{number:f}" else f"{number:f}"


class Draw:
    """The random choices of one row: who, where, in which currency, and any figure asked for."""

    def __init__(self, rng: Random) -> None:
        self.choice = rng.choice
        self._rng = rng
        self.symbol = rng.choice(sorted(SMALLEST_COIN))
        self.person, self.bank, self.firm, self.place = map(rng.choice, (PEOPLE, BANKS, FIRMS, PLACES))

    def count(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return self._rng.randint(low, high)

    def number(self, low: str | Decimal, high: str | Decimal, step: str) -> Decimal:
        """A multiple of the step, from about low to about high."""
        unit = Decimal(step)
        return unit * self._rng.randint(round(Decimal(low) / unit), round(Decimal(high) / unit))

    def rate(self, low: str, high: str, step: str) -> Decimal:
        """A fraction, from bounds and a step in percent."""
        return self.number(low, high, step) / 100

    def money(self, amount: Decimal) -> str:
        """An amount that has at most two decimals, which are left out when both are zero."""
        return f"{self.symbol}{amount:,.0f}" if amount == amount.to_integral_value() else f"{self.symbol}{amount:,.2f}"

    def result(self, amount: Decimal) -> Result:
        """An amount rounded to two decimals."""
        rounded = formulas.round_half_up(amount)
        return Result(f"{self.symbol}{rounded:,}", rounded, self.symbol)
