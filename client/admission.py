"""The checks that a job, and then each of its rounds, must pass before this device takes part."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.journal import JobRecord, Journal
from client.policy import Policy
from fedsys.errors import BudgetExceeded, Cause, ConfigError, PolicyRefusal, ProtocolError
from fedsys.privacy import Entropy, Mechanism, PrivacyPlan, event_from_json, guaranteed_epsilon
from fedsys.privacy.accounting.adding import Standing, promised_part
from fedsys.privacy.numerics import binomial
from fedsys.privacy.plan import turn_groups
from fedsys.queries import ASKED_MECHANISMS, ASKED_SAMPLINGS, Sheet, parse
from fedsys.wire import Assignment, fleet_pb2
from fedsys.wire.roster import RosterStatement
from fedsys.wire.roster_chain import RosterChain
from fedsys.wire.round_params import round_params
from fedsys.wire.terms import Terms
from secure_agg import Roster, SecAggParams
from secure_agg.errors import ParameterError
from secure_agg.sealing import require_suite

__all__ = [
    "Worker",
    "announced_size",
    "check_assignment",
    "check_budget",
    "check_concluded",
    "check_job",
    "check_model",
    "check_params",
    "check_participation",
    "check_round",
]

_RARE = 1e-9
"""Probability that a check of participation refuses a coordinator that samples as it promised."""
_MOST_ROUNDS = 100_000
"""The most rounds of a protected job: a device accounts for them one by one, joined or not."""


class Worker(Protocol):
    """The owner's data and code."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the installed task's code, or of the graph that stands for it."""
        ...

    def check(self, terms: Terms) -> None:
        """Raise PolicyRefusal if these terms cannot be trained here."""
        ...

    def train(
        self, terms: Terms, assignment: Assignment, client: int, entropy: Entropy
    ) -> NDArray[np.float32]:
        """(1, length) this client's update, with what the terms have it send besides."""
        ...


def check_job(
    terms: Terms,
    *,
    node: int,
    chain: RosterChain,
    policy: Policy,
    worker: Worker,
    journal: Journal,
    buffered: bool = False,
) -> int:
    """Check a job against the roster, the policy, the data and what was spent already.

    Args:
        terms: the terms offered.
        node: this device's node number.
        chain: the rosters that were announced to this device.
        policy: the owner's policy.
        worker: the owner's data.
        journal: this device's own count.
        buffered: whether this device can train in the background, as buffered rounds require.

    Returns:
        This device's client number in the job.

    Raises:
        PolicyRefusal: a check failed; the message names the limit, its value and what was asked.
    """
    roster = _roster_of(terms, node, chain)
    if terms.job.hex() not in journal.jobs:  # one that was agreed to goes on under its own roster
        _require_current(roster, chain)
    plan, buffering = terms.plan, terms.buffering
    if buffering is not None and not buffered:
        raise PolicyRefusal(
            "the job's rounds are buffered, but this device's host supports only synchronous ones",
            cause=Cause.TERMS,
        )
    if buffering is not None and not plan.cap <= buffering.concurrency <= plan.population:
        raise PolicyRefusal(
            f"{buffering.concurrency} devices train at a time, where a buffer takes {plan.cap} and "
            f"the job has {plan.population}",
            cause=Cause.TERMS,
        )
    if plan.population != len(roster.members):
        raise PolicyRefusal(
            f"the job counts {plan.population} clients, but its roster has {len(roster.members)}",
            cause=Cause.ROSTER,
        )
    try:
        require_suite(terms.secagg_suite)
    except ParameterError as error:
        raise PolicyRefusal(str(error), cause=Cause.SECURE_AGGREGATION) from None
    policy.check_terms(terms, roster, worker.sha256)
    if worker.sha256 not in (terms.task_sha256, terms.graph_sha256):
        graph = f", graph {terms.graph_sha256}" if terms.graph_sha256 else ""
        raise PolicyRefusal(
            f"the job's task '{terms.task}' (code {terms.task_sha256}{graph}) is not the one that "
            f"this device has ({worker.sha256})",
            cause=Cause.TASK,
        )
    if plan.protected and plan.rounds > _MOST_ROUNDS:
        raise PolicyRefusal(
            f"a job of {plan.rounds} rounds: a device accounts for {_MOST_ROUNDS} at most",
            cause=Cause.TERMS,
        )
    if plan.noise != "per-client":
        raise PolicyRefusal(
            f"a plan whose noise is drawn '{plan.noise}', as simulations do, where devices add "
            f"their shares of it",
            cause=Cause.MECHANISM,
        )
    _check_noised(terms)
    _check_questions(terms)
    worker.check(terms)
    known = journal.jobs.get(terms.job.hex())
    others = journal.spent(policy.epsilon_view, without=known)
    adds = journal.adds(policy.epsilon_view, _promised(terms, policy), without=known)
    policy.check_epsilon(others=others, after=adds)
    return roster.nodes.index(node)


def _check_questions(terms: Terms) -> None:
    """Check what a round that asks would read, and that its vector is what the terms say."""
    between = bool(terms.evaluate_every)
    if terms.kind == "train" and not between:
        return
    try:
        asked = parse(terms.questions)
        Sheet.of(asked, dimension=terms.plan.dimension)
    except ConfigError as error:
        raise PolicyRefusal(str(error), cause=Cause.QUESTION) from None
    plan = terms.plan
    fits = plan.dimension == terms.dimension if between else plan.clip == 1
    if (
        not fits
        or plan.mechanism not in ASKED_MECHANISMS
        or plan.sampling not in ASKED_SAMPLINGS
        or plan.unit != "client"
        or plan.participation != 1
        or plan.encoding != "wide"
        or plan.adaptive_clip
        or terms.weight_cap
    ):
        raise PolicyRefusal(
            f"questions under mechanism '{plan.mechanism}', clip {plan.clip:g}, encoding "
            f"'{plan.encoding}', sampling '{plan.sampling}' and participation "
            f"{plan.participation:g}, or in vectors that hold more than answers, where no operator "
            f"can ask",
            cause=Cause.TERMS,
        )


def _check_noised(terms: Terms) -> None:
    """Check that nothing is sent besides an update that the mechanism's noise does not cover."""
    mechanism = terms.plan.mechanism
    bits = terms.plan.adaptive_clip and mechanism not in ASKED_MECHANISMS
    if bits or (terms.weight_cap and mechanism == "example-gaussian"):
        raise PolicyRefusal(
            f"{'clipping bits' if bits else 'numbers of examples'} under mechanism '{mechanism}', "
            f"whose noise covers updates alone",
            cause=Cause.TERMS,
        )


def _roster_of(terms: Terms, node: int, chain: RosterChain) -> RosterStatement:
    roster = chain.find(terms.roster_version)
    if roster is None or roster.hash.hex() != terms.roster_hash:
        raise PolicyRefusal(
            f"the job uses roster version {terms.roster_version}, which was not announced to "
            f"this device (it holds up to version {chain.version})",
            cause=Cause.ROSTER,
        )
    try:
        part = roster.only(terms.members)
    except ProtocolError as error:
        raise PolicyRefusal(str(error), cause=Cause.ROSTER) from None
    if node not in part.members:
        raise PolicyRefusal("this device is not on the job's roster", cause=Cause.ROSTER)
    return part


def _require_current(roster: RosterStatement, chain: RosterChain) -> None:
    """Refuse a list that later ones replaced for a reason: a member was removed, or more collude.

    A list to which members were only added may be that of a job which began before.
    """
    for later in chain.after(roster.version):
        removed = sorted(roster.members.keys() & later.removed.keys())
        more = min(later.colluders, len(roster.members)) > roster.colluders
        if removed or more:
            why = (
                f"removed node {', '.join(map(str, removed))}"
                if removed
                else f"expects {later.colluders} colluders instead of {roster.colluders}"
            )
            raise PolicyRefusal(
                f"the job uses roster version {roster.version}, and this device holds version "
                f"{later.version}, which {why}: was the coordinator restored from an older backup?",
                cause=Cause.ROSTER,
            )


def _promised(terms: Terms, policy: Policy) -> Standing:
    """The most that a job states it will spend, in the view that the owner counts."""
    plan, wanted = terms.plan, policy.epsilon_view
    if not plan.protected:
        return Standing(part=None, epsilon=float("inf"))
    fresh = JobRecord(job="", name="", terms="", plan=plan)
    promised = fresh.after(1, wanted)
    if fresh.view(wanted) == plan.guarantee:
        promised = max(promised, guaranteed_epsilon(plan))
        if plan.budget is not None:
            promised = min(promised, plan.budget)
    view = fresh.view(wanted)
    part = promised_part(plan, view)
    return Standing.of(plan, view, part, promised)


def check_assignment(assignment: Assignment, message: fleet_pb2.Invitation, terms: Terms) -> None:
    """Check that an invitation follows the terms that were agreed to.

    Raises:
        PolicyRefusal: it does not.
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
            "the round's assignment differs from the terms that were agreed to", cause=Cause.TERMS
        )
    check_model(assignment, terms)
    if (assignment.clipping is not None) != terms.plan.adaptive_clip:
        raise PolicyRefusal("adaptive clipping is not as agreed to", cause=Cause.TERMS)


def check_model(assignment: Assignment, terms: Terms) -> None:
    """Check that a round's model, and what comes with it, have the sizes that were agreed to.

    Raises:
        PolicyRefusal: they do not.
    """
    if len(assignment.weights) != terms.dimension:
        raise PolicyRefusal(
            f"a model of {len(assignment.weights)} weights, where {terms.dimension} were agreed to",
            cause=Cause.TERMS,
        )
    shared = sum(each.size for each in assignment.shared.values())
    if shared != terms.shared:
        raise PolicyRefusal(
            f"{shared} numbers besides the model, where {terms.shared} were agreed to",
            cause=Cause.TERMS,
        )


def announced_size(announced: bytes) -> int:
    """The size of the cohort in announced parameters; nothing else in them is relied on.

    Raises:
        ParameterError: they do not decode.
    """
    return SecAggParams.decode(announced).n


def check_params(
    announced: bytes, size: int, terms: Terms, mechanism: Mechanism, roster: Roster
) -> SecAggParams:
    """Derive a round's parameters from the terms, and compare them with those announced.

    Args:
        announced: the encoded parameters that the coordinator announced.
        size: members of the cohort, within the bounds agreed to.
        terms: the terms agreed to.
        mechanism: the round's mechanism, covered by the terms.
        roster: the job's roster.

    Raises:
        PolicyRefusal: other parameters were announced, or none exist for such a cohort.
    """
    try:
        params = round_params(
            terms.plan,
            size,
            length=mechanism.length,
            modulus_bits=mechanism.modulus_bits,
            colluders=roster.corrupt or 0,
            suite=terms.secagg_suite,
        )
    except ParameterError as error:
        raise PolicyRefusal(
            f"a cohort of {size} cannot be served: {error}", cause=Cause.COHORT
        ) from None
    if params.encode() != announced:
        raise PolicyRefusal(
            "secure aggregation's parameters differ from those that the agreed plan gives for a "
            f"cohort of {size}",
            cause=Cause.SECURE_AGGREGATION,
        )
    return params


def check_concluded(record: JobRecord, number: int) -> None:
    """Refuse a round whose outcome this device has countersigned: what it stated there is final.

    Args:
        record: this device's own count of the job.
        number: the round, or in buffered rounds the buffer, that asks.

    Raises:
        PolicyRefusal: the round is over.
    """
    if record.signed is not None and number <= record.signed.round:
        raise PolicyRefusal(
            f"round {number} is over: this device has countersigned the outcome of round "
            f"{record.signed.round}",
            cause=Cause.PARTICIPATION,
        )


def check_budget(record: JobRecord, number: int) -> None:
    """Refuse a round beyond the budget that the job promised, on which its admission rests.

    Args:
        record: this device's own count of the job.
        number: the round, or in buffered rounds the buffer, that asks.

    Raises:
        PolicyRefusal: an honest coordinator ends the job before it.
    """
    if record.plan.protected:
        try:
            record.require_budget(number)
        except BudgetExceeded as error:
            raise PolicyRefusal(str(error), cause=Cause.TERMS) from None


def check_participation(plan: PrivacyPlan, round: int, count: int) -> None:
    """Check a device's own count of its rounds against the rate that the plan promises.

    In buffered rounds nothing is drawn: the count is bounded by what was agreed to. Otherwise each
    round draws a device with the same probability, independently of other rounds; under cyclic
    sampling a device can be asked in one round of each cycle only. The check is a binomial tail
    test: it refuses a coordinator that samples as agreed with probability below 10^-9.

    Args:
        plan: the plan agreed to.
        round: number of the round that asks.
        count: rounds taken part in, including this one.

    Raises:
        PolicyRefusal: `count` is not credible.
    """
    if plan.sampling == "arrivals":
        most = plan.max_participations or 0
        if count > most or count > round:
            raise PolicyRefusal(
                f"asked to take part {count} times in {round} buffers: {most} were agreed to",
                cause=Cause.PARTICIPATION,
            )
        return
    if plan.sampling == "min-separation":
        return  # the distance between two participations is checked instead
    groups = turn_groups(plan.mechanism, plan.sampling, plan.min_separation)
    rate, chances = min(1.0, plan.rate * groups), -(-round // groups)
    if count > chances or binomial.above(count - 1, chances, rate) < _RARE:
        raise PolicyRefusal(
            f"asked to take part {count} times in {round} rounds: at the agreed rate of "
            f"{plan.rate:.3g} per round that happens less than once in 10^9",
            cause=Cause.PARTICIPATION,
        )


def check_round(
    assignment: Assignment,
    size: int,
    terms: Terms,
    client: int,
    *,
    policy: Policy,
    journal: Journal,
) -> None:
    """Check a round against the plan, the policy and this device's own count.

    Args:
        assignment: the round's assignment.
        size: members of the round's cohort.
        terms: the terms agreed to.
        client: this device's client number in the job.
        policy: the owner's policy.
        journal: this device's own count.

    Raises:
        PolicyRefusal: a check failed; the message names the limit, its value and what was asked.
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
    check_concluded(record, number)
    check_budget(record, number)
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
    groups = turn_groups(plan.mechanism, plan.sampling, plan.min_separation)
    if (number - 1 - client) % groups:
        raise PolicyRefusal(
            f"client {client} is asked in round {number}, which is not one of its group's: "
            f"{groups} groups take turns",
            cause=Cause.PARTICIPATION,
        )
    apart = plan.min_separation
    if plan.sampling != "min-separation":
        apart = None
    if apart is not None and before and number - max(before) < apart:
        raise PolicyRefusal(
            f"asked again after less than {apart} rounds", cause=Cause.PARTICIPATION
        )
    wanted = policy.epsilon_view
    others = journal.spent(wanted, without=record)
    adds = journal.adds(wanted, record.standing(wanted, after=number), without=record)
    policy.check_epsilon(others=others, after=adds)
