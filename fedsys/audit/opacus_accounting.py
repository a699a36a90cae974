"""Opacus' PRV accountant; importing this module imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from opacus.accountants import PRVAccountant

__all__ = ["prv_epsilon"]


def prv_epsilon(steps: Sequence[tuple[float, float, int]], delta: float) -> float:
    """epsilon at ``delta`` of Poisson-sampled Gaussian steps, by Gopi, Lee and Wutschitz (2021).

    Args:
        steps: (noise multiplier, sampling rate, how often) each.
        delta: in (0, 1).
    """
    accountant = PRVAccountant()
    accountant.history = [tuple(step) for step in steps]
    with warnings.catch_warnings():
        # About the Rényi orders from which it takes the width of its grid, not about the result.
        warnings.filterwarnings("ignore", message="Optimal order", category=UserWarning)
        return float(accountant.get_epsilon(delta))
