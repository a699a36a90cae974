"""The part of delta that the noise's distance from a Gaussian costs in each view.

For two reasons a release is not exactly a post-processed Gaussian mechanism: a sum of several
rounded terms is one only up to tau (``NOISE.md``), and a draw of the sampler is exact only to
2^-977. If every coordinate of every round is within total variation k of its ideal, a view that is
(eps, delta)-private in the ideal is (eps, delta + (1 + e^eps) K)-private, with K the sum of all k.
So each view is charged (1 + e^eps) K with an eps that is at least the view's own.

That eps must be known before the first round, or the parts of delta would not be constants. The
charge is therefore computed at an upper bound on the job's cost: first without amplification and,
if the charge is then too large, with it. It is never more than a hundredth of delta. A view whose
epsilon later exceeds what its charge covers has no bound, and a job whose *guaranteed* view
exceeds it from the start is refused.
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
"""The part of delta below which a charge is not refined any further."""

_HOPELESS = 1e4
"""The epsilon without amplification above which amplification is not tried."""

_FAR = math.exp(100.0)
"""1 + e^eps at eps = 100, an epsilon that nobody relies on."""


class NoiseTooCoarse(MechanismError):
    """Rounded noise is too far from Gaussian noise for the required epsilon."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseCharges:
    """One job's charges.

    Attributes:
        parts: the part of delta charged, by view.
        largest: the largest epsilon that the charge covers, by view.
        uncovered: the views whose epsilon may exceed it.
        terms: the rounded terms of a release, for messages.
    """

    parts: Mapping[View, float]
    largest: Mapping[View, float]
    uncovered: frozenset[View]
    terms: RoundedTerms | None

    def of(self, view: View) -> float:
        """The part of delta charged to a view."""
        return self.parts[view]

    def covered(self, view: View, epsilon: float) -> float:
        """``epsilon``, or infinity if the view's charge does not cover it."""
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
    """One job's charges.

    Args:
        event: the event of every round.
        delta: the job's delta.
        rounds: T, the number of rounds.
        turns: the most rounds that count against one client, for an outsider.
        contributions: the most rounds that count against one client, for somebody who sees the
            cohorts.
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
    """(1 + e^eps) K, where ``distance`` is K."""
    return math.inf if epsilon > 700 else (1 + math.exp(epsilon)) * distance


def _distance(terms: RoundedTerms | None) -> float:
    """The total variation from a post-processed Gaussian, in one coordinate of one round."""
    if terms is None:
        return 0.0
    summed = rounding_distance(terms.sigma, terms.fewest, terms.most)
    return summed + terms.draws * sampler_distance(terms.sigma)
