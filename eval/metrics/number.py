"""Is the number of an answer right? Of the examples that ask for one number, how many answers end in it.

An example asks for a number where its dataset says so (`value`, `unit` and `tolerance`, see
finllm/data/number_columns.py) or, in a dataset without these fields, where its reference ends in one number that can be
read for sure. What numbers look like, and which one of a text is its answer: finllm/text/number.py.

    number_right       within the tolerance, of the same sign and unit; a currency may be left out
    number_close       the same within 1 % of the value
    number_right_bare  right, or the number of a percentage without its sign, as 9.4 or as the fraction 0.094
    no_number          answers without any number that could be meant
    text_after_number  answers with more words after their number than the reference has
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Any

from finllm.data.number_columns import ANY, shown
from finllm.text.number import PERCENT, Number, final_number, numbers_asked, sure_number
from finllm.text.prompts import question_of
from finllm.text.words import words

SIGNATURE = "the first number after 'Answer:', else the last one; same unit and sign; rules 2"
CLOSE = Decimal("0.01")


@dataclass(frozen=True)
class Wanted:
    """The number that an answer must reach, as text: `value` in `unit`, which an answer may miss by `tolerance`."""

    value: str
    unit: str
    tolerance: str


def wanted_of(example: Mapping[str, Any]) -> Wanted | None:
    """What number an example asks for; None where it asks for none."""
    if "value" in example:
        return Wanted(example["value"], example["unit"], example["tolerance"]) if example["value"] else None
    number = sure_number(example["output"])
    return Wanted(*shown(number)) if number else None


def looked_at(answer: str, reference: str, wanted: Wanted) -> dict[str, Any]:
    """What predictions.jsonl holds of an answer's number: the one that was read, and the five figures."""
    number = final_number(answer, wanted.unit)
    read = number.value if number else None
    return {
        "number_read": f"{read:f} {number.unit}".strip() if read is not None else None,
        "number_right": is_right(number, wanted),
        "number_close": is_right(number, wanted, CLOSE),
        "number_right_bare": is_right(number, wanted) or _right_without_percent(number, wanted),
        "no_number": number is None,
        "text_after_number": _words_after(answer, number)
        > _words_after(reference, final_number(reference, wanted.unit)),
    }


def is_right(number: Number | None, wanted: Wanted, relative: Decimal = Decimal(0)) -> bool:
    """Whether a number is the one that is wanted, within its tolerance or, where that is more, `relative` of it."""
    if number is None or number.value is None or not _same_unit(number.unit, wanted.unit):
        return False
    value = Decimal(wanted.value)
    room = max(Decimal(wanted.tolerance), relative * abs(value))
    return abs(number.value - value) <= room and number.value * value >= 0


def _same_unit(unit: str, wanted: str) -> bool:
    left_out = unit == "" and wanted != PERCENT  # a percent sign is worth a factor, a currency is not
    return unit == wanted or wanted == ANY or left_out


def _right_without_percent(number: Number | None, wanted: Wanted) -> bool:
    if number is None or number.value is None or (number.unit, wanted.unit) != ("", PERCENT):
        return False
    return any(is_right(replace(number, value=number.value * scale, unit=PERCENT), wanted) for scale in (1, 100))


def _words_after(text: str, number: Number | None) -> int:
    return len(words(text[number.end :])) if number else 0


def floors(rows: Sequence[dict[str, Any]], training: Iterable[Mapping[str, Any]] | None) -> dict[str, float]:
    """`number_right` of answers without any thought, on the same examples: a number of the question (of its first, last
    and largest one whichever is right most often), and the most frequent number of the training answers."""
    asked = [(row, Wanted(**row["number"])) for row in rows if row.get("number") and row["prediction"] is not None]
    if not asked:
        return {}
    copied = Counter()
    for row, wanted in asked:
        held = [each for each in numbers_asked(question_of(row), wanted.unit) if each.value is not None]
        like = [each for each in held if each.unit == wanted.unit] or held
        if like:
            chosen = {"first": like[0], "last": like[-1], "largest": max(like, key=lambda each: each.value)}
            copied.update(name for name, number in chosen.items() if is_right(number, wanted))
    found = {"a number of the question": max(copied.values(), default=0) / len(asked)}
    common = Counter(wanted for row in training or () if (wanted := wanted_of(row)))
    if common:
        most = max(common, key=common.get)
        number = Number(Decimal(most.value), "" if most.unit == ANY else most.unit, Decimal(0), 0, 0)
        found["the most frequent number"] = sum(is_right(number, wanted) for _, wanted in asked) / len(asked)
    return found


def as_fields(example: Mapping[str, Any]) -> dict[str, Any]:
    """The field of a prediction that says which number is asked for; none where none is."""
    wanted = wanted_of(example)
    return {"number": asdict(wanted)} if wanted else {}
