"""Opacus' PRV accountant; importing this module imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from opacus.accountants import PRVAccountant

__all__ = ["prv_bounds"]

_ERROR = 0.01
_DELTA_ERROR = 1e-3


def prv_bounds(steps: Sequence[tuple[float, float, int]], delta: float) -> tuple[float, float]:
    """Between what epsilon at ``delta`` of Poisson-sampled Gaussian steps lies.

    Gopi, Lee and Wutschitz, "Numerical Composition of Differential Privacy" (2021), Theorem 5.

    Args:
        steps: (noise multiplier, sampling rate, how often) each.
        delta: in (0, 1).

    Raises:
        ValueError: delta is too small for floating point.
        RuntimeError: no bound was found.
    """
    accountant = PRVAccountant()
    accountant.history = [tuple(step) for step in steps]
    with warnings.catch_warnings():
        # About the Rényi orders from which it takes the width of its grid, not about the result.
        warnings.filterwarnings("ignore", message="Optimal order", category=UserWarning)
        # `get_epsilon` gives the upper end alone.
        loss = accountant._get_dprv(eps_error=_ERROR, delta_error=_DELTA_ERROR * delta)
        lower, _, upper = loss.compute_epsilon(delta, _DELTA_ERROR * delta, _ERROR)
    return float(lower), float(upper)
