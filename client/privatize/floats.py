"""Sums of clipped updates in floating point."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SMALLER", "clip_factors", "clipped_sum_of"]

SMALLER = 2.0**-64
"""What rows are multiplied by whose squares overflow; their factors would be too small for float32.
"""


def clip_factors(norms: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """(K,) factors min(1, clip / norm) and (K,) norms; where a norm is not finite, 0 and NaN."""
    finite = torch.isfinite(norms)
    factors = torch.where(norms > clip, clip / norms, 1.0)
    return torch.where(finite, factors, 0.0), torch.where(finite, norms, torch.nan)


def clipped_sum_of(updates: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """(d,) the sum of updates (K, d), each scaled down to norm `clip`, and (K,) the norms.

    An update that is not finite adds zeros and has the norm NaN. Its row is overwritten, and so is
    one whose squares overflow, from a norm of 1.8e19 in float32 on; a norm beyond the dtype is
    given as its largest number.
    """
    norms = torch.linalg.vector_norm(updates, dim=1)
    large = ~torch.isfinite(norms)
    factors, norms = clip_factors(norms, clip)
    if bool(large.any()):
        rows = updates[large]
        found, exact = clip_factors(
            torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64), clip
        )
        updates[large] = torch.where(torch.isnan(exact)[:, None], 0.0, rows * SMALLER)
        factors[large] = (found / SMALLER).to(factors.dtype)
        norms[large] = exact.clamp(max=torch.finfo(norms.dtype).max).to(norms.dtype)
    return factors @ updates, norms
