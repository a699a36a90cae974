"""Several jobs as one, in every view: no client loses more than the total says."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedsys.privacy import VIEWS, PrivacyPlan, View, ViewAccountant
from fedsys.privacy.accounting.adding import Standing, composed, cost_together, promised_part
from fedsys.privacy.accounting.costs import server_step, steps_epsilon, together_step
from fedsys.privacy.planning import make_plan

PLANS: dict[str, dict[str, Any]] = {
    "poisson": {},
    "coin": {"participation": 0.5},
    "fixed": {"sampling": "fixed"},
    "server": {"guarantee": "server", "max_participations": 4},
}


def plan_of(**values: Any) -> PrivacyPlan:
    return make_plan(
        **{
            "mechanism": "distributed-gaussian",
            "population": 40,
            "expected_cohort": 20,
            "dropout": 0.0,
            "rounds": 6,
            "dimension": 50,
            "clip": 1.0,
            "delta": 1e-5,
            "noise_multiplier": 1.5,
            **values,
        }
    )


def charged(plan: PrivacyPlan, seed: int, rounds: int = 6) -> tuple[ViewAccountant, np.ndarray]:
    """An accountant after some rounds, and who was in each of them: (rounds, N) booleans."""
    rng = np.random.default_rng(seed)
    there = np.zeros((rounds, plan.population), dtype=bool)
    accountant = ViewAccountant(plan)
    for row in there:
        row[rng.choice(plan.population, 20, replace=False)] = True
        cohort = np.flatnonzero(row)
        accountant.charge(plan.event(), cohort, cohort)
    return accountant, there


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("view", VIEWS)
def test_the_steps_of_one_job_cost_what_its_accountant_says(name: str, view: View) -> None:
    accountant, _ = charged(plan_of(**PLANS[name]), 1, rounds=5)
    standing = accountant.standing(view)
    assert standing.part is not None
    assert cost_together([standing.part])[0] == pytest.approx(accountant.spent_in(view), rel=1e-9)
    event = accountant.plan.event()
    after = steps_epsilon(accountant.steps_in(view, event), accountant.plan.delta_of(view))
    assert after == pytest.approx(accountant.after_next(event).of(view), rel=1e-9)
    assert cost_together([promised_part(accountant.plan, view)])[0] >= standing.epsilon * (1 - 1e-9)


def test_no_client_loses_more_to_those_it_met_than_the_total_says() -> None:
    """Every pair over both jobs, by its own meetings; nobody is worst in both."""
    plans = plan_of(), plan_of(noise_multiplier=2.0)
    jobs = [charged(plan, seed) for seed, plan in enumerate(plans)]
    total = composed([accountant.standing("participant") for accountant, _ in jobs])
    delta = plans[0].delta - sum(plan.delta - plan.delta_of("participant") for plan in plans)
    shared = np.stack([there.T.astype(int) @ there.astype(int) for _, there in jobs])
    pairs = {tuple(shared[:, a, b]) for a in range(40) for b in range(a)}
    lost = []
    for counts in pairs:
        steps = {}
        for plan, count in zip(plans, counts, strict=True):
            steps[together_step(plan.event())] = int(count)
            steps[plan.event().outsider_step()] = plan.rounds - int(count)
        lost.append(steps_epsilon(steps, delta))
    assert 0.9 * total < max(lost) <= total * (1 + 1e-6)
    alone = sum(accountant.spent_in("participant") for accountant, _ in jobs)
    assert total < 0.8 * alone


def test_no_client_loses_more_to_the_server_than_the_total_says() -> None:
    plans = plan_of(), plan_of(sampling="fixed", noise_multiplier=2.5)
    jobs = [charged(plan, seed) for seed, plan in enumerate(plans, start=5)]
    total = composed([accountant.standing("server") for accountant, _ in jobs])
    each = [
        there.sum(axis=0) / server_step(plan.event(), 20).multiplier ** 2
        for plan, (_, there) in zip(plans, jobs, strict=True)
    ]
    delta = plans[0].delta - sum(plan.delta - plan.delta_of("server") for plan in plans)
    mechanism = server_step(plans[0].event(), 20)
    worst = type(mechanism)(multiplier=float(np.sum(each, axis=0).max()) ** -0.5)
    assert steps_epsilon({worst: 1}, delta) <= total * (1 + 1e-9)
    alone = sum(accountant.spent_in("server") for accountant, _ in jobs)
    assert total < 0.85 * alone, "the server's neighbours are the same under any sampling"


@pytest.mark.parametrize("view", ["outsider", "participant"])
def test_jobs_with_other_neighbours_are_added(view: View) -> None:
    some, other = (charged(plan_of(**PLANS[name]), 1)[0] for name in ("poisson", "fixed"))
    standings = [some.standing(view), other.standing(view)]
    assert composed(standings) == pytest.approx(some.spent_in(view) + other.spent_in(view))
    assert composed([*standings, some.standing(view)]) < sum(
        (2 * some.spent_in(view), other.spent_in(view))
    )


def test_a_job_of_which_only_epsilon_is_known_is_added() -> None:
    some = charged(plan_of(), 1)[0].standing("server")
    known = Standing(part=None, epsilon=0.25)
    assert composed([some, known]) == pytest.approx(some.epsilon + 0.25)
    central = charged(plan_of(mechanism="central-gaussian"), 1)[0]
    assert composed([some, central.standing("server")]) == math.inf


def test_jobs_that_leave_nothing_of_delta_are_added() -> None:
    """Their epsilons then hold at the sum of their deltas."""
    standing = charged(plan_of(), 1)[0].standing("participant")
    assert standing.part is not None
    spent = Standing(
        part=replace(standing.part, overhead=0.6 * standing.part.delta),
        epsilon=standing.epsilon,
        alike=standing.alike,
    )
    assert cost_together([spent.part, spent.part] if spent.part else [])[0] == math.inf
    assert composed([spent, spent]) == pytest.approx(2 * standing.epsilon)
