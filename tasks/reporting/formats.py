"""The formats of figures, the same on the terminal, in Prefect, on the report page and in its sentences."""

from collections.abc import Mapping
from typing import Any

NONE = "–"  # no figure
MINUS = "−"  # as wide as a plus sign, and no line ends after it


def rate(value: Mapping[str, Any] | None) -> str:
    """A win rate with its 95 % interval: `0.843 (0.802–0.881)`, the rate alone where the interval is unknown."""
    if not value or value.get("value") is None:
        return NONE
    low, high = value.get("low"), value.get("high")
    interval = "" if low is None or high is None else f" ({low:.3f}–{high:.3f})"
    return f"{value['value']:.3f}{interval}"


def number(value: float | None) -> str:
    """Three significant digits; whole numbers in full, with separators; a dash for None."""
    if value is None:
        return NONE
    if isinstance(value, int):
        return signed(value, ",")
    return "0.000" if abs(value) < 5e-4 else signed(value, "#.3g").rstrip(".")


def signed(value: float, form: str) -> str:
    """A number in Python's format `form`, with a true minus sign."""
    return format(value, form).replace("-", MINUS)


def percent(share: float) -> str:
    """`86.4 %`."""
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """`42 s`, `5 min 12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
