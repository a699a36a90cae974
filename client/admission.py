"""What a job, and then each of its rounds, must satisfy before this device takes part."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc

from client.journal import JobRecord, Journal
from client.policy import Policy
from fedsys.errors import Cause, PolicyRefusal
from fedsys.privacy import Entropy, Mechanism, PrivacyPlan, event_from_json, guaranteed_epsilon
from fedsys.wire import Assignment, fleet_pb2
from fedsys.wire.roster import RosterChain, RosterStatement
from fedsys.wire.round_params import round_params
from fedsys.wire.terms import Terms
from secure_agg import Roster, SecAggParams
from secure_agg.errors import ParameterError

__all__ = [
    "Worker",
    "announced_size",
    "check_assignment",
    "check_job",
    "check_params",
    "check_participation",
    "check_round",
]

_RARE = 1e-9
"""Chance at which a check of participation refuses a coordinator that samples as it promised."""
_MOST_ROUNDS = 100_000
"""Of a protected job: a device counts the rounds of others one by one."""


class Worker(Protocol):
    """The owner's data and code."""

    @property
    def sha256(self) -> str:
        """Of the installed task's code."""
        ...

    def check(self, terms: Terms) -> None:
        """Raise PolicyRefusal where these terms cannot be trained here."""
        ...

    def train(
        self, terms: Terms, assignment: Assignment, client: int, entropy: Entropy
    ) -> NDArray[np.float32]:
        """(1, d) this client's update."""
        ...


def check_job(
    terms: Terms,
    *,
    node: int,
    chain: RosterChain,
    policy: Policy,
    worker: Worker,
    journal: Journal,
) -> int:
    """Check a job against roster, policy, data and what was spent already.

    Args:
        terms: offered.
        node: this device's.
        chain: the rosters that were announced to it.
        policy: its owner's.
        worker: its data.
        journal: its count.

    Returns:
        This device's client number in the job.

    Raises:
        PolicyRefusal: naming the limit, its value and what was asked.
    """
    roster = _roster_of(terms, node, chain, policy)
    plan = terms.plan
    if plan.population != len(roster.members):
        raise PolicyRefusal(
            f"the job counts {plan.population} clients, its roster has {len(roster.members)}",
            cause=Cause.ROSTER,
        )
    policy.check_task(terms.task, terms.options, worker.sha256)
    if terms.task_sha256 != worker.sha256:
        raise PolicyRefusal(
            f"the coordinator's code of task '{terms.task}' ({terms.task_sha256[:16]}...) is "
            f"not the one installed here ({worker.sha256[:16]}...)",
            cause=Cause.TASK,
        )
    if plan.expected_cohort < policy.min_cohort:
        raise PolicyRefusal(
            f"cohorts of {plan.expected_cohort:g} are below the owner's min_cohort "
            f"{policy.min_cohort}",
            cause=Cause.COHORT,
        )
    if plan.protected and plan.rounds > _MOST_ROUNDS:
        raise PolicyRefusal(
            f"a job of {plan.rounds} rounds: a device accounts for {_MOST_ROUNDS} at most",
            cause=Cause.TERMS,
        )
    policy.check_colluders(plan, roster.colluders)
    policy.check_mechanism(plan.event().to_json())
    worker.check(terms)
    known = journal.jobs.get(terms.job.hex())
    others = journal.spent(policy.epsilon_view, without=known)
    policy.check_epsilon(others=others, after=_promised(terms, policy))
    return roster.nodes.index(node)


def _roster_of(terms: Terms, node: int, chain: RosterChain, policy: Policy) -> RosterStatement:
    roster = chain.find(terms.roster_version)
    if roster is None or roster.hash.hex() != terms.roster_hash:
        raise PolicyRefusal(
            f"the job uses roster version {terms.roster_version}, which was not announced to "
            f"this device (it holds up to version {chain.version})",
            cause=Cause.ROSTER,
        )
    newest = policy.max_roster_version
    if newest is not None and roster.version > newest:
        raise PolicyRefusal(
            f"the job uses roster version {roster.version}, the owner's max_roster_version "
            f"is {newest}",
            cause=Cause.ROSTER,
        )
    if node not in roster.members:
        raise PolicyRefusal("this device is not on the job's roster", cause=Cause.ROSTER)
    return roster


def _promised(terms: Terms, policy: Policy) -> float:
    """The most epsilon that a job says it will spend in the owner's view."""
    plan, wanted = terms.plan, policy.epsilon_view
    if not plan.protected:
        return float("inf")
    fresh = JobRecord(job="", name="", terms="", plan=plan)
    promised = fresh.after(1, wanted)
    if fresh.view(wanted) == plan.guarantee:
        promised = max(promised, guaranteed_epsilon(plan))
        if plan.budget is not None:
            promised = min(promised, plan.budget)
    return promised


def check_assignment(assignment: Assignment, message: fleet_pb2.Invitation, terms: Terms) -> None:
    """Check that an invitation is of the terms that were agreed to.

    Raises:
        PolicyRefusal: it is not.
    """
    same = (
        assignment.job == message.job == terms.job
        and assignment.round == message.round == message.stage.round
        and message.stage.job == message.job
        and assignment.terms == terms.digest
        and assignment.task == terms.task
        and dict(assignment.local) == dict(terms.local)
        and assignment.seed == terms.seed
    )
    if not same:
        raise PolicyRefusal(
            "the round's assignment is not of the terms that were agreed to", cause=Cause.TERMS
        )
    if len(assignment.weights) != terms.dimension:
        raise PolicyRefusal(
            f"a model of {len(assignment.weights)} weights, {terms.dimension} were agreed to",
            cause=Cause.TERMS,
        )
    if (assignment.clipping is not None) != terms.plan.adaptive_clip:
        raise PolicyRefusal("adaptive clipping is not as it was agreed to", cause=Cause.TERMS)


def announced_size(announced: bytes) -> int:
    """Members of the cohort that announced parameters are for; nothing else is taken from them.

    Raises:
        ParameterError: they are none.
    """
    return SecAggParams.decode(announced).n


def check_params(
    announced: bytes, size: int, terms: Terms, mechanism: Mechanism, roster: Roster
) -> SecAggParams:
    """Compute a round's parameters from what was agreed, and compare.

    Args:
        announced: by the coordinator.
        size: members of the cohort, within the bounds agreed to.
        terms: that were agreed to.
        mechanism: of the round, covered by them.
        roster: of the job.

    Raises:
        PolicyRefusal: other parameters were announced, or there are none for such a cohort.
    """
    try:
        params = round_params(
            terms.plan,
            size,
            length=mechanism.length,
            modulus_bits=mechanism.modulus_bits,
            colluders=roster.corrupt or 0,
        )
    except ParameterError as error:
        raise PolicyRefusal(
            f"a cohort of {size} cannot be served: {error}", cause=Cause.COHORT
        ) from None
    if params.encode() != announced:
        raise PolicyRefusal(
            "secure aggregation's parameters are not those that the agreed plan gives for a "
            f"cohort of {size}",
            cause=Cause.SECURE_AGGREGATION,
        )
    return params


def check_participation(plan: PrivacyPlan, round: int, count: int) -> None:
    """Check a device's own count of its rounds against the rate that the plan promises.

    Each round draws a device with the same chance, independently of the others; under cyclic
    sampling it is only ever asked in one round of each cycle. A coordinator that samples as agreed
    exceeds the bound in fewer than one of 10^9 checks.

    Args:
        plan: as agreed.
        round: number of the round that asks.
        count: rounds taken part in, this one included.

    Raises:
        PolicyRefusal: so many are not credible.
    """
    if plan.sampling == "arrivals":
        raise PolicyRefusal("devices take part in rounds whose cohorts are drawn, not in buffers")
    if plan.sampling == "min-separation":
        return  # the distance between two participations is checked instead
    rate, chances = plan.rate, round
    if plan.mechanism == "banded-mf" and plan.sampling == "poisson" and plan.min_separation:
        rate = min(1.0, rate * plan.min_separation)
        chances = -(-round // plan.min_separation)
    if count > chances or float(bdtrc(count - 1, chances, rate)) < _RARE:
        raise PolicyRefusal(
            f"asked for the {count}th time in {round} rounds: at the agreed rate of "
            f"{plan.rate:.3g} a round that happens less than once in 10^9",
            cause=Cause.PARTICIPATION,
        )


def check_round(
    assignment: Assignment,
    size: int,
    terms: Terms,
    *,
    policy: Policy,
    journal: Journal,
) -> None:
    """Check a round against the plan, the policy and this device's own count.

    Args:
        assignment: of the round.
        size: members of its cohort.
        terms: that were agreed to.
        policy: its owner's.
        journal: its count.

    Raises:
        PolicyRefusal: naming the limit, its value and what was asked.
    """
    plan, number = terms.plan, assignment.round
    record = journal.jobs[terms.job.hex()]
    before = [joined for joined in record.joined if joined != number]
    if number > plan.rounds:
        raise PolicyRefusal(f"round {number} of a job of {plan.rounds} rounds", cause=Cause.TERMS)
    if number < record.highest:
        raise PolicyRefusal(
            f"round {number} comes after round {record.highest}", cause=Cause.PARTICIPATION
        )
    policy.check_cohort(size)
    if not max(2, plan.min_survivors) <= size <= plan.cap:
        raise PolicyRefusal(
            f"a cohort of {size}, where at least {plan.min_survivors} and at most {plan.cap} were "
            f"agreed to",
            cause=Cause.COHORT,
        )
    if not plan.covers(event_from_json(assignment.mechanism)):
        raise PolicyRefusal("the round's mechanism is not the one agreed to", cause=Cause.TERMS)
    check_participation(plan, number, len(before) + 1)
    apart = plan.min_separation
    if plan.sampling != "min-separation":
        apart = None
    if apart is not None and before and number - max(before) < apart:
        raise PolicyRefusal(
            f"asked again after less than {apart} rounds", cause=Cause.PARTICIPATION
        )
    wanted = policy.epsilon_view
    others = journal.spent(wanted, without=record)
    policy.check_epsilon(others=others, after=record.after(number, wanted))
