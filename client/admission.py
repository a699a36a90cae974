"""What a job, and then each of its rounds, must satisfy before this device takes part."""

from __future__ import annotations

from client.journal import JobRecord, Journal
from client.policy import Policy
from client.work import Worker
from fedsys.errors import Cause, PolicyRefusal
from fedsys.privacy import event_from_json, guaranteed_epsilon
from fedsys.wire import Assignment, fleet_pb2
from fedsys.wire.roster import RosterChain, RosterStatement
from fedsys.wire.terms import Terms
from secure_agg import SecAggParams

__all__ = ["check_assignment", "check_job", "check_round"]


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


def check_round(
    assignment: Assignment,
    params: SecAggParams,
    terms: Terms,
    *,
    policy: Policy,
    journal: Journal,
) -> None:
    """Check a round that this device has not begun, or whose state it has lost.

    Raises:
        PolicyRefusal: naming the limit, its value and what was asked.
    """
    plan, number = terms.plan, assignment.round
    record = journal.jobs[terms.job.hex()]
    before = [joined for joined in record.joined if joined != number]
    if number < record.highest:
        raise PolicyRefusal(
            f"round {number} comes after round {record.highest}", cause=Cause.PARTICIPATION
        )
    if number in record.uploaded:
        raise PolicyRefusal(
            f"a vector has left this device in round {number} already", cause=Cause.PARTICIPATION
        )
    policy.check_cohort(params)
    if not plan.covers(event_from_json(assignment.mechanism)):
        raise PolicyRefusal("the round's mechanism is not the one agreed to", cause=Cause.TERMS)
    if number > plan.rounds:
        raise PolicyRefusal(f"round {number} of a job of {plan.rounds} rounds", cause=Cause.TERMS)
    if params.n > plan.cap or params.min_alive < min(plan.min_survivors, params.n):
        raise PolicyRefusal(
            f"a cohort of {params.n} with at least {params.min_alive} inputs, where at most "
            f"{plan.cap} and at least {plan.min_survivors} were agreed to",
            cause=Cause.COHORT,
        )
    most, apart = plan.max_participations, plan.min_separation
    if most is not None and len(before) >= most:
        raise PolicyRefusal(
            f"{most} participations were agreed to, and took place", cause=Cause.PARTICIPATION
        )
    if plan.sampling != "min-separation":
        apart = None
    if apart is not None and before and number - max(before) < apart:
        raise PolicyRefusal(
            f"asked again after less than {apart} rounds", cause=Cause.PARTICIPATION
        )
    wanted = policy.epsilon_view
    others = journal.spent(wanted, without=record)
    policy.check_epsilon(others=others, after=record.after(number, wanted))
