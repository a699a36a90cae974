"""A device's side of a session: what it answers to each message; sans-IO.

The order is the point. Terms are agreed to before a job may ask anything; a round is counted as
spent, durably, before its first answer leaves; a masked vector is noted before it leaves.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

import fedsys
from client.agent import Agent
from client.conditions import conditions, obstacle
from client.identity import Credentials
from client.journal import JobRecord, Journal
from client.policy import Policy
from client.privatize import privatize
from client.privatize.contribution import contribution
from fedsys.errors import FedsysError, PolicyRefusal, ProtocolError, TrainingError
from fedsys.logs import readable
from fedsys.privacy import Entropy, Mechanism, event_from_json, guaranteed_epsilon
from fedsys.wire import Assignment, countersign, fleet_pb2
from fedsys.wire.roster import SignedStatement, changes
from fedsys.wire.services import PROTOCOL, PROTOCOL_MIN
from fedsys.wire.terms import Terms, decode_params
from secure_agg import FileStore, SecAggParams, SecureAggError, Store
from secure_agg.messages import Kind, kind_of

__all__ = ["Dismissed", "Session", "Worker"]

_log = logging.getLogger(__name__)


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


class Dismissed(FedsysError):
    """The coordinator ended the session; the message is its reason.

    Attributes:
        final: coming back makes no sense before something is changed.
    """

    def __init__(self, text: str, *, final: bool) -> None:
        super().__init__(text)
        self.final = final


@dataclass
class _Round:
    """The round that this device is in."""

    terms: Terms
    client: int
    assignment: Assignment
    mechanism: Mechanism
    agent: Agent


class Session:
    """One device over all its sessions.

    Args:
        credentials: who it is.
        worker: its data.
        policy: read again whenever it counts.
        noise: entropy of the noise of a round; ``os.urandom`` outside tests.
        keys: entropy of secure aggregation's keys.
        store: keeps secure aggregation's state; by default a file in the device's folder.
    """

    def __init__(
        self,
        *,
        credentials: Credentials,
        worker: Worker,
        policy: Callable[[], Policy],
        noise: Callable[[int], Entropy] = lambda _round: os.urandom,
        keys: Entropy = os.urandom,
        store: Store | None = None,
    ) -> None:
        self.credentials = credentials
        self.journal = Journal(credentials.folder / "journal.json")
        self.chain = credentials.roster_chain()
        self._worker = worker
        self._policy = policy
        self._noise = noise
        self._keys = keys
        self._store = store or FileStore(credentials.folder / "round.state")
        self._terms: dict[bytes, tuple[Terms, int]] = {}
        self._model: fleet_pb2.Model | None = None
        self._round: _Round | None = None

    @property
    def paused(self) -> Path:
        """A file whose presence pauses this device."""
        return self.credentials.folder / "paused"

    @property
    def activity(self) -> str:
        """What this device does, for people."""
        if self._round is None:
            return "waiting"
        return f"round {self._round.assignment.round} of {self._round.terms.name}"

    def hello(self) -> fleet_pb2.Up:
        """The greeting that opens a session."""
        return fleet_pb2.Up(
            hello=fleet_pb2.Hello(
                protocol_min=PROTOCOL_MIN,
                protocol_max=PROTOCOL,
                node=self.credentials.node,
                version=fedsys.__version__,
                roster_version=self.chain.version,
            )
        )

    def handle(self, message: fleet_pb2.Down) -> fleet_pb2.Up | None:
        """Answer one message, or say nothing.

        Raises:
            Dismissed: the coordinator ended the session.
            ProtocolError: a message that no coordinator of this protocol sends.
        """
        kind = message.WhichOneof("content")
        if kind == "welcome":
            return self._news(list(message.welcome.roster))
        if kind == "roster":
            return self._news(list(message.roster.roster))
        if kind == "offer":
            return self._offer(message.offer)
        if kind == "model":
            self._model = message.model
            return None
        if kind == "invitation":
            return self._invitation(message.invitation)
        if kind == "stage":
            return self._stage(message.stage)
        if kind == "outcome":
            return self._outcome(message.outcome)
        if kind == "goodbye":
            final = message.goodbye.reason in (
                fleet_pb2.Goodbye.OUTDATED,
                fleet_pb2.Goodbye.REVOKED,
                fleet_pb2.Goodbye.REPLACED,
            )
            raise Dismissed(readable(message.goodbye.text), final=final)
        raise ProtocolError("a message of a kind that this version does not know")

    # -- the roster -------------------------------------------------------------------------------

    def _news(self, news: list[fleet_pb2.SignedRoster]) -> fleet_pb2.Up | None:
        signed = [SignedStatement(statement=s.statement, signature=s.signature) for s in news]
        accepted, before = [], self.chain.newest
        try:
            for each in signed:
                accepted += self.chain.extend([each])
        except ProtocolError as error:
            _log.error("a roster is refused: %s", error)
            return _refusal(b"", 0, f"a roster is refused: {error}")
        finally:
            if accepted:
                self.credentials.append_roster(signed, accepted)
        for statement in accepted:
            _log.info("roster: %s", changes(before, statement))
            before = statement
        return None

    # -- a job ------------------------------------------------------------------------------------

    def _offer(self, offer: fleet_pb2.Offer) -> fleet_pb2.Up:
        terms = Terms.decode(offer.terms)
        try:
            client = self._agree(terms, self._policy())
        except FedsysError as error:
            _log.warning("job %s is refused: %s", readable(terms.name), error)
            return _refusal(terms.job, 0, str(error))
        self._terms[terms.job] = (terms, client)
        _log.info("agreed to job %s", readable(terms.name))
        return fleet_pb2.Up(consent=fleet_pb2.Consent(job=terms.job, terms=terms.digest))

    def _agree(self, terms: Terms, policy: Policy) -> int:
        """Check a job against roster, policy and data; this device's client number in it."""
        roster = self.chain.find(terms.roster_version)
        if roster is None or roster.hash.hex() != terms.roster_hash:
            raise PolicyRefusal(
                f"the job uses roster version {terms.roster_version}, which was not announced to "
                f"this device (it holds up to version {self.chain.version})"
            )
        newest = policy.max_roster_version
        if newest is not None and roster.version > newest:
            raise PolicyRefusal(
                f"the job uses roster version {roster.version}, the owner's max_roster_version "
                f"is {newest}"
            )
        if self.credentials.node not in roster.members:
            raise PolicyRefusal("this device is not on the job's roster")
        plan = terms.plan
        if plan.population != len(roster.members):
            raise PolicyRefusal(
                f"the job counts {plan.population} clients, its roster has {len(roster.members)}"
            )
        policy.check_task(terms.task, terms.options, self._worker.sha256)
        if terms.task_sha256 != self._worker.sha256:
            raise PolicyRefusal(
                f"the coordinator's code of task '{terms.task}' ({terms.task_sha256[:16]}...) is "
                f"not the one installed here ({self._worker.sha256[:16]}...)"
            )
        if plan.expected_cohort < policy.min_cohort:
            raise PolicyRefusal(
                f"cohorts of {plan.expected_cohort:g} are below the owner's min_cohort "
                f"{policy.min_cohort}"
            )
        policy.check_mechanism(plan.event().to_json())
        self._worker.check(terms)
        known = self.journal.jobs.get(terms.job.hex())
        wanted = policy.epsilon_view
        promised = float("inf")
        if plan.protected:
            fresh = JobRecord(job="", name="", terms="", plan=plan)
            promised = fresh.after(1, wanted)
            if fresh.view(wanted) == plan.guarantee:
                promised = max(promised, guaranteed_epsilon(plan))
                if plan.budget is not None:
                    promised = min(promised, plan.budget)
        policy.check_epsilon(others=self.journal.spent(wanted, without=known), after=promised)
        self.journal.agree(terms)
        return roster.nodes.index(self.credentials.node)

    # -- a round ----------------------------------------------------------------------------------

    def _invitation(self, message: fleet_pb2.Invitation) -> fleet_pb2.Up:
        try:
            if self.paused.exists():
                return _refusal(message.job, message.round, "paused by its owner", passing=True)
            policy = self._policy()
            why = obstacle(policy, conditions(policy))
            if why is not None:
                return _refusal(message.job, message.round, why, passing=True)
            self._join(message, policy)
        except (FedsysError, SecureAggError) as error:
            _log.warning("round %d is refused: %s", message.round, error)
            return _refusal(message.job, message.round, str(error))
        return self._stage(message.stage)

    def _join(self, message: fleet_pb2.Invitation, policy: Policy) -> None:
        agreed, model = self._terms.get(message.job), self._model
        if agreed is None:
            raise PolicyRefusal("this device has not agreed to that job")
        if model is None or model.job != message.job or model.round != message.round:
            raise ProtocolError("an invitation without its model")
        terms, client = agreed
        assignment = Assignment.decode(message.assignment, model.weights)
        self._model = None
        _fits(assignment, message, terms)
        params = decode_params(message.params)
        current = self._round
        if current is not None and current.assignment.digest == assignment.digest:
            return  # the connection was lost, the process was not
        roster = self.chain.find(terms.roster_version)
        if roster is None:
            raise PolicyRefusal("this device does not hold the job's roster")
        agent = Agent(
            id=client,
            identity=self.credentials.identity,
            roster=roster.roster,
            policy=policy,
            floor=policy.floor,
            entropy=self._keys,
            store=self._store,
            counted=self.journal,
        )
        record = self.journal.jobs[terms.job.hex()]
        mechanism = agent.resume(assignment) if assignment.round in record.joined else None
        if mechanism is None:
            self._check_round(assignment, params, terms, record, policy)
            mechanism = agent.accept(assignment, params)  # counted as spent, durably, from here
        self._round = _Round(
            terms=terms, client=client, assignment=assignment, mechanism=mechanism, agent=agent
        )

    def _check_round(
        self,
        assignment: Assignment,
        params: SecAggParams,
        terms: Terms,
        record: JobRecord,
        policy: Policy,
    ) -> None:
        plan, number = terms.plan, assignment.round
        before = [joined for joined in record.joined if joined != number]
        if number < record.highest:
            raise PolicyRefusal(f"round {number} comes after round {record.highest}")
        if number in record.uploaded:
            raise PolicyRefusal(f"a vector has left this device in round {number} already")
        policy.check_cohort(params)
        if not plan.covers(event_from_json(assignment.mechanism)):
            raise PolicyRefusal("the round's mechanism is not the one agreed to")
        if number > plan.rounds:
            raise PolicyRefusal(f"round {number} of a job of {plan.rounds} rounds")
        if params.n > plan.cap or params.min_alive < min(plan.min_survivors, params.n):
            raise PolicyRefusal(
                f"a cohort of {params.n} with at least {params.min_alive} inputs, where at most "
                f"{plan.cap} and at least {plan.min_survivors} were agreed to"
            )
        most, apart = plan.max_participations, plan.min_separation
        if most is not None and len(before) >= most:
            raise PolicyRefusal(f"{most} participations were agreed to, and took place")
        if plan.sampling != "min-separation":
            apart = None
        if apart is not None and before and number - max(before) < apart:
            raise PolicyRefusal(f"asked again after less than {apart} rounds")
        wanted = policy.epsilon_view
        others = self.journal.spent(wanted, without=record)
        policy.check_epsilon(others=others, after=record.after(number, wanted))

    def _stage(self, stage: fleet_pb2.Stage) -> fleet_pb2.Up:
        current = self._round
        if (
            current is None
            or current.assignment.job != stage.job
            or current.assignment.round != stage.round
        ):
            return _refusal(stage.job, stage.round, "this device is not in that round")
        try:
            if kind_of(stage.message) is Kind.DELIVERY:
                if not current.agent.masked:
                    self._provide(current)
                self.journal.upload(stage.job, stage.round)
            reply = current.agent.handle(stage.message)
        except TrainingError as error:
            # what training said may quote the data
            _log.error("round %d: %s", stage.round, error)
            return _refusal(stage.job, stage.round, "local training failed; see the device's log")
        except (FedsysError, SecureAggError) as error:
            _log.warning("round %d: %s", stage.round, error)
            return _refusal(stage.job, stage.round, str(error))
        return fleet_pb2.Up(
            answer=fleet_pb2.Answer(
                job=stage.job, round=stage.round, step=stage.step, message=reply
            )
        )

    def _provide(self, current: _Round) -> None:
        assignment = current.assignment
        entropy = self._noise(assignment.round)
        try:
            update = self._worker.train(current.terms, assignment, current.client, entropy)
        except (
            ArithmeticError,
            LookupError,
            MemoryError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as e:
            raise TrainingError(f"training failed: {type(e).__name__}: {e}") from e
        contributed = contribution(
            update,
            participation=current.mechanism.event.sampling.participation,
            clipping=assignment.clipping,
            entropy=entropy,
        )
        privatized = privatize(
            current.mechanism, contributed, seed=assignment.digest, entropy=entropy
        )
        if not privatized.finite.all():
            _log.error(
                "round %d: the update is not finite; zeros and noise were sent", assignment.round
            )
        current.agent.provide(privatized.vectors[0])

    def _outcome(self, outcome: fleet_pb2.Outcome) -> fleet_pb2.Up | None:
        record = self.journal.jobs.get(outcome.job.hex())
        current = self._round
        over = (outcome.job, outcome.round)
        if current is not None and (current.assignment.job, current.assignment.round) == over:
            self._round = None
        if record is None or not outcome.committed or outcome.round not in record.uploaded:
            return None
        count = len([number for number in record.uploaded if number <= outcome.round])
        signature = self.credentials.identity.sign(
            countersign.message(
                job=outcome.job,
                round=outcome.round,
                ledger_head=outcome.ledger_head,
                participations=count,
            )
        )
        return fleet_pb2.Up(
            countersignature=fleet_pb2.Countersignature(
                job=outcome.job,
                round=outcome.round,
                ledger_head=outcome.ledger_head,
                participations=count,
                signature=signature,
            )
        )


def _fits(assignment: Assignment, message: fleet_pb2.Invitation, terms: Terms) -> None:
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
        raise PolicyRefusal("the round's assignment is not of the terms that were agreed to")
    if len(assignment.weights) != terms.dimension:
        raise PolicyRefusal(
            f"a model of {len(assignment.weights)} weights, {terms.dimension} were agreed to"
        )
    if (assignment.clipping is not None) != terms.plan.adaptive_clip:
        raise PolicyRefusal("adaptive clipping is not as it was agreed to")


def _refusal(job: bytes, round: int, reason: str, *, passing: bool = False) -> fleet_pb2.Up:
    return fleet_pb2.Up(
        refusal=fleet_pb2.Refusal(job=job, round=round, reason=reason[:500], passing=passing)
    )
