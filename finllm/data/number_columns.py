"""The number that a row asks for: from the columns value, unit and tolerance, or from one column of the user's.

    value      29898.27     a plain number
    unit       £            a currency, %, a time such as years, "" for none, "any" where nobody knows it
    tolerance  0.005        how far an answer may be off, in the same unit

A dataset dir holds these three in all rows, as text and empty where no number is asked for; or in none.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from finllm.text.number import CURRENCIES, PERCENT, TIMES, Number, final_number, numbers

NUMBER_FIELDS = ("value", "unit", "tolerance")
ANY = "any"
MANY_DECIMALS = 4  # a number with more of them was not rounded for a reader: it is right within RELATIVE
RELATIVE = Decimal("1e-4")


class AskedNumber(NamedTuple):
    """The number that a row asks for, as a dataset dir writes it."""

    value: str
    unit: str
    tolerance: str


def number_columns(columns: Collection[str], asked: str | None, leave_out: Collection[str]) -> dict[str, str]:
    """The columns that hold the number: the one that was `asked` for, else value, unit and tolerance together."""
    if asked is not None:
        return {"number": asked}
    by_name = {column.strip().lower(): column for column in columns if column not in leave_out}
    return {name: by_name[name] for name in NUMBER_FIELDS} if set(NUMBER_FIELDS) <= by_name.keys() else {}


def read_number(fields: Mapping[str, Any], columns: Mapping[str, str], reference: str) -> AskedNumber | None:
    """The number that a raw row asks for; None where it asks for none. Raises `ValueError` with what is wrong."""
    if "number" in columns:
        return _of_one_column(fields.get(columns["number"]), columns["number"], reference)
    held = {name: _text(fields.get(column)) for name, column in columns.items()}
    if not any(held.values()):
        return None
    problems = []
    for name in ("value", "tolerance"):
        number = _decimal(held[name])
        if number is None or (name == "tolerance" and number < 0):
            wanted = "a number" if name == "value" else "a number of 0 or more"
            problems.append(f"{name} (column {columns[name]}) is {held[name]!r}, not {wanted} in plain digits")
    if held["unit"] and not is_unit(held["unit"]):
        problems.append(
            f"unit (column {columns['unit']}) is {held['unit']!r}, not %, a currency "
            f"({', '.join(sorted(CURRENCIES))}), a time (years, months …), empty or '{ANY}'"
        )
    if problems:
        raise ValueError("; ".join(problems))
    return AskedNumber(held["value"], held["unit"], held["tolerance"])


def is_unit(text: str) -> bool:
    return text in CURRENCIES or text in (PERCENT, ANY) or (text.endswith("s") and text[:-1] in TIMES)


def shown(number: Number) -> AskedNumber:
    """What a number that a reference shows asks for: right is what lies within half a unit of its last digit."""
    return AskedNumber(f"{number.value:f}", number.unit, f"{number.digit / 2:f}")


def _of_one_column(cell: Any, column: str, reference: str) -> AskedNumber | None:
    """From a cell such as 29898.27, "£29,898.27" or "9.4 %". The reference knows the unit and how it was rounded."""
    text = _text(cell)
    if not text:
        return None
    found = numbers(text)
    rest = text[: found[0].start] + text[found[0].end :] if len(found) == 1 else text
    if len(found) != 1 or found[0].value is None or rest.strip(" \u00a0."):
        raise ValueError(
            f"number (column {column}) is {text[:80]!r}, not one number with its unit, as 1,234.50, $5m or 9.4 %"
        )
    held = found[0]
    if (written := final_number(reference, held.unit)) and written.value is not None:
        scales = (1,) if held.unit else (1, 100) if written.unit == PERCENT else (1,)
        fits = any(abs(held.value * scale - written.value) <= written.digit / 2 for scale in scales)
        if fits and held.unit in ("", written.unit):
            return shown(written)
    tolerance = held.digit / 2
    if -held.digit.adjusted() > MANY_DECIMALS:
        tolerance = max(tolerance, abs(held.value) * RELATIVE)
    return AskedNumber(f"{held.value:f}", held.unit or ANY, f"{tolerance:f}")


def _text(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return repr(cell) if isinstance(cell, float) else str(cell).strip()


def _decimal(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
