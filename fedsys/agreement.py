"""Whether a number from an untrusted file is the one that was derived.

>>> agrees(0.1 + 0.2, 0.3, relative=1e-9), agrees(True, 1.0, relative=1e-9)
(True, False)
>>> agrees(10**400, 1.0, relative=1e-9), agrees("0.3", 0.3, relative=1e-9)
(False, False)
"""

from __future__ import annotations

import math
import sys

__all__ = ["agrees", "is_finite"]


def is_finite(value: object) -> bool:
    """Whether a value is a number that a float can hold: JSON has integers of any size, which
    arithmetic with floats refuses by an exception."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )


def agrees(stated: object, derived: float, *, relative: float, absolute: float = 0.0) -> bool:
    """Whether a stated value is a derived number, up to rounding.

    Args:
        stated: the value, untrusted.
        derived: the number; an infinite one agrees with nothing that is not infinite.
        relative: largest relative difference.
        absolute: largest absolute difference, where that is more.
    """
    if isinstance(stated, bool) or not isinstance(stated, (int, float)):
        return False
    if not is_finite(stated) or not is_finite(derived):
        return stated == derived
    return math.isclose(stated, derived, rel_tol=relative, abs_tol=absolute)
