"""The three views against a second, naive implementation that replays everything."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from fedsys.errors import BudgetExceeded, MechanismError
from fedsys.privacy import VIEWS, PrivacyPlan, ViewAccountant, make_plan
from fedsys.privacy.losses.meetings import EXACT_POPULATION, Meetings
from fedsys.privacy.rdp import ORDERS, SERVER_ORDERS

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


# The naive implementation: closed formulas in plain Python, everything recomputed from the start.


def _loss(plan: PrivacyPlan, variance: float, order: int) -> float:
    event = plan.event()
    l2, l1 = 64 * math.sqrt(plan.dimension), 64 * plan.dimension
    assert event.to_json()["l2"] == pytest.approx(l2)
    tail = min(((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    return order * l2**2 / (2 * variance) + tail


def _sampled(plan: PrivacyPlan, order: int) -> float:
    total_variance = (plan.noise_multiplier * 64) ** 2 * plan.dimension
    q = plan.rate
    total = sum(
        math.comb(order, j)
        * (1 - q) ** (order - j)
        * q**j
        * (math.exp((j - 1) * _loss(plan, total_variance, j)) if j > 1 else 1.0)
        for j in range(order + 1)
    )
    return min(math.log(total) / (order - 1), _loss(plan, total_variance, order))


def _convert(curve: dict[int, float], delta: float) -> float:
    best = math.inf
    for order, value in curve.items():
        if delta**2 + math.expm1(-value) > 0:
            return 0.0
        best = min(best, value + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
    return max(best, 0.0)


def _naive(
    plan: PrivacyPlan, history: list[Round], orders: list[int]
) -> tuple[float, float, float]:
    unit = (plan.noise_multiplier * 64) ** 2 * plan.dimension
    share = unit / plan.cap
    curious = max(plan.colluders, 1)
    outsider = {order: len(history) * _sampled(plan, order) for order in orders}

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
    participant = {
        order: (len(history) - shared) * _sampled(plan, order)
        + shared * _loss(plan, unit - curious * share, order)
        for order in orders
    }

    worst = 0.0
    for target in range(plan.population):
        curve = dict.fromkeys(orders, 0.0)
        for cohort, survivors in history:
            if cohort is None or (survivors is None and target in cohort):
                honest = max(plan.min_survivors - plan.colluders, 1)
            elif survivors is not None and target in survivors:
                honest = max(len(survivors) - plan.colluders, 1)
            else:
                continue
            for order in orders:
                curve[order] += _loss(plan, honest * share, order)
        worst = max(worst, _convert(curve, plan.delta_server))
    delta = plan.delta_released
    return _convert(outsider, delta), _convert(participant, delta), worst


@pytest.mark.parametrize("colluders", [0, 1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_views_agree_with_a_naive_replay(colluders: int, seed: int) -> None:
    whole = [int(order) for order in ORDERS if order == int(order) and order <= 28]
    fractional = ~np.isin(ORDERS, whole)
    plan = _plan(colluders=colluders)
    accountant = ViewAccountant(plan)
    history = _history(seed, plan.rounds)
    for cohort, survivors in history:
        accountant.charge(plan.event(), cohort, survivors)
    outsider, participant, server = _naive(plan, history, whole)
    spent = accountant.spent()
    # ours may also use fractional orders: compare at the integers, and require no worse result
    curve = accountant.outsider.curve()
    curve_at = {int(o): float(c) for o, c in zip(ORDERS, curve, strict=True) if o in whole}
    assert _convert(curve_at, plan.delta_released) == pytest.approx(outsider, rel=1e-9)
    assert spent.outsider <= outsider * (1 + 1e-12)
    assert spent.outsider > 0.97 * outsider
    assert spent.participant is not None
    assert spent.participant == pytest.approx(participant, rel=0.03)
    assert spent.participant <= participant * (1 + 1e-12)
    assert spent.server is not None
    server_orders = [int(order) for order in ORDERS[SERVER_ORDERS] if order <= 28]
    assert spent.server == pytest.approx(_naive(plan, history, server_orders)[2], rel=1e-9)
    assert spent.server == pytest.approx(server, rel=0.01)
    assert fractional.any()


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
        assert spent.participant <= promised.participant * (1 + 1e-12)
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


def test_a_calibrated_job_runs_all_its_rounds() -> None:
    plan = _plan(noise_multiplier=None, epsilon=4.0)
    accountant = ViewAccountant(plan)
    for _ in range(plan.rounds):
        accountant.require_budget(plan.event())
        accountant.charge(plan.event(), range(9), range(9))
    assert 3.99 < accountant.spent().outsider <= 4.0 * (1 + 1e-9)
    with pytest.raises(BudgetExceeded):
        accountant.require_budget(plan.event())


def test_server_guarantee_holds_at_the_worst_case() -> None:
    plan = make_plan(
        mechanism="distributed-gaussian",
        population=4000,
        expected_cohort=400,
        rounds=30,
        dimension=1000,
        clip=1.0,
        delta=1e-5,
        epsilon=6.0,
        guarantee="server",
        colluders=20,
        max_participations=4,
    )
    assert plan.min_survivors == (400 + 20) // 2 + 1
    event = plan.event()
    unit = (plan.noise_multiplier * 64) ** 2 * 1000
    assert event.to_json()["share_variance"] == pytest.approx(unit / (plan.min_survivors - 20))
    accountant = ViewAccountant(plan)
    fewest = range(plan.min_survivors)
    for _ in range(4):
        accountant.require_budget(event)
        accountant.charge(event, fewest, fewest)
    server = accountant.spent().server
    assert server is not None
    assert 5.9 < server <= 6.0 * (1 + 1e-9)


def test_charging_a_round_does_not_replay_the_past() -> None:
    """Work is counted, not timed: no curve is computed again for an event that was seen."""
    from fedsys.privacy import costs

    plan = _plan(rounds=2000)
    accountant = ViewAccountant(plan)
    event = plan.event()
    accountant.charge(event, range(12), range(12))
    accountant.after_next(event)
    misses = costs._amplified.cache_info().misses
    for number in range(300):
        accountant.charge(
            event, range(number % 40, number % 40 + 12), range(number % 40, number % 40 + 12)
        )
        accountant.after_next(event)
        accountant.spent()
    assert costs._amplified.cache_info().misses == misses


@pytest.mark.parametrize("colluders", [1, 2, 5])
def test_meetings_against_brute_force(colluders: int) -> None:
    rng = np.random.default_rng(4)
    cohorts = [np.flatnonzero(rng.random(30) < 0.3) for _ in range(20)]
    meetings = Meetings(population=30, colluders=colluders, rounds=20)
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
    meetings = Meetings(population=EXACT_POPULATION + 1, colluders=1, rounds=3)
    for cohort in ([1, 2], [1, 3], [1, 4]):
        meetings.add(np.array(cohort))
    assert not meetings.exact
    assert meetings.most == 3  # client 1's own rounds; it met nobody twice


def test_foreign_ids_and_events_are_refused() -> None:
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
    assert moving.spent().outsider == pytest.approx(steady.spent().outsider, rel=1e-9)
    assert moving.spent().server == pytest.approx(steady.spent().server, rel=1e-9)
