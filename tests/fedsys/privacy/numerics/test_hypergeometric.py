"""The hypergeometric function against mpmath's."""

import mpmath
import pytest

from fedsys.privacy.numerics.hypergeometric import concave_tail


@pytest.mark.parametrize("m", [1, 2, 5, 7])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_on_both_sides_of_the_change_of_formula(t: float, m: int) -> None:
    for u in (0.0, 1e-9, 0.3, 1.999, 2.001, 10.0, 1e6, 1e200):
        expected = float(mpmath.hyp2f1(-t, 1, m + 1, -u))
        assert concave_tail(t, m, u) == pytest.approx(expected, rel=3e-14)
