"""The registered tests, run on a run's scores, and on simulated scores for their power.

>>> from fedsys.audit.canary_claim import planned
>>> from fedsys.audit.canary_protocol import commitment_to, register
>>> from fedsys.privacy import make_plan
>>> plan = make_plan(mechanism="distributed-gaussian", population=1000, expected_cohort=1000,
...     rounds=1, dimension=650, clip=1.0, delta=1e-5, noise_multiplier=0.6)
>>> claimed = planned(plan)
>>> protocol = register(claimed, canaries=500, dimension=650, commitment=commitment_to(bytes(32)))
>>> battery = Battery(claimed, protocol)
>>> generator = np.random.default_rng(1)
>>> sorted(battery.refuted_by(simulated(claimed.law, protocol, generator)))
[]
>>> weak = simulated(claimed.law, protocol, generator, weaker=2.0)
>>> "chi-square" in set(battery.refuted_by(weak))
True
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedsys.audit.canaries import correct_guesses, fdp_p_value, one_run_p_value
from fedsys.audit.canary_claim import Claimed
from fedsys.audit.canary_outcome import Scores
from fedsys.audit.canary_protocol import TESTS, Protocol, critical_counts
from fedsys.audit.canary_scores import (
    ScoreLaw,
    Separation,
    chi_square,
    kolmogorov_smirnov,
    one_shot_separation,
    scores_separation,
)
from fedsys.errors import AuditInputError

__all__ = ["WEAKENED", "Battery", "Finding", "Power", "simulated"]

WEAKENED = (1.5, 2.0, math.inf)
"""Divisors of the noise at which the tests' power is stated; infinity leaves no noise."""

_RUNS = 100
_SCORES = 2_000_000
"""The most scores that are simulated for one figure of power, unless twenty runs need more."""

_CATCHES = 0.9
"""Fraction of runs without any noise that a test must refute; otherwise it has no power."""

_FAINT = 1e9
"""Noise divided by this counts as none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one test found.

    Attributes:
        p_value: the p-value; None where the test cannot be run.
        why_not: the reason it cannot, as text.
    """

    p_value: float | None
    why_not: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Power:
    """How often simulated runs are refuted, for each of `WEAKENED`.

    Attributes:
        by_test: for each test, the fraction of runs that it refutes, in the order of `WEAKENED`.
        by_any: fraction of runs that any test refutes, in the same order.
    """

    by_test: dict[str, tuple[float, ...]]
    by_any: tuple[float, ...]

    def catches(self, test: str) -> bool:
        """Whether the test would refute a run without any noise."""
        return self.by_test[test][-1] >= _CATCHES


class Battery:
    """All tests of one protocol against one claim.

    Args:
        claimed: the ledger's claim.
        protocol: the registered protocol.

    Attributes:
        critical: the fewest right guesses that refute the claim, by one-run and by f-DP one-run.
    """

    def __init__(self, claimed: Claimed, protocol: Protocol) -> None:
        self.claimed, self.protocol = claimed, protocol
        self.critical = critical_counts(claimed, protocol)

    def findings(self, found: Scores) -> dict[str, Finding]:
        """What each test says, in the order of `TESTS`."""
        return {test: self._finding(test, found) for test in TESTS}

    def correct(self, test: str, found: Scores) -> int:
        """Number of right guesses, for one of the two tests that guess."""
        protocol = self.protocol
        guesses = protocol.guesses if test == "one-run" else protocol.fdp_guesses
        return correct_guesses(found.scores, found.included, guesses)

    def separation(self, test: str, found: Scores) -> Separation:
        """The statistic of one of the two tests that compare means.

        Raises:
            AuditInputError: there are too few canaries or free dimensions.
        """
        law = self._law()
        if test == "gaussian-scores":
            return scores_separation(found.scores, found.included, law)
        return one_shot_separation(
            found.inside,
            length=found.length,
            dimension=found.dimension,
            canaries=len(found.scores),
            law=law,
        )

    def refuted_by(self, found: Scores) -> Iterator[str]:
        """Tests that refute the claim; faster than computing their p-values."""
        level = self.protocol.level
        for test, critical in zip(("one-run", "f-dp"), self.critical, strict=True):
            if critical is not None and self.correct(test, found) >= critical:
                yield test
        for test in TESTS:
            if test not in ("one-run", "f-dp"):
                p_value = self._finding(test, found).p_value
                if p_value is not None and p_value <= level:
                    yield test

    def power(self, seed: int = 0) -> Power:
        """How often each test refutes simulated runs with weaker noise.

        Args:
            seed: seed of the simulation, which needs no secrecy.
        """
        counts = {test: [0] * len(WEAKENED) for test in TESTS}
        any_of, runs = [0] * len(WEAKENED), 1
        if self.claimed.law is not None and math.isfinite(self.claimed.epsilon):
            runs = max(20, min(_RUNS, _SCORES // self.protocol.canaries))
            generator = np.random.default_rng(seed)
            for place, weaker in enumerate(WEAKENED):
                for _ in range(runs):
                    scores = simulated(self.claimed.law, self.protocol, generator, weaker=weaker)
                    refuted = list(self.refuted_by(scores))
                    any_of[place] += bool(refuted)
                    for test in refuted:
                        counts[test][place] += 1
        return Power(
            by_test={test: tuple(count / runs for count in each) for test, each in counts.items()},
            by_any=tuple(count / runs for count in any_of),
        )

    def _law(self) -> ScoreLaw:
        law = self.claimed.law
        if law is None:
            raise AuditInputError("the distribution of scores under the claim is not known")
        return law

    def _finding(self, test: str, found: Scores) -> Finding:
        try:
            return Finding(p_value=self._p_value(test, found))
        except AuditInputError as error:
            return Finding(p_value=None, why_not=str(error))

    def _p_value(self, test: str, found: Scores) -> float:
        claimed, protocol = self.claimed, self.protocol
        if not math.isfinite(claimed.epsilon):
            raise AuditInputError("no epsilon is claimed")
        if test == "chi-square":
            return chi_square(found.outside, self._law())
        if test == "kolmogorov-smirnov":
            return kolmogorov_smirnov(found.outside, self._law())
        if test in ("gaussian-scores", "one-shot"):
            return self.separation(test, found).p_value(self._law(), protocol.level)
        guesses = protocol.guesses if test == "one-run" else protocol.fdp_guesses
        if guesses == 0:
            raise AuditInputError(
                f"no number of guesses about {protocol.canaries} canaries can refute this claim"
            )
        correct = self.correct(test, found)
        if test == "one-run":
            return one_run_p_value(
                claimed.epsilon_for(protocol.one_run_delta),
                canaries=protocol.canaries,
                guesses=guesses,
                correct=correct,
                delta=protocol.one_run_delta,
            )
        if claimed.tradeoff is None:
            raise AuditInputError("the claim promises no trade-off curve")
        return fdp_p_value(
            claimed.tradeoff, canaries=protocol.canaries, guesses=guesses, correct=correct
        )


def simulated(
    law: ScoreLaw, protocol: Protocol, generator: np.random.Generator, *, weaker: float = 1.0
) -> Scores:
    """Simulated scores of one run under a law.

    Args:
        law: the law of the scores.
        protocol: the number of canaries and of dimensions.
        generator: source of the simulation's randomness, which needs no secrecy.
        weaker: divides the noise; below 1 there is more noise than claimed.
    """
    canaries, dimension = protocol.canaries, protocol.dimension
    deviation = law.sigma / min(weaker, _FAINT)
    included = generator.random(canaries) < 0.5
    rate = law.rate if law.rate is not None else min(1.0, law.most / max(law.rounds, 1))
    turns = np.minimum(generator.binomial(law.rounds, rate, canaries), law.most)
    noise = generator.normal(scale=deviation, size=canaries)
    free = dimension - canaries
    squared = generator.chisquare(free) / free if free else 1.0
    return Scores(
        included=included,
        scores=np.where(included, turns, 0) + noise,
        length=deviation * math.sqrt(squared * dimension),
        dimension=dimension,
    )
