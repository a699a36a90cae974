"""Opacus' PRV accountant; importing this module imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from opacus.accountants import PRVAccountant

__all__ = ["prv_bounds"]

_ERROR = 0.01
_DELTA_ERROR = 1e-3


def prv_bounds(steps: Sequence[tuple[float, float, int]], delta: float) -> tuple[float, float]:
    """Lower and upper bound on epsilon at ``delta`` of Poisson-sampled Gaussian steps.

    Gopi, Lee and Wutschitz, "Numerical Composition of Differential Privacy" (2021), Theorem 5.

    Args:
        steps: (noise multiplier, sampling rate, number of repetitions) of each step.
        delta: in (0, 1).

    Raises:
        ValueError: delta is too small for floating point.
        RuntimeError: no bound was found.
    """
    accountant = PRVAccountant()
    accountant.history = [tuple(step) for step in steps]
    with warnings.catch_warnings():
        # The warning concerns the Rényi orders that set the width of the grid, not the result.
        warnings.filterwarnings("ignore", message="Optimal order", category=UserWarning)
        # `get_epsilon` returns the upper end alone.
        loss = accountant._get_dprv(eps_error=_ERROR, delta_error=_DELTA_ERROR * delta)
        lower, _, upper = loss.compute_epsilon(delta, _DELTA_ERROR * delta, _ERROR)
    return float(lower), float(upper)
