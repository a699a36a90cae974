"""What the noise's distance from a Gaussian costs of delta, in each view.

Two things keep a release from being exactly a post-processed Gaussian mechanism: a sum of several
rounded terms is one only up to tau (``NOISE.md``), and a draw of the sampler is exact only to
2^-980. Where every coordinate of every round is within a total variation k of its ideal, a view
that is (eps, delta)-private in the ideal is (eps, delta + (1 + e^eps) K)-private, K the sum of
all k. So each view is charged (1 + e^eps) K with an eps that is at least the view's own.

That eps has to be known before the first round, or the parts of delta would not be constants. The
charge is therefore taken at a bound on the job's cost, without amplification first and with it
where that is too much, but never at more than a hundredth of delta: a view whose epsilon turns out
larger than such a charge covers has no bound, and a job whose *guaranteed* view is that large from
the start is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedsys.errors import MechanismError
from fedsys.privacy.accounting.costs import (
    Steps,
    outsider_step,
    rdp_epsilon,
    server_step,
    squares_of,
    steps_epsilon,
    together_step,
)
from fedsys.privacy.accounting.exact_gaussian import composed_epsilon
from fedsys.privacy.events import Event, RoundedTerms
from fedsys.privacy.noise import rounding_distance, sampler_distance
from fedsys.privacy.views import VIEWS, View

__all__ = ["CHARGE_SHARE", "NoiseCharges", "NoiseTooCoarse", "noise_charges"]

CHARGE_SHARE = 0.01
"""The largest part of delta that the noise's distance from a Gaussian may take."""

_AMPLE = 1e-6
"""Part of delta below which a charge is not looked at any more closely."""

_HOPELESS = 1e4
"""Epsilon without amplification above which amplification is not looked at."""

_FAR = math.exp(100.0)
"""1 + e^eps for an epsilon that nobody relies on."""


class NoiseTooCoarse(MechanismError):
    """Rounded noise is too far from Gaussian noise for the epsilon that it is to hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseCharges:
    """Of one job.

    Attributes:
        parts: of delta, by view.
        largest: epsilon up to which a view's part of delta covers it, by view.
        uncovered: views whose epsilon may exceed it.
        terms: what is added up in a release, for messages.
    """

    parts: Mapping[View, float]
    largest: Mapping[View, float]
    uncovered: frozenset[View]
    terms: RoundedTerms | None

    def of(self, view: View) -> float:
        """A view's part of delta."""
        return self.parts[view]

    def covered(self, view: View, epsilon: float) -> float:
        """The epsilon, or infinity where the charge does not cover it."""
        return epsilon if epsilon <= self.largest[view] else math.inf

    def require(self, view: View) -> None:
        """Refuses a job whose guaranteed view is not covered.

        Raises:
            NoiseTooCoarse: it is not.
        """
        if view not in self.uncovered:
            return
        terms = self.terms
        summed = "" if terms is None or terms.most < 2 else f" in up to {terms.most} terms"
        sigma = "" if terms is None else f" of deviation {terms.sigma:.3g} in integers{summed}"
        raise NoiseTooCoarse(
            f"rounded noise{sigma} is too far from Gaussian noise for the {view}'s epsilon: that "
            f"would cost more than a hundredth of delta; use more modulus_bits, a larger "
            "noise_multiplier or a smaller cohort"
        )


def noise_charges(
    event: Event, *, delta: float, rounds: int, turns: int, contributions: int
) -> NoiseCharges:
    """The charges of a job.

    Args:
        event: of each round.
        delta: of the job.
        rounds: T.
        turns: of them, in which an outsider counts one client at most.
        contributions: likewise, for whoever sees the cohorts.
    """
    parts: dict[View, float] = {}
    largest: dict[View, float] = {}
    uncovered: set[View] = set()
    whole: dict[View, Steps] = {
        "outsider": {outsider_step(event): turns},
        "participant": {together_step(event): turns},
        "server": {server_step(event): contributions},
    }
    for view in VIEWS:
        distance = _distance(event.terms(view)) * event.length * rounds
        parts[view], largest[view] = 0.0, math.inf
        if distance == 0:
            continue
        epsilon = composed_epsilon(delta / 2, squares_of(whole[view]))
        charge = _charge(epsilon, distance)
        for tighter in (rdp_epsilon, steps_epsilon) if view == "outsider" else ():
            if charge > delta * _AMPLE and epsilon < _HOPELESS:
                epsilon = min(epsilon, tighter(whole[view], delta / 2))
                charge = _charge(epsilon, distance)
        if charge > delta * CHARGE_SHARE:
            uncovered.add(view)
            charge = delta * _AMPLE
            if charge < distance * _FAR:
                charge = delta * CHARGE_SHARE
            epsilon = math.log(max(charge / distance - 1, 1.0))
        parts[view], largest[view] = charge, max(epsilon, 0.0)
    return NoiseCharges(
        parts=parts,
        largest=largest,
        uncovered=frozenset(uncovered),
        terms=event.terms("participant"),
    )


def _charge(epsilon: float, distance: float) -> float:
    return math.inf if epsilon > 700 else (1 + math.exp(epsilon)) * distance


def _distance(terms: RoundedTerms | None) -> float:
    """Total variation, in one coordinate of one round, from a post-processed Gaussian."""
    if terms is None:
        return 0.0
    summed = rounding_distance(terms.sigma, terms.fewest, terms.most)
    return summed + terms.draws * sampler_distance(terms.sigma)
