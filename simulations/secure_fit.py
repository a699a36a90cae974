"""Which cohorts secure aggregation, and so any deployment, can sum; the others are refused.

Protocol ``ideal`` stands for what a deployment sums. So with a claim of privacy it refuses cohorts
for which ``secure`` has no parameters, although it could add their integers up. Cohorts that
``secure`` can sum, but whose rounds it would give up more often than a tenth of delta pays for, are
run with a notice: nothing is given up here, and nothing charged for it.
"""

from __future__ import annotations

from fedsys.config import Config
from fedsys.errors import ConfigError, MechanismError
from fedsys.privacy import Mechanism, PrivacyPlan
from fedsys.privacy.plan import QuorumMissed
from fedsys.privacy.sampling.quorum import withstood
from fedsys.wire.round_params import round_params
from secure_agg.committee import SUITE_NAMES
from secure_agg.errors import ParameterError
from secure_agg.params import MAX_COHORT

__all__ = ["check_secure"]

_LOWER = (0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.0)
"""Fractions that a remedy may suggest."""


def check_secure(config: Config, plan: PrivacyPlan) -> str:
    """Require cohorts of the expected size to be possible under secure aggregation.

    Args:
        config: whose rounds are to be run.
        plan: derived from it.

    Returns:
        One line if protocol ``ideal`` runs, without any claim of privacy, what no devices could.

    Raises:
        ConfigError: protocol ``secure`` cannot sum them, or ``ideal`` claims privacy for what
            ``secure`` cannot sum.
    """
    protocol, buffered = config.aggregation.protocol, config.rounds.mode == "buffered"
    if protocol == "float":
        return ""
    if protocol == "secure":
        if buffered:
            _check_epoch(config, plan, plan.build_mechanism())
        else:
            _check_cohort(config, plan)
        return ""
    if buffered:
        return ""
    corrupt, expected = config.aggregation.corrupt, config.cohort.expected
    lost, colluders = config.aggregation.dropout, plan.colluders
    if withstood(expected, corrupt=corrupt, dropout=lost, colluders=colluders) is None:
        ways = _ways(plan, expected, corrupt, lost)
        text = (
            f"aggregation.protocol = 'ideal' stands for what 'secure' sums, and no devices could "
            f"sum cohorts of cohort.expected = {expected} with aggregation.corrupt = {corrupt:g}, "
            f"privacy.max_colluders = {colluders} and aggregation.dropout = {lost:g}"
        )
        if plan.protected:
            ways.append("aggregation.protocol = 'float', which is not a release")
            raise ConfigError(f"{text}: {', or '.join(ways)}")
        return text
    if not plan.protected:
        return ""
    try:
        plan.changed(corrupt=corrupt)
    except QuorumMissed as missed:
        return f"protocol 'ideal' runs what 'secure' refuses: {missed}: {missed.remedy()}"
    except MechanismError as error:
        return f"protocol 'ideal' runs what 'secure' refuses: {error}"
    return ""


def _check_cohort(config: Config, plan: PrivacyPlan) -> None:
    expected = config.cohort.expected
    reason = _refused(plan, expected, SUITE_NAMES[config.aggregation.suite])
    if reason is None:
        return
    aggregation = config.aggregation
    ways = _ways(plan, expected, aggregation.corrupt, aggregation.dropout)
    raise ConfigError(
        f"cohort.expected = {expected} with aggregation.corrupt = {aggregation.corrupt:g} and "
        f"aggregation.dropout = {aggregation.dropout:g}: {reason}"
        + (f"; {', or '.join(ways)}" if ways else "")
    )


def _refused(plan: PrivacyPlan, n: int, suite: int) -> str | None:
    """Why a cohort of `n` cannot be summed; None if it can."""
    mechanism = plan.build_mechanism()
    length, bits = mechanism.length, mechanism.modulus_bits
    try:
        round_params(plan, n, length=length, modulus_bits=bits, suite=suite)
    except ParameterError as error:
        return str(error)
    return None


def _ways(plan: PrivacyPlan, expected: int, corrupt: float, dropout: float) -> list[str]:
    """What would make such cohorts possible: only what was tried and works, one value at a time."""

    def fits(n: int, corrupt: float, dropout: float, colluders: int = plan.colluders) -> bool:
        return withstood(n, corrupt=corrupt, dropout=dropout, colluders=colluders) is not None

    largest = min(plan.population, MAX_COHORT, 4 * expected + 64)
    larger = (n for n in range(expected + 1, largest + 1) if fits(n, corrupt, dropout))
    fewer_lost = (p for p in _LOWER if p < dropout and fits(expected, corrupt, p))
    fewer_bad = (c for c in _LOWER if c < corrupt and fits(expected, c, dropout))
    ways = []
    if (size := next(larger, None)) is not None:
        ways.append(f"cohort.expected = {size}")
    if (lost := next(fewer_lost, None)) is not None:
        ways.append(f"aggregation.dropout = {lost:g} if no more are lost")
    if (bad := next(fewer_bad, None)) is not None:
        ways.append(f"aggregation.corrupt = {bad:g} if no more collude")
    fewer = range(plan.colluders - 1, -1, -1)
    most = next((count for count in fewer if fits(expected, corrupt, dropout, count)), None)
    if most is not None:
        ways.append(f"privacy.max_colluders = {most} if no more collude")
    return ways


def _check_epoch(config: Config, plan: PrivacyPlan, mechanism: Mechanism) -> None:
    """Require two honest uploads in a buffer, even if the server fills it with all colluders."""
    rounds, aggregation = config.rounds, config.aggregation
    invited = min(rounds.epoch_clients, plan.population)
    where = (
        f"rounds.concurrency = {rounds.concurrency}, rounds.buffer = {rounds.buffer} and "
        f"rounds.epoch = {rounds.epoch} invite {invited} clients at a time"
    )
    try:
        params = round_params(
            plan,
            invited,
            length=mechanism.length,
            modulus_bits=mechanism.modulus_bits,
            suite=SUITE_NAMES[aggregation.suite],
        )
    except ParameterError as error:
        raise ConfigError(f"{where}: {error}") from None
    if params.min_included > plan.min_survivors:
        raise ConfigError(
            f"{where}, of whom {params.min_included - 2} may collude under aggregation.corrupt = "
            f"{aggregation.corrupt:g} and be in one buffer: raise rounds.buffer, or lower "
            f"rounds.epoch or rounds.concurrency"
        )
