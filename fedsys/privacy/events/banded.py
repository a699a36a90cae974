"""banded-mf (DP-FTRL): the server's noise, correlated over rounds by a banded factorization."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.events.base import GaussianStep, RoundedTerms, SumEvent
from fedsys.privacy.events.gaussian import refuse_server_guarantee
from fedsys.privacy.factorization import BandedStrategy, banded_strategy, inverse_series
from fedsys.privacy.views import View

__all__ = ["BandedEvent"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BandedEvent(SumEvent):
    """One round of a matrix mechanism with at most as many bands as rounds between two turns.

    A client's rounds touch disjoint rows of C x, so k participations cost as much as k Gaussian
    mechanisms of multiplier z. Under Poisson sampling within cyclic groups each is amplified by the
    group's rate. Under min-separation clients' schedules depend on each other: without one client
    another takes its place, so neighbours replace one client, at twice the sensitivity.

    Attributes:
        horizon: the job's number of rounds.
        min_separation: b, the least number of rounds between two participations of one client.
    """

    mechanism: ClassVar[str] = "banded-mf"
    keys: ClassVar[tuple[str, ...]] = (
        "horizon",
        "min_separation",
        "strategy",
        "bands",
        "white_deviation",
    )

    horizon: int
    min_separation: int

    def _check(self) -> None:
        validation.integer("rounds", self.horizon)
        validation.integer("min_separation", self.min_separation)
        refuse_server_guarantee(self)
        sampling = self.sampling
        if self.encoding.kind != "wide":
            raise MechanismError(
                f"encoding={self.encoding.kind!r} does not go with banded-mf: use encoding='wide'"
            )
        if sampling.kind in ("fixed", "chosen") or sampling.participation < 1:
            raise MechanismError(
                "banded-mf needs sampling='min-separation', or 'poisson' (within cyclic groups), "
                f"and participation=1; got sampling={sampling.kind!r}, "
                f"participation={sampling.participation:g}"
            )
        if sampling.kind == "poisson" and sampling.rate * self.min_separation > 1:
            raise MechanismError(
                f"a cohort of {self.expected_cohort:g} exceeds a cyclic group, a "
                f"{self.min_separation}th of the population: lower min_separation or the cohort"
            )

    @property
    def factorization(self) -> Mapping[str, Any]:
        """The first column of C by its numerators, with its horizon and number of bands."""
        factors = self.factors
        return {
            "horizon": factors.horizon,
            "bands": factors.bands,
            "numerators": list(factors.numerators),
        }

    @property
    def factors(self) -> BandedStrategy:
        """The shipped factorization for these rounds and bands."""
        return banded_strategy(horizon=self.horizon, bands=self.min_separation)

    @property
    def strategy(self) -> str:
        """SHA-256 of the factorization, as hex."""
        return self.factors.digest

    @property
    def bands(self) -> int:
        """The number of nonzero coefficients, at most ``min_separation``."""
        return self.factors.bands

    @property
    def white_deviation(self) -> float:
        """The standard deviation of Z, in integers: z D2 |c|."""
        return self.noise_multiplier * self.l2 * self.factors.norm

    @property
    def share_multiplier(self) -> float:
        """0: clients add nothing."""
        return 0.0

    @property
    def total_multiplier(self) -> float:
        """The total multiplier of the last round's release, whose noise is the largest."""
        gain = _largest_gain(self.horizon, self.min_separation)
        return self.noise_multiplier * self.factors.norm * math.sqrt(gain)

    @property
    def turn_rate(self) -> float:
        """The probability that a client is sampled in a round of its own group."""
        return min(1.0, self.sampling.rate * self.min_separation)

    def outsider_step(self) -> GaussianStep:
        """One turn of the client, amplified within its cyclic group under Poisson sampling."""
        rate = 1.0 if self.sampling.replaces else self.turn_rate
        return self._towards_releases(self.noise_multiplier, rate)

    def together_step(self) -> GaussianStep:
        """One turn in which the client is known to have taken part."""
        return self._towards_releases(self.noise_multiplier, 1.0)

    def server_step(self, survivors: int | None = None) -> GaussianStep:
        """No noise: the server sees the sum before it adds any."""
        return GaussianStep(multiplier=0.0)

    def terms(self, view: View) -> RoundedTerms | None:
        """One term, because the correlated noise is rounded once per release."""
        if view == "server":
            return None
        return RoundedTerms(sigma=self.white_deviation, fewest=1, most=1, draws=1)


@lru_cache(maxsize=64)
def _largest_gain(horizon: int, bands: int) -> float:
    """The variance of the last round's noise over Z's: the squared norm of C^-1's first column."""
    strategy = banded_strategy(horizon=horizon, bands=bands)
    return float(np.square(inverse_series(strategy.coefficients, horizon)).sum())
