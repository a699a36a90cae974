"""What the rounds cost each view: LEDGER.md, "What a view sees: steps"."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict

from tests.verifier.chain import Ledger
from tests.verifier.delta import Parts
from tests.verifier.epsilon import epsilon, exact
from tests.verifier.plan import Plan, Step, worst
from tests.verifier.private import Cohort

MOST_PAIRED = 4096


def _covered(found: float, parts: Parts, view: str) -> float:
    return found if found <= parts.covered[view] else math.inf


def outsider_steps(plan: Plan, rounds: int) -> Counter[Step]:
    return Counter({plan.outsider: plan.turns(rounds)}) if rounds else Counter()


def outsider(ledger: Ledger, plan: Plan, parts: Parts) -> float:
    steps = outsider_steps(plan, len(ledger.rounds))
    return _covered(epsilon(steps, parts.of("outsider")), parts, "outsider")


def participant(ledger: Ledger, plan: Plan, parts: Parts, cohorts: dict[int, Cohort]) -> float:
    rounds = len(ledger.rounds)
    if not rounds:
        return 0.0
    turns = plan.turns(rounds)
    unknown = sum(each.outcome is None for each in ledger.rounds)
    shared = turns if plan.by_turns else min(meetings(plan, cohorts) + unknown, turns)
    steps = outsider_steps(plan, rounds)
    steps.subtract({plan.outsider: shared})
    steps.update({plan.shared: shared})
    return _covered(epsilon(+steps, parts.of("participant")), parts, "participant")


def meetings(plan: Plan, cohorts: dict[int, Cohort]) -> int:
    """M: rounds of the worst client with its most frequent companions."""
    own: Counter[int] = Counter()
    together: dict[int, Counter[int]] = defaultdict(Counter)
    most = 0
    for cohort in (cohorts[number].sampled for number in sorted(cohorts)):
        own.update(cohort)
        if len(cohort) < 2:
            continue
        if plan.population > MOST_PAIRED:
            most = max(most, *(own[client] for client in cohort))
            continue
        for one, other in itertools.permutations(cohort, 2):
            together[one][other] += 1
        for client in cohort:
            largest = sum(count for _, count in together[client].most_common(plan.curious))
            most = max(most, min(largest, own[client]))
    return most


def server(ledger: Ledger, plan: Plan, parts: Parts, cohorts: dict[int, Cohort]) -> float:
    squares: Counter[int] = Counter()
    lost: dict[int, float] = defaultdict(float)
    steps: list[Step] = []
    unknown, unknown_lost = 0, 0.0
    for each in ledger.rounds:
        step = plan.server()
        cohort = cohorts.get(each.number)
        if cohort is None:
            unknown, unknown_lost = unknown + 1, unknown_lost + _square(step)
            steps.append(plan.server())
            continue
        charged = cohort.survivors
        if each.outcome == "commit":
            step = plan.server(len(cohort.survivors))
        limit = math.inf if plan.limit is None else plan.limit
        charged = tuple(client for client in charged if squares[client] < limit)
        for client in charged:
            squares[client] += 1
            lost[client] += _square(step)
        steps += [plan.server()] if charged else []
    rounds = max(squares.values(), default=0) + unknown
    if not rounds:
        return 0.0
    least = worst(steps)
    mu2 = max(lost.values(), default=0.0) + unknown_lost
    if plan.limit is not None and rounds > plan.limit:
        rounds, mu2 = plan.limit, min(mu2, plan.limit * _square(least))
    if least.rate < 1:
        found = epsilon(Counter({least: rounds}), parts.of("server"))
    else:
        found = exact(mu2, parts.of("server"))
    return _covered(found, parts, "server")


def _square(step: Step) -> float:
    return step.count / step.multiplier**2 if step.multiplier > 0 else math.inf
