"""How numbers are written for people.

A privacy cost is always rounded up, because rounding it down would promise more than was shown.

>>> epsilon(8.5912), epsilon(51.237), epsilon(math.inf), epsilon(None)
('8.60', '51.3', '∞', '–')
>>> epsilon(1.2301e9)
'1.24 × 10⁹'
>>> small(1e-5), small(2.94e-4), percent(0.92034), count(1437)
('10⁻⁵', '2.94 × 10⁻⁴', '92.0 %', '1,437')
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal

__all__ = ["count", "duration", "epsilon", "metric", "percent", "plain", "small"]

UNKNOWN = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def epsilon(value: float | None) -> str:
    """ε rounded up to about three digits; ``∞`` is no protection, ``–`` is unknown."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞"
    if abs(value) >= 1e6:
        exact = Decimal(repr(value))
        return small(float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), ROUND_CEILING)))
    step = "1" if value >= 100 else "0.1" if value >= 10 else "0.01" if value >= 0.1 else "0.0001"
    return f"{Decimal(repr(value)).quantize(Decimal(step), rounding=ROUND_CEILING):,}"


def small(value: float | None) -> str:
    """A probability or any other number, in powers of ten."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return plain(value)
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return power if mantissa == "1" else f"{mantissa} × {power}"


def plain(value: float | None) -> str:
    """Up to four digits, no trailing zeros."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if abs(value) >= 1e15:
        return small(value)
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def percent(fraction: float | None) -> str:
    """A fraction as a percentage with one decimal."""
    if fraction is None or not math.isfinite(fraction):
        return UNKNOWN
    return f"{100 * fraction:.1f} %"


def metric(name: str, value: float | None) -> str:
    """A metric's value: accuracies as percentages, anything else as a plain number."""
    if value is not None and "accuracy" in name and 0 <= value <= 1:
        return percent(value)
    return plain(value)


def count(value: int | None) -> str:
    """A count, with thousands separators."""
    if value is None:
        return UNKNOWN
    return (
        f"{value:,}" if abs(value) < 10**15 else small(float(max(-(10**300), min(value, 10**300))))
    )


def duration(seconds: float | None) -> str:
    """Seconds, in the largest sensible units."""
    if seconds is None or not 0 <= seconds < 1e9:
        return UNKNOWN
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"
