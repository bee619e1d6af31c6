"""Numbers as answers about money write them: value, unit, and the worth of the last digit that is shown.

    −$1,234.50        -1234.50   $        ($1,234) is negative, too
    9.4 %             9.4        %        so are 9.4 percent, 9.4 percentage points and 940 basis points
    EUR 1.5 million   1500000    €        1.5m, 1.5 mn and 1,500k are as much
    3 years           3          years
    5–7 %, 1.234,50   none: what can be read in two ways, or as no single number

Notation is that of English: a point before decimals; commas, apostrophes or narrow blanks between thousands. Numbers in
words are not read. Years, dates, numbers of list items, names such as S&P 500 and 401(k), and digits inside of words
are no numbers here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

PERCENT = "%"
SYMBOLS = {"$": "$", "US$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹", "C$": "CAD", "CA$": "CAD", "A$": "AUD",
           "AU$": "AUD", "NZ$": "NZD", "HK$": "HKD", "S$": "SGD", "R$": "BRL"}  # fmt: skip
CODES = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥", "INR": "₹", "Rs": "₹", "RMB": "CNY",
         **{code: code for code in ("CAD", "AUD", "NZD", "HKD", "SGD", "BRL", "CHF", "CNY", "SEK", "NOK", "DKK", "PLN",
                                    "MXN", "ZAR", "KRW", "TRY")}}  # fmt: skip
CURRENCY_WORDS = {"dollar": "$", "euro": "€", "pound": "£", "yen": "¥", "rupee": "₹", "yuan": "CNY", "franc": "CHF"}
CURRENCIES = frozenset(CODES.values())
SCALES = {"hundred": 2, "k": 3, "thousand": 3, "lakh": 5, "m": 6, "mm": 6, "mn": 6, "million": 6, "crore": 7, "b": 9,
          "bn": 9, "billion": 9, "t": 12, "tn": 12, "trillion": 12}  # fmt: skip
TIMES = ("year", "yr", "quarter", "month", "week", "day", "hour", "minute", "period", "payment", "instalment",
         "installment")  # fmt: skip

_SYMBOL = "|".join(map(re.escape, SYMBOLS))
_CODE = "|".join(CODES)
_WORD = "|".join(CURRENCY_WORDS)
_MINUS = "-−–‐‑"
_THIN = "\u00a0\u2009\u202f"
_TOKEN = re.compile(
    rf"""(?<![^\W_])(?<!\d[.,])
    (?:(?P<before>{_SYMBOL}|(?:{_CODE})(?![A-Za-z])\.?)\s{{0,2}})?
    (?(before)(?P<inner>[{_MINUS}]\s?)?)
    (?P<digits>\d(?:(?:[\d.,:/'’{_THIN}]|\ (?=\d{{3}}(?!\d)))*\d)?|\.\d+)
    (?P<power>[eE][-−+]?\d{{1,3}}|\s?[×x*]\s?10\s?\^\s?\(?(?P<exponent>[-−+]?\d{{1,3}})\)?)?
    (?P<scale>\s?(?i:(?:hundred|thousand|lakh|million|crore|billion|trillion)s?|mm|mn|bn|tn)\b|[kKmMbBtT]\b
      |(?(before)\s[kKmMbB]\b|(?!)))?
    (?P<after>\s?(?:\s?%|(?i:per\s?cent|percentage\s+points?|pct|pp|bps?|basis[\s-]+points?)\b|{_SYMBOL}|(?:{_CODE})\b
      |(?:US\s)?(?i:(?:{_WORD})s?|cents?|pence)\b)|[-\s]?(?i:{"|".join(TIMES)})s?\b|\s?[x×](?![\w\s]*\d))?
    (?![^\W_]|-[A-Za-z]|\([a-z]\))""",
    re.VERBOSE,
)
_READABLE = re.compile(
    rf"\d+(?:\.\d+)?|\.\d+|[1-9]\d{{0,2}}(?P<by>[,'’ {_THIN}])\d{{3}}(?:(?P=by)\d{{3}})*(?:\.\d+)?"
    r"|[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?"  # as India writes 12,34,567
)
_MONTHS = (r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?"
           r"|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\.?")  # fmt: skip
_YEAR = r"(?:19|20)\d{2}(?![\d%]|[.,]\d|\s?(?:%|percent|dollars|euros|pounds|units|shares|[kmb]n?\b))"
_NO_NUMBER = re.compile(
    rf"""\b{_MONTHS}\s+\d{{1,2}}(?:st|nd|rd|th)?\b(?![.,]\d|\s?%)(?:,?\s+\d{{4}}\b)?
    | \b\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTHS}(?:,?\s+\d{{4}}\b)?(?!\w)
    | \b{_MONTHS},?\s+{_YEAR}
    | \b\d{{4}}[-−–]\d{{1,2}}[-−–]\d{{1,2}}\b | \b\d{{1,2}}[/.]\d{{1,2}}[/.](?:\d{{4}}|\d{{2}})\b(?![.,]?\d)
    | \b(?i:in|since|until|during|through|year|FY|fiscal|end\s+of)\s+{_YEAR}(?:[-–/]\d{{2,4}}\b)?
    | \({_YEAR}\)
    | ^[ \t]*\(?\d{{1,2}}[.)](?=\s+\S) | (?<!\S)\(\d{{1,2}}\)(?=\s+[A-Za-z])
    | \b(?:S&P|FTSE|Russell|Nasdaq|NASDAQ|Nikkei|CAC|DAX|Stoxx|STOXX|Fortune|Form|Section|Article|Chapter|Step)\s+\d+\b
    """,
    re.VERBOSE | re.MULTILINE,
)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0xFFE1: ord("£"), 0xFFE5: ord("¥")}
# What stands before (1,234) where it is a negative amount, and before (5) or (5 %) where it says a thing once more
_OPENS = re.compile(r"(?:^|[=≈:|\n\t]|\b(?:is|was|were|be|of|to|at|by|equals|gives|or))\s*$")
_ASIDE = re.compile(
    r"(?i)(?:[\d%$£€¥]|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|\w+ty|hundred|thousand"
    r"|million|billion|percent|cent|points?|dollars?|euros?|pounds?))\s*$"
)
_NAMED = re.compile(rf"[^\W\d_][{_MINUS}]$")
_SIGN = re.compile(rf"([{_MINUS}+])(\s?)$")
_MINUS_WORD = re.compile(r"(?i)(?<!\d )(?<!\w)(?:minus|negative)\s+$")
_OPEN = re.compile(rf"(?P<before>{_SYMBOL})?\s?\(\s?$")
_CLOSE = re.compile(r"\s?\)(\s?%)?")
_BETWEEN = re.compile(rf"[,'’ {_THIN}]")
_AHEAD = 40  # characters before a number that are looked at
MOST_DIGITS = 60  # characters of a number: what is longer is a loop of a model


@dataclass(frozen=True)
class Number:
    """One number of a text, from `start` to `end`.

    `value` is in units of `unit`: "%", a currency, "years" and the like, or "" for none. It is None where the digits
    stand for no single number. `digit` is what one unit of the last digit shown is worth.
    """

    value: Decimal | None
    unit: str
    digit: Decimal
    start: int
    end: int

    @property
    def is_time(self) -> bool:
        return self.unit.removesuffix("s") in TIMES


def numbers(text: str) -> list[Number]:
    """All numbers of a text, in their order."""
    text = text.translate(_FULL_WIDTH).replace("\\$", "$ ").replace("\\%", " %")
    text = _NO_NUMBER.sub(lambda found: re.sub(r"\S", "\0", found[0]), text)
    found = list(_numbers(text))
    for number, (first, second) in enumerate(pairwise(found)):
        if text[first.end : second.start] in (*_MINUS, "—", "~"):  # a range: neither is the answer
            found[number : number + 2] = [_unread(first), _unread(second)]
    return found


def numbers_asked(text: str, unit: str) -> list[Number]:
    """Those that may answer a question for a number in this unit: a time is none, unless a time is asked for."""
    asks_time = unit.removesuffix("s") in TIMES
    return [number for number in numbers(text) if asks_time or not number.is_time]


# An agreed mark before the answer: "Answer: 5", "The answer is 5", and GSM8K's "#### 5"
MARK = re.compile(r"(?i:\b(?:final |correct )?answer(?:\*\*)?(?:\s*[:=]|\s+is\b:?))|####|\\boxed\{")


def final_number(text: str, unit: str) -> Number | None:
    """The number that a text gives as its answer: the first after an agreed mark, else the last one; None for none."""
    found = numbers_asked(text, unit)
    if mark := MARK.search(text):
        found = next(([number] for number in found if number.start >= mark.end()), found)
    return found[-1] if found else None


_LEADS = re.compile(r"(?:[=≈]|####|\\boxed\{|(?i:\banswer(?:\s*[:=]|\s+is\b:?)))\s*$")
_ENDS_IN_DIGITS = re.compile(r"\d\D{0,40}\Z")
_TRAILS = re.compile(r"[\s.!)\]}*_$]*")


def sure_number(reference: str) -> Number | None:
    """The number that a reference ends in, where it can be read for sure; else None.

    It is the whole reference, or follows "=", "Answer:" or "####", or is the only number there and has a unit.
    """
    found = numbers(reference) if _ENDS_IN_DIGITS.search(reference) else []  # most answers in prose do not
    if not found or found[-1].value is None or not _TRAILS.fullmatch(reference[found[-1].end :]):
        return None
    last = found[-1]
    ahead = reference[: last.start].rstrip("(")
    if not ahead.strip(" \t\n*_$") or _LEADS.search(ahead):
        return last
    return last if len(found) == 1 and (last.unit == PERCENT or last.unit in CURRENCIES) else None


def _numbers(text: str) -> Iterator[Number]:
    ended = 0
    for token in _TOKEN.finditer(text):
        start, end = token.span()
        joined, ended = start == ended + 1, end
        ahead = text[max(0, start - _AHEAD) : start]
        if _NAMED.search(ahead) and not joined:
            continue  # COVID-19, but not the end of $5k-$6k
        negative, begin = _sign(ahead)
        negative |= bool(token["inner"])
        scale = SCALES[token["scale"].strip().lower().removesuffix("s")] if token["scale"] else 0
        unit, factor = _unit(token)
        if bracket := _OPEN.search(ahead):
            closed = _CLOSE.match(text, end)
            if closed:
                end = closed.end()
                unit = PERCENT if closed[1] else unit or SYMBOLS.get(bracket["before"], "")
                outside = ahead[: len(ahead) - len(bracket[0])]
                begin = len(bracket[0])
                negative |= bool(closed[1] or bracket["before"] or _is_accounting(outside, unit))
        digits = token["digits"]
        if len(digits) > MOST_DIGITS or not _READABLE.fullmatch(digits):
            yield Number(None, unit, Decimal(0), start - begin, end)
            continue
        plain = _BETWEEN.sub("", digits)
        power = token["exponent"] or (token["power"] or "")[1:] or "0"
        shift = Decimal(1).scaleb(scale + int(power.replace("−", "-"))) * factor
        decimals = len(plain.partition(".")[2])
        value = Decimal(plain) * shift
        yield Number(-value if negative else value, unit, shift.scaleb(-decimals), start - begin, end)


def _sign(ahead: str) -> tuple[bool, int]:
    """Whether a number is negative by what stands before it, and how many characters of that belong to it."""
    if word := _MINUS_WORD.search(ahead[-14:]):
        return True, len(word[0])
    sign = _SIGN.search(ahead)
    if not sign:
        return False, 0
    outside = ahead[: len(ahead) - len(sign[0])]
    # Else it subtracts, joins two words, or begins the item of a list.
    is_sign = re.search(r"[=≈:(]\s*$", outside) if sign[2] else not re.search(r"[\w%)\]$£€¥]$", outside)
    return (sign[1] != "+", len(sign[0])) if is_sign else (False, 0)


def _unit(token: re.Match[str]) -> tuple[str, Decimal]:
    """A token's unit, and what its number is multiplied by to be in it."""
    before, after = (token["before"] or "").removesuffix("."), (token["after"] or "").strip().removeprefix("-")
    if before:
        return SYMBOLS.get(before) or CODES[before], Decimal(1)
    word = " ".join(after.lower().split())
    if word.rstrip("s") in TIMES:  # "periods" begins as "percent" does
        return word.rstrip("s").replace("yr", "year").replace("installment", "instalment") + "s", Decimal(1)
    if word.startswith(("bp", "basis")):
        return PERCENT, Decimal("0.01")
    if word == PERCENT or word.startswith(("per", "pct", "pp")):
        return PERCENT, Decimal(1)
    if word.rstrip("s") == "cent" or word == "pence":
        return "£" if word == "pence" else "", Decimal("0.01")
    word = word.removeprefix("us ").rstrip("s")
    return SYMBOLS.get(after) or CODES.get(after) or CURRENCY_WORDS.get(word, ""), Decimal(1)


def _is_accounting(outside: str, unit: str) -> bool:
    """Whether a number alone in brackets is negative, as accounts write it, and does not say a thing once more."""
    if _OPENS.search(outside):
        return True
    return unit != PERCENT and not _ASIDE.search(outside)


def _unread(number: Number) -> Number:
    return Number(None, number.unit, number.digit, number.start, number.end)
