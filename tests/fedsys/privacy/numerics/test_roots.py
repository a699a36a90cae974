"""Brent's method takes the steps of SciPy's."""

import math
from collections.abc import Callable

import pytest
from scipy.optimize import brentq

from fedsys.privacy.numerics.roots import brent

CURVES: list[tuple[Callable[[float], float], float, float]] = [
    (lambda x: math.cos(x) - x, 0.0, 1.0),
    (lambda x: x**9, -1.0, 1.3),
    (lambda x: min(math.exp(-7 * x), 1e3) - 2.0, -5.0, 4.0),
    (lambda x: -1.0 if x < 0.123 else 1.0, 1.0, 0.0),
    (lambda x: x, 0.0, 1.0),
]


@pytest.mark.parametrize(("f", "low", "high"), CURVES)
def test_every_step_is_scipys(f: Callable[[float], float], low: float, high: float) -> None:
    ours: list[float] = []
    theirs: list[float] = []

    def counted(tried: list[float]) -> Callable[[float], float]:
        return lambda x: (tried.append(x), f(x))[1]  # type: ignore[func-returns-value]

    found = brent(counted(ours), low, high, tolerance=1e-9)
    assert found == brentq(counted(theirs), low, high, xtol=1e-9)
    assert ours == theirs


def test_no_change_of_sign_is_refused() -> None:
    with pytest.raises(ValueError, match="same sign"):
        brent(lambda x: 1.0 + x * x, -1.0, 1.0, tolerance=1e-9)
