"""Sums of clipped updates in floating point."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["clip_factors", "clipped_sum_of"]


def clip_factors(norms: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """(K,) factors min(1, clip / norm) and (K,) norms; where a norm is not finite, 0 and NaN."""
    finite = torch.isfinite(norms)
    factors = torch.where(norms > clip, clip / norms, 1.0)
    return torch.where(finite, factors, 0.0), torch.where(finite, norms, torch.nan)


def clipped_sum_of(updates: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """(d,) the sum of updates (K, d), each scaled down to norm `clip`, and (K,) the norms.

    An update that is not finite adds zeros and has the norm NaN; its row is overwritten.
    """
    norms = torch.linalg.vector_norm(updates, dim=1)
    factors, norms = clip_factors(norms, clip)
    lost = torch.isnan(norms)
    if bool(lost.any()):
        updates[lost] = 0
    return factors @ updates, norms
