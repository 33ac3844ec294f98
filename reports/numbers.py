"""How numbers are shown: with the digits that matter, and a dash for what is not known."""

from __future__ import annotations

import math
from typing import Any

NONE = "–"
_LARGEST = 1e60


def finite(value: Any) -> float | None:
    """Return a number, or None for what is none: null, NaN, infinity, text.

    What is as large as nothing that is measured counts as infinite, and as small as zero: a loss
    that has burst must not take the axes with it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value) or abs(value) > _LARGEST:
        return None
    return float(value) if abs(value) > 1 / _LARGEST else 0.0


def plain(value: Any) -> str:
    """Return a number with up to four digits behind the point."""
    number = finite(value)
    if number is None:
        return NONE
    if number and not 1e-3 <= abs(number) < 1e9:
        return f"{number:.3g}"
    text = f"{number:,.4f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def metric(value: Any) -> str:
    """Return a metric with four digits behind the point, so that those of a column compare."""
    number = finite(value)
    if number is None:
        return NONE
    return f"{number:.4f}" if not number or 1e-3 <= abs(number) < 1e7 else f"{number:.4g}"


def signed(value: Any) -> str:
    """Return a difference with its sign."""
    number = finite(value)
    return NONE if number is None else f"{number:+.4f}"


def count(value: Any) -> str:
    """Return a whole number with separators."""
    number = finite(value)
    return NONE if number is None else f"{number:,.0f}"


def times(value: Any) -> str:
    """Return a ratio: ``2.31x``."""
    number = finite(value)
    return NONE if number is None else f"{number:.2f}x"


def megabytes(value: Any) -> str:
    """Return a size in MB of 2**20 bytes, as Neutrino's tables have it."""
    number = finite(value)
    return NONE if number is None else f"{number / 2**20:.4f} MB"


def millions(value: Any) -> str:
    """Return how many parameters there are, in millions."""
    number = finite(value)
    return NONE if number is None else f"{number / 1e6:.4f} M"


def operations(value: Any) -> str:
    """Return multiply-accumulates, in the unit that fits."""
    number = finite(value)
    if number is None:
        return NONE
    return f"{number / 1e9:.4f} GMACs" if number >= 1e7 else f"{number / 1e6:.4f} MMACs"


def milliseconds(value: Any) -> str:
    """Return a time of one call."""
    number = finite(value)
    return NONE if number is None else f"{number:.3f} ms"


def duration(value: Any) -> str:
    """Return a duration in its two largest units: ``2h 05m``, ``3m 20s``, ``12s``."""
    number = finite(value)
    if number is None:
        return NONE
    whole = round(number)
    if whole >= 3600:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 60}m {whole % 60:02d}s" if whole >= 60 else f"{whole}s"
