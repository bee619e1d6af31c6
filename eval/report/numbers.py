"""How the report writes its figures; – stands where there is none."""

from __future__ import annotations

from typing import Any


def decimals(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def percentage(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def count(value: float) -> str:
    """1234567 as 1.23M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(value: float | None) -> str:
    """Bytes as decimal gigabytes."""
    return "–" if value is None else f"{value / 1e9:.1f} GB" if value >= 1e8 else f"{value / 1e6:.0f} MB"


def ranks_text(row: dict[str, Any]) -> str:
    """The interval of a row's ranks: 2, 1–3, or – where it is not ranked."""
    if not row["position"]:
        return "–"
    low, high = row["rank_low"], row["rank_high"]
    return str(low) if low == high else f"{low}–{high}"


def difference_interval(comparison: dict[str, Any], sign: int = 1) -> str:
    """The interval of a difference, turned round with sign −1."""
    if comparison["low"] is None:
        return "too few questions"
    low, high = sorted((sign * comparison["low"], sign * comparison["high"]))
    return f"{low:+.3f} to {high:+.3f}"


def few_questions(comparison: dict[str, Any], questions: int) -> str:
    """What is to be said of a difference that few questions decide; nothing of another."""
    few = comparison["few_questions"]
    if not few:
        return ""
    count = few["questions"]
    return (
        f"few questions decide this difference: {count} of {questions} hold{'' if count > 1 else 's'} "
        f"{100 * few['share']:.0f} % of its variance"
    )


def half_width(interval: dict[str, float]) -> str:
    return f"{(interval['high'] - interval['low']) / 2:.3f}"


DIGITS = {"bits_per_byte": 3, "perplexity": 2, "rougeL": 3, "bleu": 1}


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A row's numbers as the tables write them; – where there is none."""
    metrics = row["metrics"]
    to_base = row["bits_per_byte_to_base"]
    return {
        **{name: decimals((metrics.get(name) or {}).get("value"), digits) for name, digits in DIGITS.items()},
        "stop_rate": percentage((metrics.get("stop_rate") or {}).get("value")),
        "position": str(row["position"] or "–"),
        "rank": ranks_text(row),
        "to_base": "–" if to_base is None else f"{to_base:+.3f}".replace("-", "−"),
        "trainable_parameters": count(row["trainable_parameters"]),
        "trainable_share": f"{100 * row['trainable_share']:.3g} %",
        "train_seconds": duration(row["train_seconds"]),
        "memory": memory(row["peak_memory_bytes"]),
    }


def interval_text(name: str, interval: dict[str, float]) -> str:
    """The interval's ends in the digits of its value."""
    if name not in DIGITS:  # a share, in percent
        return f"{100 * interval['low']:.0f}–{100 * interval['high']:.0f}"
    return f"{interval['low']:.{DIGITS[name]}f}–{interval['high']:.{DIGITS[name]}f}"
