"""Shared checks of parameters; each error names the parameter and its value."""

from __future__ import annotations

import math

from fedsys.errors import MechanismError

__all__ = ["fraction", "integer", "one_of", "positive", "probability"]


def positive(name: str, value: float, *, zero: bool = False) -> float:
    """A finite number > 0 (>= 0 with ``zero``), as float.

    Raises:
        MechanismError: it is not.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
        or (value == 0 and not zero)
    ):
        wanted = "a finite number >= 0" if zero else "a finite number > 0"
        raise MechanismError(f"{name} must be {wanted}, got {value!r}")
    return float(value)


def probability(name: str, value: float) -> float:
    """A number in (0, 1], as float.

    Raises:
        MechanismError: it is not.
    """
    if positive(name, value) > 1:
        raise MechanismError(f"{name} must be in (0, 1], got {value!r}")
    return float(value)


def fraction(name: str, value: float, *, zero: bool = False) -> float:
    """A number in (0, 1) ([0, 1) with ``zero``), as float.

    Raises:
        MechanismError: it is not.
    """
    if positive(name, value, zero=zero) >= 1:
        raise MechanismError(f"{name} must be in {'[' if zero else '('}0, 1), got {value!r}")
    return float(value)


def integer(name: str, value: int, *, least: int = 1, most: int | None = None) -> int:
    """An integer of at least ``least`` and at most ``most``.

    Raises:
        MechanismError: it is not.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < least
        or (most is not None and value > most)
    ):
        wanted = f"an integer >= {least}" if most is None else f"an integer in [{least}, {most}]"
        raise MechanismError(f"{name} must be {wanted}, got {value!r}")
    return value


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """One of the allowed strings.

    Raises:
        MechanismError: it is not one of them.
    """
    if value not in allowed:
        raise MechanismError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value
