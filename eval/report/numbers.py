"""How the report writes its figures; – stands where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def decimals(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


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


def half_width(interval: dict[str, float]) -> str:
    return f"{(interval['high'] - interval['low']) / 2:.3f}"


DIGITS = {"bits_per_byte": 3, "perplexity": 2, "rougeL": 3, "bleu": 1}


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A row's numbers as the tables write them; – where there is none."""
    metrics = row["metrics"]
    stop_rate, to_base = metrics.get("stop_rate"), row["bits_per_byte_to_base"]
    return {
        **{name: decimals((metrics.get(name) or {}).get("value"), digits) for name, digits in DIGITS.items()},
        "stop_rate": f"{100 * stop_rate['value']:.0f} %" if stop_rate else "–",
        "to_base": "–" if to_base is None else f"{to_base:+.3f}".replace("-", "−"),
        "trainable_parameters": count(row["trainable_parameters"]),
        "trainable_share": f"{100 * row['trainable_share']:.3g} %",
        "train_seconds": duration(row["train_seconds"]),
        "memory": memory(row["peak_memory_bytes"]),
    }


def shown_rank(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Its rank, as =1 where others share it; – where it is not ranked."""
    shares = sum(other["rank"] == row["rank"] for other in rows) > 1
    return ("=" if shares else "") + str(row["rank"]) if row["rank"] else "–"


def interval_text(name: str, interval: dict[str, float]) -> str:
    """The interval's ends in the digits of its value."""
    if name == "stop_rate":
        return f"{100 * interval['low']:.0f}–{100 * interval['high']:.0f}"
    return f"{interval['low']:.{DIGITS[name]}f}–{interval['high']:.{DIGITS[name]}f}"
