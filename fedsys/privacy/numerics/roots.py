"""A zero of a continuous function by Brent's method."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["brent"]

_MOST_STEPS = 100
_RELATIVE = 4 * 2.0**-52


def brent(f: Callable[[float], float], low: float, high: float, *, tolerance: float) -> float:
    """A zero of f between ``low`` and ``high``.

    Brent, "Algorithms for Minimization without Derivatives" (1973), chapter 4, in the form of
    ``scipy.optimize.brentq``, to which it is equal step by step.

    Args:
        f: has opposite signs at the ends, or a zero at one of them.
        low: one end.
        high: the other end.
        tolerance: the largest absolute error.

    Raises:
        ValueError: f has the same sign at both ends, or no zero is found in 100 steps.
    """
    before, now = low, high
    at_before, at_now = f(before), f(now)
    if at_before == 0:
        return before
    if at_now == 0:
        return now
    if (at_before < 0) == (at_now < 0):
        raise ValueError("f has the same sign at both ends")
    other = at_other = last = step = 0.0
    for _ in range(_MOST_STEPS):
        if at_before != 0 and at_now != 0 and (at_before < 0) != (at_now < 0):
            other, at_other = before, at_before
            last = step = now - before
        if abs(at_other) < abs(at_now):
            before, now, other = now, other, now
            at_before, at_now, at_other = at_now, at_other, at_now
        delta = (tolerance + _RELATIVE * abs(now)) / 2
        half = (other - now) / 2
        if at_now == 0 or abs(half) < delta:
            return now
        if abs(last) > delta and abs(at_now) < abs(at_before):
            tried = _interpolated(before, now, other, at_before, at_now, at_other)
            if 2 * abs(tried) < min(abs(last), 3 * abs(half) - delta):
                last, step = step, tried
            else:
                last = step = half
        else:
            last = step = half
        before, at_before = now, at_now
        now += step if abs(step) > delta else (delta if half > 0 else -delta)
        at_now = f(now)
    raise ValueError(f"no zero was found in {_MOST_STEPS} steps")


def _interpolated(
    before: float, now: float, other: float, at_before: float, at_now: float, at_other: float
) -> float:
    """The step by secants, or by inverse quadratic extrapolation through three points."""
    if before == other:
        return -at_now * (now - before) / (at_now - at_before)
    first = (at_before - at_now) / (before - now)
    second = (at_other - at_now) / (other - now)
    return (
        -at_now
        * (at_other * second - at_before * first)
        / (second * first * (at_other - at_before))
    )
