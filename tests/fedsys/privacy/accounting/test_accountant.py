"""The three views against a second, naive implementation that replays everything."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr

from fedsys.errors import BudgetExceeded, MechanismError
from fedsys.privacy import VIEWS, PrivacyPlan, View, ViewAccountant, make_plan
from fedsys.privacy.accounting.accountant import LateCharges
from fedsys.privacy.accounting.meetings import EXACT_POPULATION, Meetings
from fedsys.privacy.accounting.server import worst_server
from fedsys.privacy.events import Cohort, Encoding, Sampling, SumEvent

Round = tuple[list[int] | None, list[int] | None]


def _plan(**changes: Any) -> PrivacyPlan:
    parameters: dict[str, Any] = {
        "mechanism": "distributed-gaussian",
        "population": 120,
        "expected_cohort": 24,
        "rounds": 25,
        "dimension": 500,
        "clip": 0.5,
        "delta": 1e-5,
        "noise_multiplier": 1.3,
        "cap": 75,
        "min_survivors": 1,
        "dropout": 0.0,
    }
    return make_plan(**parameters | changes)


def _history(seed: int, rounds: int, population: int = 120) -> list[Round]:
    """Cohorts with dropouts, aborts before and after unmasking, and one round lost to a crash."""
    rng = np.random.default_rng(seed)
    history: list[Round] = []
    for number in range(rounds):
        cohort = np.flatnonzero(rng.random(population) < 0.2)
        alive = cohort[rng.random(cohort.size) < 0.9]
        if number == 7:
            history.append((None, None))
        elif number == 9:
            history.append((cohort.tolist(), []))
        elif number == 11:
            history.append((cohort.tolist(), None))
        else:
            history.append((cohort.tolist(), alive.tolist()))
    return history


# The naive implementation. Privacy losses of single rounds are put on a fine grid by brute force,
# convolved one by one, and delta is summed up; exact curves are bisected at high precision.
# Sensitivities, shares and variances come from the design's formulas alone.

_STEP = 2e-3


def _balle_wang(squares: float, delta: float) -> float:
    """epsilon of Gaussian mechanisms with sum 1/z^2 = squares, by bisection with 40 digits."""
    if squares == 0:
        return 0.0
    with mpmath.workdps(40):
        mu = mpmath.sqrt(squares)
        low, high = mpmath.mpf(0), mpmath.mpf(1000)
        for _ in range(90):
            middle = (low + high) / 2
            found = mpmath.ncdf(mu / 2 - middle / mu) - mpmath.exp(middle) * mpmath.ncdf(
                -mu / 2 - middle / mu
            )
            low, high = (middle, high) if found > delta else (low, middle)
        return float(high)


def _losses(multiplier: float, rate: float, *, removed: bool) -> NDArray[np.float64]:
    """Probabilities of privacy losses -L..L (in steps) of one sampled round, rounded up."""
    x = np.linspace(-40 * multiplier, 40 * multiplier + 1, 1_000_001)
    edges = (x[1:] + x[:-1]) / 2
    without = np.diff(ndtr(edges / multiplier), prepend=0.0, append=1.0)
    there = np.diff(ndtr((edges - 1) / multiplier), prepend=0.0, append=1.0)
    mixed = (1 - rate) * without + rate * there
    loss = np.log1p(rate * np.expm1(np.minimum((2 * x - 1) / (2 * multiplier**2), 600.0)))
    mass, loss = (without, -loss) if removed else (mixed, loss)
    reach = int(40 / _STEP)
    places = np.clip(np.ceil(loss / _STEP), -reach, reach).astype(int) + reach
    return np.bincount(places, weights=mass, minlength=2 * reach + 1).astype(np.float64)


def _composed(rounds: list[tuple[float, float]], delta: float) -> float:
    """epsilon of rounds of (multiplier, rate), the worse of adding and removing a client."""
    worst = 0.0
    for removed in (False, True):
        counts = Counter(rounds)
        reach = int(40 / _STEP)
        size = 1 << (2 * reach * 3).bit_length()
        spectrum = np.ones(size // 2 + 1, dtype=complex)
        for (multiplier, rate), count in counts.items():
            wrapped = np.zeros(size)
            for place, mass in enumerate(_losses(multiplier, rate, removed=removed)):
                wrapped[(place - reach) % size] = mass
            spectrum = spectrum * np.fft.rfft(wrapped) ** count
        total = np.fft.irfft(spectrum, size)
        losses = np.fft.fftfreq(size, 1 / size) * _STEP
        low, high = 0.0, 60.0
        for _ in range(60):
            middle = (low + high) / 2
            over = losses > middle
            found = float((total[over] * -np.expm1(middle - losses[over])).sum())
            low, high = (middle, high) if found > delta else (low, middle)
        worst = max(worst, high)
    return worst


def _naive(plan: PrivacyPlan, history: list[Round]) -> tuple[float, float, float]:
    z, q = plan.noise_multiplier, plan.rate
    curious = max(plan.colluders, 1)
    delta = plan.delta - plan.delta_abort
    outsider = _composed([(z, q)] * len(history), delta)

    shared_most = 0
    unknown = sum(cohort is None for cohort, _ in history)
    cohorts = [set(cohort) for cohort, _ in history if cohort is not None]
    for target in range(plan.population):
        own = [cohort for cohort in cohorts if target in cohort]
        counts = sorted(
            (
                sum(other in cohort for cohort in own)
                for other in range(plan.population)
                if other != target
            ),
            reverse=True,
        )
        shared_most = max(shared_most, min(len(own), sum(counts[:curious])))
    shared = min(shared_most + unknown, len(history))
    left = z * math.sqrt(1 - curious / plan.cap)
    participant = _composed([(z, q)] * (len(history) - shared) + [(left, 1.0)] * shared, delta)

    worst = 0.0
    limit = plan.max_participations or len(history)
    for target in range(plan.population):
        honest = []
        for cohort, survivors in history:
            if cohort is None or (survivors is None and target in cohort):
                honest.append(max(plan.min_survivors - plan.colluders, 1))
            elif survivors is not None and target in survivors:
                honest.append(max(len(survivors) - plan.colluders, 1))
        squares = sum(plan.cap / (z * z * count) for count in honest[:limit])
        worst = max(worst, squares)
    return outsider, participant, _balle_wang(worst, plan.delta)


@pytest.mark.parametrize("colluders", [0, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_views_agree_with_a_naive_replay(colluders: int, seed: int) -> None:
    plan = _plan(colluders=colluders, min_survivors=3 if colluders else 1)
    accountant = ViewAccountant(plan)
    history = _history(seed, plan.rounds)
    for cohort, survivors in history:
        accountant.charge(plan.event(), cohort, survivors)
    outsider, participant, server = _naive(plan, history)
    spent = accountant.spent()
    # the naive grid rounds losses up: by at most a step a round
    assert spent.outsider == pytest.approx(outsider, abs=_STEP * plan.rounds)
    assert spent.participant == pytest.approx(participant, abs=_STEP * plan.rounds)
    assert spent.server == pytest.approx(server, rel=1e-6)  # the noise takes 1e-6 of delta


def test_the_naive_composition_is_right_where_the_answer_is_known() -> None:
    assert _composed([(2.0, 1.0)] * 4, 1e-5) == pytest.approx(_balle_wang(1.0, 1e-5), abs=0.01)
    assert _balle_wang(21.0, 1e-5) == pytest.approx(29.34, abs=0.005)


def test_after_next_is_what_the_worst_next_round_costs() -> None:
    plan = _plan()
    accountant = ViewAccountant(plan)
    event = plan.event()
    assert accountant.spent().to_json() == {"outsider": 0.0, "participant": 0.0, "server": 0.0}
    for cohort, survivors in _history(3, 12):
        promised = accountant.after_next(event)
        accountant.charge(event, cohort, survivors)
        spent = accountant.spent()
        assert [accountant.spent_in(view) for view in VIEWS] == [spent.of(view) for view in VIEWS]
        assert spent.outsider == pytest.approx(promised.outsider, rel=1e-12)
        assert spent.participant is not None
        assert promised.participant is not None
        assert spent.participant <= promised.participant * (1 + 1e-3)  # widths of bins differ
        assert spent.server is not None
        assert promised.server is not None
        assert spent.server <= promised.server * (1 + 1e-12)


def test_an_abort_refunds_the_server_view_alone() -> None:
    plan = _plan()
    event, cohort = plan.event(), list(range(12))
    released, early, late, lost = (ViewAccountant(plan) for _ in range(4))
    released.charge(event, cohort, cohort)
    early.charge(event, cohort, [])
    late.charge(event, cohort)
    lost.charge(event)
    outsiders = {a.spent().outsider for a in (released, early, late, lost)}
    participants = {a.spent().participant for a in (released, early, late, lost)}
    assert len(outsiders) == len(participants) == 1
    assert early.spent().server == 0.0
    server = released.spent().server
    assert server is not None
    assert server > 0
    worst = late.spent().server
    assert worst == lost.spent().server
    assert worst is not None
    assert worst > server  # at the fewest survivors


def test_budget_is_refused_before_it_is_exceeded() -> None:
    plan = _plan(budget=3.0)
    accountant = ViewAccountant(plan)
    event = plan.event()
    while accountant.after_next(event).outsider <= 3.0:
        accountant.require_budget(event)
        accountant.charge(event, range(5), range(5))
    with pytest.raises(BudgetExceeded, match=r"outsider's epsilon .* over the budget 3"):
        accountant.require_budget(event)
    assert accountant.rounds > 1
    assert accountant.spent().outsider <= 3.0
    assert accountant.after_next(event).outsider > 3.0


@pytest.mark.parametrize("budget", [None, 3.0])
def test_late_charges_are_those_of_each_round_at_once(budget: float | None) -> None:
    """And a budget that not all rounds fit is asked about every one of them."""
    plan = _plan(budget=budget, rounds=200)
    event, late, at_once = plan.event(), LateCharges(ViewAccountant(plan)), ViewAccountant(plan)
    assert at_once.all_fit == (budget is None)
    for number, (cohort, survivors) in enumerate(_history(1, 190), start=1):
        refused: list[bool] = []
        for asked in (late, at_once):
            try:
                asked.require_budget(event)
                refused.append(False)
            except BudgetExceeded:
                refused.append(True)
        assert refused[0] == refused[1], number
        if refused[0]:
            break
        late.add(event, cohort or [], survivors)
        at_once.charge(event, cohort or [], survivors)
        if number % 60 == 0:
            assert late.accountant.rounds == number
            assert late.accountant.spent() == at_once.spent()
        assert len(late._waiting) < 2 * (1 << 12) // 24
    assert refused[0] == (budget is not None)
    assert late.accountant.spent() == at_once.spent()


def test_a_calibrated_job_runs_all_its_rounds() -> None:
    plan = _plan(noise_multiplier=None, epsilon=4.0)
    accountant = ViewAccountant(plan)
    for _ in range(plan.rounds):
        accountant.require_budget(plan.event())
        accountant.charge(plan.event(), range(9), range(9))
    assert 3.99 < accountant.spent().outsider <= 4.0 * (1 + 1e-9)
    with pytest.raises(BudgetExceeded):
        accountant.require_budget(plan.event())


def _server_plan(**changes: Any) -> PrivacyPlan:
    parameters: dict[str, Any] = {
        "mechanism": "distributed-gaussian",
        "population": 4000,
        "expected_cohort": 400,
        "rounds": 30,
        "dimension": 1000,
        "clip": 1.0,
        "delta": 1e-5,
        "guarantee": "server",
        "colluders": 20,
        "max_participations": 4,
    }
    return make_plan(**parameters | changes)


def test_server_guarantee_holds_at_the_worst_case() -> None:
    plan = _server_plan(epsilon=6.0)
    assert plan.min_survivors > 400 // 2 + 20, "as many as are likely to be left"
    assert plan.delta_abort <= plan.delta / 100
    event = plan.event()
    unit = (plan.noise_multiplier * 64) ** 2 * 1000
    assert event.share_variance == pytest.approx(unit / (plan.min_survivors - 20))
    accountant = ViewAccountant(plan)
    fewest = range(plan.min_survivors)
    for _ in range(4):
        accountant.require_budget(event)
        accountant.charge(event, fewest, fewest)
    server = accountant.spent().server
    assert server is not None
    assert 5.9 < server <= 6.0 * (1 + 1e-9)


def test_a_client_that_contributed_often_enough_loses_nothing_more() -> None:
    """It sends zeros and noise from then on, so that no round is given up for want of it."""
    plan = _server_plan(epsilon=6.0)
    accountant, event = ViewAccountant(plan), plan.event()
    everybody = range(plan.min_survivors)
    for number in range(12):
        accountant.require_budget(event)
        accountant.charge(event, everybody, everybody)
        spent = accountant.spent().server
        assert spent == pytest.approx(worst_server(plan, min(number + 1, 4)), rel=1e-12)
    accountant.charge(event)  # a round that a crash lost adds nothing beyond the limit either
    assert accountant.spent().server == pytest.approx(worst_server(plan, 4), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_when_a_server_budget_ends_a_job_depends_on_public_constants_alone(seed: int) -> None:
    """A budget below the worst case: the same number of rounds whatever cohorts there were."""
    plan = _server_plan(noise_multiplier=3.0, budget=4.0, max_participations=20)
    assert worst_server(plan, 30) > 4.0
    rng = np.random.default_rng(seed)
    accountant, event, ended = ViewAccountant(plan), plan.event(), None
    for number in range(plan.rounds):
        try:
            accountant.require_budget(event)
        except BudgetExceeded:
            ended = number
            break
        cohort = np.flatnonzero(rng.random(4000) < (0.02, 0.1, 0.5, 0.9)[seed])
        accountant.charge(event, cohort, cohort[rng.random(cohort.size) < 0.9])
    allowed = max(k for k in range(31) if worst_server(plan, k) <= 4.0)
    assert ended == allowed
    assert 0 < allowed < 30


def test_secret_participation_is_charged_at_the_worst_case() -> None:
    """With p < 1 how many survived tells how coins fell: rounds cost their worst, and amplify."""
    plan = _server_plan(noise_multiplier=2.0, participation=0.3, max_participations=6)
    many, few = ViewAccountant(plan), ViewAccountant(plan)
    for _ in range(6):
        many.charge(plan.event(), range(500), range(450))
        few.charge(plan.event(), range(500), range(plan.min_survivors))
    assert many.spent().server == few.spent().server == worst_server(plan, 6)
    z = plan.noise_multiplier
    naive = _composed([(z, 0.3)] * 6, plan.delta)
    assert few.spent().server == pytest.approx(naive, abs=6 * _STEP)
    assert naive < 0.7 * _balle_wang(6 / z**2, plan.delta)


def test_charging_a_round_does_not_replay_the_past() -> None:
    """Work is counted, not timed: no curve is computed again for steps that were seen."""
    from fedsys.privacy.accounting import pld

    plan = _plan(rounds=2000)
    accountant = ViewAccountant(plan)
    event = plan.event()
    accountant.charge(event, range(12), range(12))
    accountant.spent()
    before = pld._single.cache_info().misses
    for number in range(300):
        cohort = range(number % 40, number % 40 + 12)
        accountant.require_budget(event)
        accountant.charge(event, cohort, cohort)
    assert pld._single.cache_info().misses == before
    accountant.spent()
    assert pld._single.cache_info().misses <= before + 30


@pytest.mark.parametrize("colluders", [1, 2, 5])
def test_meetings_against_brute_force(colluders: int) -> None:
    rng = np.random.default_rng(4)
    cohorts = [np.flatnonzero(rng.random(30) < 0.3) for _ in range(20)]
    meetings = Meetings(population=30, colluders=colluders)
    for cohort in cohorts:
        meetings.add(cohort)
    sets = [set(cohort.tolist()) for cohort in cohorts]
    truth = 0
    for target in range(30):
        own = [s for s in sets if target in s]
        others = [k for k in range(30) if k != target]
        if colluders <= 2:
            truth = max(
                truth,
                max(
                    sum(bool(s & set(group)) for s in own)
                    for group in itertools.combinations(others, colluders)
                ),
            )
    if colluders == 1:
        assert meetings.most == truth
    else:
        assert meetings.most >= truth
        assert meetings.most <= max(sum(t in s for s in sets) for t in range(30))


def test_large_populations_use_the_participation_bound() -> None:
    meetings = Meetings(population=EXACT_POPULATION + 1, colluders=1)
    for cohort in ([1, 2], [1, 3], [1, 4]):
        meetings.add(np.array(cohort))
    assert not meetings.exact
    assert meetings.most == 3  # client 1's own rounds; it met nobody twice


def test_foreign_ids_are_refused() -> None:
    accountant = ViewAccountant(_plan())
    event = _plan().event()
    with pytest.raises(MechanismError, match=r"outside 0\.\.119"):
        accountant.charge(event, [120], [])
    with pytest.raises(MechanismError, match="subset"):
        accountant.charge(event, [1, 2], [3])


@pytest.mark.parametrize("mechanism", ["central-gaussian", "none"])
def test_views_without_protection_are_infinite(mechanism: str) -> None:
    plan = _plan(mechanism=mechanism)
    accountant = ViewAccountant(plan)
    accountant.charge(plan.event(), range(10), range(10))
    spent = accountant.spent()
    assert spent.server == math.inf
    assert math.isinf(spent.outsider) == (mechanism == "none")
    assert spent.to_json()["server"] == "inf"


def test_a_clipping_norm_that_adapts_costs_the_same() -> None:
    plan = _plan(adaptive_clip=True)
    assert not _plan().covers(plan.event(clip=0.6))
    steady, moving = ViewAccountant(plan), ViewAccountant(plan)
    for number in range(10):
        steady.charge(plan.event(), range(9), range(9))
        moved = plan.event(clip=0.5 * 1.1**number)
        assert plan.covers(moved)
        moving.charge(moved, range(9), range(9))
    assert moving.spent().outsider == steady.spent().outsider
    assert moving.spent().server == pytest.approx(steady.spent().server, rel=1e-9)


# -- statements -----------------------------------------------------------------------------------


def _delta_by_attack(mean: float, other: float, epsilon: float) -> float:
    """delta(eps) of N(mean, 1) against N(other, 1): the exact one, for two sums that differ so."""
    gap = abs(mean - other)
    return float(ndtr(gap / 2 - epsilon / gap) - math.exp(epsilon) * ndtr(-gap / 2 - epsilon / gap))


def test_min_separation_compares_with_a_substitute() -> None:
    """Without a client the schedule brings somebody else in. At z = .7 and four turns an opposite
    substitute moves what is seen by eight sensitivities' worth; 15.66 would be false."""
    plan = _plan(
        mechanism="banded-mf",
        noise_multiplier=0.7,
        sampling="min-separation",
        min_separation=6,
        max_participations=4,
        cap=None,
        min_survivors=None,
        population=200,
    )
    accountant = ViewAccountant(plan)
    for _ in range(24):
        accountant.charge(plan.event(), range(24), range(24))
    outsider = accountant.spent().outsider
    moved = 2 * math.sqrt(4) / 0.7
    assert _delta_by_attack(0.0, moved, 15.66) > 0.4
    assert _delta_by_attack(0.0, moved, outsider) <= plan.delta * (1 + 1e-9)
    assert outsider == pytest.approx(_balle_wang(4 * 4 / 0.49, plan.delta_released), rel=1e-6)
    participant = accountant.spent().participant
    assert participant is not None
    assert participant >= outsider


@pytest.mark.parametrize("participation", [1.0, 0.999999, 0.9, 0.5])
def test_a_fixed_cohort_compares_with_a_substitute_for_every_participation(
    participation: float,
) -> None:
    """z = 4, 100 of 101, 20 rounds: 5.38 was claimed as soon as p < 1, where at least 11.37 is
    true near p = 1. The attack: everybody else zero, the client's update against its opposite."""
    plan = _plan(
        noise_multiplier=4.0,
        population=101,
        expected_cohort=100,
        rounds=20,
        sampling="fixed",
        participation=participation,
        cap=None,
        min_survivors=None,
    )
    accountant = ViewAccountant(plan)
    for _ in range(20):
        accountant.charge(plan.event(), range(100), range(100))
    outsider = accountant.spent().outsider
    assert outsider >= _opposite(4.0, participation * 100 / 101, 20, plan.delta)
    if participation > 0.99:
        assert 11.3 < outsider < 12.31
        assert _opposite(4.0, participation * 100 / 101, 20, plan.delta) > 11.0


def _opposite(z: float, rate: float, rounds: int, delta: float) -> float:
    """epsilon that tells (1-q) N(0) + q N(1) from (1-q) N(0) + q N(-1), noise z, after rounds."""
    x = np.linspace(-12 * z - 1, 12 * z + 1, 200_001)
    edges = (x[1:] + x[:-1]) / 2

    def cells(mean: float) -> NDArray[np.float64]:
        return np.diff(ndtr((edges - mean) / z), prepend=0.0, append=1.0)

    one = (1 - rate) * cells(0.0) + rate * cells(1.0)
    other = (1 - rate) * cells(0.0) + rate * cells(-1.0)
    kept = (one > 1e-300) & (other > 1e-300)
    loss = np.log(one[kept] / other[kept])
    places = np.floor(loss / _STEP).astype(int)  # rounded down: from below
    reach = int(np.abs(places).max())
    law = np.bincount(places + reach, weights=one[kept])
    size = 1 << (2 * reach * rounds + 2).bit_length()
    wrapped = np.zeros(size)
    wrapped[(np.arange(len(law)) - reach) % size] = law
    total = np.fft.irfft(np.fft.rfft(wrapped) ** rounds, size)
    losses = np.fft.fftfreq(size, 1 / size) * _STEP
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        over = losses > middle
        found = float((total[over] * -np.expm1(middle - losses[over])).sum())
        low, high = (middle, high) if found > delta * 1.0001 + 1e-12 else (low, middle)
    return low


@pytest.mark.parametrize("delta", [1e-12, 1e-13, 1e-15, 1e-20, 1e-25, 1e-60])
@pytest.mark.parametrize("mechanism", ["distributed-gaussian", "central-gaussian"])
def test_small_deltas_have_a_finite_epsilon(mechanism: str, delta: float) -> None:
    cohorts: dict[str, Any] = {
        "population": 2000,
        "expected_cohort": 200,
        "cap": None,
        "min_survivors": None,
        "mechanism": mechanism,
    }
    plan = _plan(**cohorts, delta=delta)
    found, larger = ViewAccountant(plan), ViewAccountant(_plan(**cohorts, delta=1e-6))
    for _ in range(25):
        found.charge(plan.event(), range(9), range(9))
        larger.charge(plan.event(), range(9), range(9))
    assert larger.spent().outsider < found.spent().outsider < 400
    # above the exact cost of one round's worth of Gaussian noise that nothing amplifies, from below
    assert found.spent().outsider <= _balle_wang(25 / 1.3**2, plan.delta_released) * (1 + 1e-9)


@pytest.mark.parametrize("delta", [1e-14, 1e-15, 1e-25])
def test_calibration_at_small_deltas_is_sane(delta: float) -> None:
    plan = _plan(
        noise_multiplier=None,
        epsilon=8.0,
        delta=delta,
        population=2000,
        expected_cohort=200,
        cap=None,
        min_survivors=None,
    )
    assert 0.5 < plan.noise_multiplier < 10


class _MadeUpEvent(SumEvent):
    """A mechanism that nobody knows."""

    mechanism = "made-up"
    share_multiplier = 1.0
    total_multiplier = 1.0

    def server_step(self, survivors: int | None = None) -> Any:
        return self.outsider_step()

    def terms(self, view: View) -> None:
        return None


def test_an_unknown_mechanism_is_neither_accounted_nor_drawn() -> None:
    from fedsys.privacy import event_from_json, mechanism_for

    event = _MadeUpEvent(
        encoding=Encoding(kind="wide", dimension=5, clip=1.0, modulus_bits=32),
        noise_multiplier=1.0,
        cohort=Cohort(expected=5, cap=10, min_survivors=1),
        sampling=Sampling(kind="poisson", rate=0.1),
    )
    accountant = ViewAccountant(_plan())
    with pytest.raises(MechanismError, match="no accountant interprets the event _MadeUpEvent"):
        accountant.charge(event, range(5), range(5))
    assert accountant.spent().outsider == 0
    with pytest.raises(MechanismError, match="no accountant interprets"):
        accountant.after_next(event)
    with pytest.raises(MechanismError, match="no accountant interprets"):
        mechanism_for(event)
    with pytest.raises(MechanismError, match="unknown mechanism 'made-up'"):
        event_from_json(event.to_json())
    assert not _plan().covers(event)
