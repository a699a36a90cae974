"""banded-mf (DP-FTRL): the server's noise, correlated over rounds by a banded strategy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.clipping import squared_norm_limit, wide_scale
from fedsys.privacy.events.base import Guarantee, Sampling, SumEvent, check_ring
from fedsys.privacy.rings import check_bits
from fedsys.privacy.strategies import banded_strategy, inverse_series

__all__ = ["BandedEvent", "banded_event"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BandedEvent(SumEvent):
    """One round of a matrix mechanism whose bands do not exceed the rounds between two turns.

    A client's rounds touch disjoint rows of C x, so k participations cost what k Gaussian
    mechanisms of multiplier z cost; under Poisson sampling within cyclic groups each is amplified
    by the group's rate.

    Attributes:
        horizon: rounds of the job.
        min_separation: b, rounds between two participations of one client, at least.
        modulus_bits: b; the sum is taken mod 2^b.
        strategy: SHA-256 of the coefficients.
        bands: nonzero coefficients, at most ``min_separation``.
        scale: s, integers per unit of the update.
        l2: D2, largest l2 norm of one client's integers.
        white_deviation: of Z, in integers: z D2 |c|.
        total_variance: largest variance of the noise in any round's release.
    """

    mechanism: ClassVar[str] = "banded-mf"

    horizon: int
    min_separation: int
    modulus_bits: int
    strategy: str
    bands: int
    scale: float
    l2: float
    white_deviation: float
    total_variance: float

    @property
    def turn_rate(self) -> float:
        """Probability of being sampled in a round of one's own group."""
        return min(1.0, self.sampling.rate * self.min_separation)


@lru_cache(maxsize=64)
def _largest_gain(horizon: int, bands: int) -> float:
    """Variance of the last round's noise in units of Z's: it grows with the rounds."""
    strategy = banded_strategy(horizon=horizon, bands=bands)
    return float(np.square(inverse_series(strategy.coefficients, horizon)).sum())


def banded_event(
    *,
    dimension: int,
    clip: float,
    noise_multiplier: float,
    modulus_bits: int,
    cap: int,
    min_survivors: int,
    expected_cohort: float,
    sampling: Sampling,
    horizon: int,
    min_separation: int,
    guarantee: Guarantee = "outsider",
    colluders: int = 0,
) -> BandedEvent:
    """The event of a banded matrix factorisation round.

    Raises:
        MechanismError: a value is out of range, no strategy is that long, sampling allows a client
            to return too early, or the ring is too small.
    """
    validation.integer("dimension", dimension, most=1 << 36)
    validation.positive("clip", clip)
    validation.positive("noise_multiplier", noise_multiplier)
    validation.integer("cap", cap)
    validation.integer("min_separation", min_separation)
    check_bits(modulus_bits)
    if guarantee == "server":
        raise MechanismError(
            "guarantee='server' cannot hold under banded-mf: the server sees the sum before the "
            "noise; use distributed-skellam or local-gaussian"
        )
    if sampling.kind == "fixed" or sampling.participation < 1:
        raise MechanismError(
            "banded-mf needs sampling='min-separation', or 'poisson' (within cyclic groups), and "
            f"participation=1; got sampling={sampling.kind!r}, "
            f"participation={sampling.participation:g}"
        )
    if sampling.kind == "poisson" and sampling.rate * min_separation > 1:
        raise MechanismError(
            f"a cohort of {expected_cohort:g} exceeds a cyclic group, a {min_separation}th of the "
            "population: lower min_separation or the cohort"
        )
    strategy = banded_strategy(horizon=horizon, bands=min_separation)
    scale = wide_scale(dimension, clip)
    l2 = math.sqrt(squared_norm_limit(dimension))
    white = noise_multiplier * l2 * strategy.norm
    total = white**2 * _largest_gain(horizon, min_separation)
    check_ring(modulus_bits, cap=cap, l2=l2, deviation=math.sqrt(total))
    return BandedEvent(
        dimension=dimension,
        clip=clip,
        noise_multiplier=noise_multiplier,
        cap=cap,
        min_survivors=min_survivors,
        expected_cohort=expected_cohort,
        sampling=sampling,
        guarantee=guarantee,
        colluders=colluders,
        horizon=horizon,
        min_separation=min_separation,
        modulus_bits=modulus_bits,
        strategy=strategy.digest,
        bands=strategy.bands,
        scale=scale,
        l2=l2,
        white_deviation=white,
        total_variance=total,
    )
