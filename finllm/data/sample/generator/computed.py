"""Finance questions with computed answers: `python -m finllm.data.sample.generator.computed > computed.jsonl`.

Each family draws realistic figures (`interest`, `business`), works out the answer with `formulas` and fills its own
sentences (`wordings.yaml`). The working shown in an answer uses exact figures only, so that a reader who computes it
arrives at the same cent.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain, cycle
from random import Random

import yaml

from finllm.data.sample.generator import business, interest
from finllm.data.sample.generator.draw import SMALLEST_COIN, Draw, Slots

SEED = 2024
ROWS_PER_FAMILY = 105


@dataclass(frozen=True)
class Family:
    """Questions of one kind: whole questions, requests that go with a line of data, and answers."""

    kind: str
    draw: Callable[[Draw], Slots]
    questions: list[str]
    requests: list[str]
    data: str
    answers: list[str]


DRAWS: dict[str, Callable[[Draw], Slots]] = {
    "compound interest": interest.compound_interest,
    "simple interest": interest.simple_interest,
    "loan payment": interest.loan,
    "loan interest": interest.loan,
    "present value of a sum": interest.present_value,
    "present value of an annuity": interest.annuity_value,
    "regular saving": interest.regular_saving,
    "bond yield": interest.bond_yield,
    "bond price": interest.bond_price,
    "financial ratio": business.ratio,
    "currency conversion": business.currency_conversion,
    "capital gains tax": business.gains_tax,
    "real return": business.real_return,
    "break-even": business.break_even,
    "growth rate": business.growth,
    "depreciation": business.depreciation,
}
ASKED = {"loan payment": "payment", "loan interest": "interest"}  # the slot that is asked for, where it is not `result`
WORDINGS = yaml.safe_load((files("finllm.data.sample.generator") / "wordings.yaml").read_text(encoding="utf-8"))
FAMILIES = tuple(Family(kind, draw, **WORDINGS[kind]) for kind, draw in DRAWS.items())


def family_rows(family: Family) -> Iterator[dict[str, str]]:
    """The rows of one family; every third keeps its figures in `input`. The same on every run.

    No two have the same figures: in another currency and other words they would still be one sum.
    """
    rng = Random(f"{SEED} {family.kind}")  # one stream per family: a change to one leaves the others as they are
    questions, requests, seen = cycle(family.questions), cycle(family.requests), set[str]()
    while len(seen) < ROWS_PER_FAMILY:
        draw = Draw(rng)
        slots = {
            "person": draw.person,
            "bank": draw.bank,
            "firm": draw.firm,
            "place": draw.place,
            "cent": SMALLEST_COIN[draw.symbol],
        } | family.draw(draw)
        with_data = len(seen) % 3 == 2
        instruction = next(requests if with_data else questions).format_map(slots)
        data = family.data.format_map(slots) if with_data else ""
        key = " ".join(sorted(re.findall(r"\d[\d,.]*\d|\d", f"{instruction} {data}")))
        if key in seen:
            continue
        seen.add(key)
        asked = slots[ASKED.get(family.kind, "result")]
        yield {
            "instruction": instruction,
            "input": data,
            "output": rng.choice(family.answers).format_map(slots),
            "topic": "computed",
            "kind": family.kind,
            "value": str(asked.value),
            "unit": asked.unit,
            "tolerance": str(asked.tolerance),
        }


def rows() -> Iterator[dict[str, str]]:
    """All rows, the families taking turns, so that any stretch of the file covers them all."""
    return chain.from_iterable(zip(*map(family_rows, FAMILIES), strict=True))


def main() -> None:
    """Write the rows to standard output, one JSON object a line, in UTF-8 whatever the locale."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    sys.stdout.buffer.write(text.encode())


if __name__ == "__main__":
    main()
