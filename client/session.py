"""A device's side of a session: its answer to each message; sans-IO.

The order matters. Terms are agreed to before a job may ask for anything; a round's opening message
has everything that the device's one vector needs; the round is counted as spent, durably, before
anything is trained, and the vector is noted, durably, before it leaves. An ordinary device is then
done and may disconnect; a member of the round's committee has a few more short duties.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import fedsys
from client.admission import (
    Worker,
    announced_size,
    check_assignment,
    check_job,
    check_params,
    check_round,
)
from client.agent import Agent, mechanism_of
from client.answer_time import AnswerTime
from client.buffered import BufferedRounds, Device, Work
from client.conditions import conditions, obstacle
from client.countersignature import Countersigner
from client.identity import Credentials
from client.journal import Journal
from client.ledger_copy import Sent, event_digest
from client.policy import Policy
from client.refusal import cause_of, refusal
from client.roster_news import list_of, lists_after, take_news
from client.synchronous import SynchronousRound, provide
from client.volatile import VolatileStore
from client.witnessed import check_witnessed
from fedsys.errors import (
    Cause,
    ConfigError,
    FedsysError,
    PolicyRefusal,
    ProtocolError,
)
from fedsys.printable import printable
from fedsys.privacy import Entropy
from fedsys.privacy.ledger.openings import NONCE_BYTES
from fedsys.wire import Assignment, fleet_pb2
from fedsys.wire.limits import down_limits
from fedsys.wire.services import PREKEYS, PROTOCOL, PROTOCOL_MIN
from fedsys.wire.terms import Terms
from secure_agg import FileStore, SealingKeys, SecureAggError, Store
from secure_agg.messages import Kind, kind_of

__all__ = ["Dismissed", "Session"]

_log = logging.getLogger(__name__)


class Dismissed(FedsysError):
    """The coordinator ended the session; the message is its reason.

    Attributes:
        final: whether reconnecting is pointless until something is changed.
    """

    def __init__(self, text: str, *, final: bool) -> None:
        super().__init__(text)
        self.final = final


class Session:
    """One device over all its sessions.

    Attributes:
        instance: 16 bytes that tell this process from another one with the same keys.
        warning: the last that the coordinator had for the device's owner; may be empty.

    Args:
        credentials: the device's identity.
        worker: the owner's data.
        policy: reads the owner's policy; called again before each decision.
        noise: maps a round to the source of its noise; ``os.urandom`` outside tests.
        keys: source of secure aggregation's keys.
        store: keeps secure aggregation's record of what was sent; by default a file in the device's
            folder.
        volatile: keeps what must not outlive this boot; see `client.volatile`.
        answer_time: delays uploads.
        buffered: whether its host runs what `take_work` returns, which buffered rounds need.

    Raises:
        ConfigError: the device's stored state is lost or damaged.
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
        volatile: Store | None = None,
        answer_time: AnswerTime | None = None,
        buffered: bool = False,
    ) -> None:
        self.credentials = credentials
        self.journal = Journal(credentials.folder / "journal.json")
        self.chain = credentials.roster_chain()
        self._worker = worker
        self._policy = policy
        self._noise = noise
        self._keys = keys
        self._store = store or FileStore(credentials.folder / "round.state")
        kept = volatile or VolatileStore.of(credentials.folder)
        try:
            self._sealing = SealingKeys(credentials.identity, entropy=keys, store=kept)
        except SecureAggError as error:
            raise ConfigError(
                f"{kept}: {error}; remove it: this device then sits out its current round"
            ) from None
        self._answer_time = answer_time or AnswerTime()
        self.instance = os.urandom(16)
        self.warning = ""
        self._countersigner = Countersigner(credentials.identity, self.journal, credentials.signer)
        self._terms: dict[bytes, tuple[Terms, int]] = {}
        self._model: fleet_pb2.Model | None = None
        self._round: SynchronousRound | None = None
        self._takes_buffered = buffered
        self._buffered = BufferedRounds(
            Device(
                identity=credentials.identity,
                journal=self.journal,
                worker=worker,
                sealing=self._sealing,
                store=self._store,
                keys=keys,
                noise=noise,
                answer_time=self._answer_time,
                ready=self._ready,
                roster=lambda terms: list_of(self.chain, terms),
                refuse=self._refuse,
            )
        )

    @property
    def paused(self) -> Path:
        """A file whose presence pauses this device."""
        return self.credentials.folder / "paused"

    @property
    def activity(self) -> str:
        """What this device is doing, for people."""
        if self._round is None:
            return self._buffered.activity or "waiting"
        return f"round {self._round.assignment.round} of {self._round.terms.name}"

    @property
    def limits(self) -> Mapping[str, int]:
        """The most bytes of each kind of message that it accepts, by what it has agreed to."""
        agreed = [terms for terms, _ in self._terms.values()]
        caps = [record.plan.cap for record in self.journal.jobs.values()]
        return down_limits(
            dimension=max((terms.dimension + terms.shared for terms in agreed), default=0),
            cap=max((*caps, *(terms.largest_cohort for terms in agreed)), default=0),
        )

    def hello(self) -> fleet_pb2.Up:
        """The greeting that opens a session.

        A device that has lost its sealing keys, or never had any, sends fresh ones to replace all
        those that the coordinator may hold.
        """
        fresh = self._sealing.issue(PREKEYS) if self._sealing.outstanding == 0 else []
        newest = self.chain.newest
        return fleet_pb2.Up(
            hello=fleet_pb2.Hello(
                prekeys=fresh,
                protocol_min=PROTOCOL_MIN,
                protocol_max=PROTOCOL,
                node=self.credentials.node,
                version=fedsys.__version__,
                roster_version=self.chain.version,
                roster_hash=newest.hash if newest is not None else b"",
                instance=self.instance,
                jobs=self.journal.spent_with(self.credentials.signer),
            )
        )

    def handle(self, message: fleet_pb2.Down) -> fleet_pb2.Up | None:
        """The answer to one message, or None.

        Raises:
            Dismissed: the coordinator ended the session.
            ProtocolError: no coordinator of this protocol sends such a message.
        """
        kind = message.WhichOneof("content")
        if kind == "welcome":
            return self._news(message.welcome.roster)
        if kind == "roster":
            return self._news(message.roster.roster)
        if kind == "roster_wanted":
            return lists_after(self.credentials, message.roster_wanted.after)
        if kind == "notice":
            self.warning = printable(message.notice.text)
            _log.error("the coordinator warns: %s", self.warning)
            return None
        if kind == "offer":
            return self._offer(message.offer)
        if kind == "model":
            self._model = message.model
            return None
        if kind == "invitation":
            return self._invitation(message.invitation)
        if kind == "stage":
            return self._uninvited(message.stage)
        if kind == "begin":
            return self._begin(message.begin)
        if kind == "collect":
            stage = message.collect.stage
            return self._answer(stage, lambda: self._buffered.collect(message.collect))
        if kind == "discard":
            self._buffered.discard(message.discard)
            return None
        if kind == "lines":
            return self._lines(message.lines)
        if kind == "outcome":
            return self._outcome(message.outcome)
        if kind == "goodbye":
            final = message.goodbye.reason in (
                fleet_pb2.Goodbye.OUTDATED,
                fleet_pb2.Goodbye.REVOKED,
            )
            raise Dismissed(printable(message.goodbye.text), final=final)
        raise ProtocolError("a message of a kind that this version does not know")

    def take_work(self) -> Work | None:
        """Training that `handle` asks its host to run in another thread; handed out once."""
        return self._buffered.take_work()

    # -- the roster -------------------------------------------------------------------------------

    def _news(self, news: Iterable[fleet_pb2.SignedRoster]) -> fleet_pb2.Up | None:
        self.chain, refused = take_news(self.credentials, self.chain, news)
        if refused is not None:
            why = PolicyRefusal(f"a roster is refused: {refused}", cause=Cause.ROSTER)
            return self._refuse(b"", 0, why)
        return None

    # -- a job ------------------------------------------------------------------------------------

    def _offer(self, offer: fleet_pb2.Offer) -> fleet_pb2.Up:
        terms = Terms.decode(offer.terms)
        try:
            client = check_job(
                terms,
                node=self.credentials.node,
                chain=self.chain,
                policy=self._policy(),
                worker=self._worker,
                journal=self.journal,
                buffered=self._takes_buffered,
            )
            self.journal.agree(terms, signer=self.credentials.signer)
            self._countersigner.require_undisputed(terms.job)
            self._buffered.offered(terms.job)
        except FedsysError as error:
            return self._refuse(terms.job, 0, error)
        self._terms[terms.job] = (terms, client)
        _log.info("agreed to job %s", terms.name)
        return fleet_pb2.Up(
            consent=fleet_pb2.Consent(
                job=terms.job,
                terms=terms.digest,
                prekeys=self._refill(offer.prekeys, terms),
                training=self._buffered.training(terms.job),
                lines=self._countersigner.lines(terms.job),
            )
        )

    def _refill(self, held: int, terms: Terms | None) -> list[bytes]:
        """Fresh sealing keys of a job's suite, if the coordinator, which holds `held`, is about to
        run out. A process that does not know the terms, as Flower may start for one message, sends
        the usual ones; the next offer asks for others."""
        if held > PREKEYS // 2:
            return []
        return self._sealing.issue(PREKEYS - held, 1 if terms is None else terms.secagg_suite)

    # -- a round ----------------------------------------------------------------------------------

    def _ready(self) -> Policy:
        """The owner's policy.

        Raises:
            PolicyRefusal: the device must not work now.
        """
        if self.paused.exists():
            raise PolicyRefusal("paused by its owner", cause=Cause.PAUSED)
        policy = self._policy()
        why = obstacle(policy, conditions(policy))
        if why is not None:
            raise PolicyRefusal(why, cause=Cause.CONDITIONS)
        return policy

    def _invitation(self, message: fleet_pb2.Invitation) -> fleet_pb2.Up | None:
        agreed = self._terms.get(message.job)
        try:
            self._countersigner.require_undisputed(message.job)
            if agreed is not None and agreed[0].buffering is not None:
                terms, client = agreed
                self._buffered.invite(message, self._model, terms=terms, client=client)
                return None
            self._join(message, self._ready())
        except (FedsysError, SecureAggError) as error:
            self._leave(message.job, message.round)
            return self._refuse(message.job, message.round, error)
        return self._stage(message.stage)

    def _join(self, message: fleet_pb2.Invitation, policy: Policy) -> None:
        agreed, model = self._terms.get(message.job), self._model
        if agreed is None:
            raise PolicyRefusal("this device has not agreed to that job", cause=Cause.TERMS)
        if model is None or model.job != message.job or model.round != message.round:
            raise ProtocolError("an invitation without its model")
        terms, client = agreed
        assignment = Assignment.decode(message.assignment, model.weights)
        self._model = None
        check_assignment(assignment, message, terms)
        current = self._round
        if current is not None and current.assignment.digest == assignment.digest:
            return  # the connection was lost, but this process still has the round
        roster = list_of(self.chain, terms)
        if roster is None:
            raise PolicyRefusal("this device does not hold the job's roster", cause=Cause.ROSTER)
        policy.check_terms(terms, roster, self._worker.sha256)
        size = announced_size(message.params)
        check_round(assignment, size, terms, client, policy=policy, journal=self.journal)
        check_witnessed(message, assignment, policy, signer=self.credentials.signer)
        mechanism = mechanism_of(assignment)
        params = check_params(message.params, size, terms, mechanism, roster.roster)
        joined = self.journal.jobs[terms.job.hex()].joined
        if assignment.round not in joined and kind_of(message.stage.message) is not Kind.OPENING:
            raise ProtocolError(f"this device never saw the opening of round {assignment.round}")
        agent = Agent(
            id=client,
            identity=self.credentials.identity,
            roster=roster.roster,
            policy=policy,
            sealing=self._sealing,
            entropy=self._keys,
            store=self._store,
            counted=self.journal,
        )
        self.journal.receive(
            terms.job,
            assignment.round,
            Sent(
                weights=assignment.weights_sha256,
                event=event_digest(assignment.mechanism),
                nonce=self._noise(assignment.round)(NONCE_BYTES).hex(),
            ),
        )
        agent.accept(assignment, params)  # counted as spent, durably, from here
        self._round = SynchronousRound(
            terms=terms,
            client=client,
            assignment=assignment,
            mechanism=mechanism,
            agent=agent,
            policy=policy,
        )

    def _begin(self, message: fleet_pb2.Begin) -> fleet_pb2.Up | None:
        model, self._model = self._model, None
        try:
            self._countersigner.require_undisputed(message.job)
            self._buffered.begin(message, model)
        except (FedsysError, SecureAggError) as error:
            return self._refuse(message.job, message.round, error)
        return None

    def _leave(self, job: bytes, round: int) -> None:
        """Take part in a round no further, unless another invitation to it is accepted."""
        current = self._round
        if current is not None and (job, round) == (
            current.assignment.job,
            current.assignment.round,
        ):
            self._round = None

    def _uninvited(self, stage: fleet_pb2.Stage) -> fleet_pb2.Up:
        """The answer to a step that came without an invitation. An opening should not, and nothing
        was asked of the owner before this one."""
        try:
            if kind_of(stage.message) is Kind.OPENING:
                self._ready()
        except (FedsysError, SecureAggError) as error:
            return self._refuse(stage.job, stage.round, error)
        return self._stage(stage)

    def _stage(self, stage: fleet_pb2.Stage) -> fleet_pb2.Up:
        agreed = self._terms.get(stage.job)
        if agreed is not None and agreed[0].buffering is not None:
            return self._answer(stage, lambda: self._buffered.stage(stage))
        current = self._round
        if (
            current is None
            or current.assignment.job != stage.job
            or current.assignment.round != stage.round
        ):
            stray = ProtocolError("this device is not in that round")
            return self._refuse(stage.job, stage.round, stray)
        return self._answer(stage, lambda: self._step(current, stage))

    def _step(self, current: SynchronousRound, stage: fleet_pb2.Stage) -> bytes:
        if kind_of(stage.message) is Kind.OPENING:
            return self._upload(current, stage)
        return current.agent.handle(stage.message)

    def _answer(self, stage: fleet_pb2.Stage, reply_of: Callable[[], bytes]) -> fleet_pb2.Up:
        """The answer to a step of secure aggregation, or the refusal."""
        try:
            self._countersigner.require_undisputed(stage.job)
            reply = reply_of()
            if kind_of(stage.message) is Kind.CERTIFICATE:
                self.journal.answer(stage.job, stage.round)
        except (FedsysError, SecureAggError) as error:
            return self._refuse(stage.job, stage.round, error)
        up = fleet_pb2.Up()  # a message given to the constructor of another is copied
        answer = up.answer
        answer.job, answer.round, answer.step = stage.job, stage.round, stage.step
        answer.message = reply
        if kind_of(stage.message) in (Kind.OPENING, Kind.NEXT):
            sent = self.journal.jobs[stage.job.hex()].sent.get(stage.round)
            answer.nonce = b"" if sent is None else bytes.fromhex(sent.nonce)
        return up

    def _upload(self, current: SynchronousRound, stage: fleet_pb2.Stage) -> bytes:
        """Train, unless that was done before, and return this round's one vector, encrypted."""
        asked, trained = self._answer_time.clock(), False
        try:
            if not current.agent.uploaded:
                if stage.round in self.journal.jobs[stage.job.hex()].uploaded:
                    raise PolicyRefusal(
                        f"this device has already sent a vector in round {stage.round}, and secure "
                        f"aggregation's record of it is lost",
                        cause=Cause.PARTICIPATION,
                    )
                current.agent.enter(stage.message)
                trained = True
                provide(current, self._worker, self.journal, self._noise(stage.round))
            reply = current.agent.handle(stage.message)
            self.journal.upload(stage.job, stage.round)
            return reply
        finally:
            if trained:
                self._answer_time.hold(
                    current.terms,
                    current.policy.answer,
                    asked=asked,
                    deadline=stage.milliseconds / 1000,
                )

    def _lines(self, message: fleet_pb2.Lines) -> fleet_pb2.Up | None:
        agreed = self._terms.get(message.job)
        if agreed is None:  # not by this process, which does not know the terms
            return None
        try:
            self._countersigner.take(message, agreed[0])
        except FedsysError as error:
            return self._refuse(message.job, 0, error)
        return None

    def _outcome(self, outcome: fleet_pb2.Outcome) -> fleet_pb2.Up | None:
        self._leave(outcome.job, outcome.round)
        try:
            self._buffered.outcome(outcome)
        except (FedsysError, SecureAggError) as error:
            return self._refuse(outcome.job, outcome.round, error)
        agreed = self._terms.get(outcome.job)
        prekeys = self._refill(outcome.prekeys, None if agreed is None else agreed[0])
        try:
            said = self._countersigner.statement(outcome)
        except FedsysError as error:
            return self._refuse(outcome.job, outcome.round, error)
        if said is None:
            return fleet_pb2.Up(prekeys=fleet_pb2.Prekeys(prekeys=prekeys)) if prekeys else None
        word = said.to_wire(outcome.job)
        word.prekeys.extend(prekeys)
        return fleet_pb2.Up(countersignature=word)

    def _refuse(self, job: bytes, round: int, error: FedsysError | SecureAggError) -> fleet_pb2.Up:
        passing = cause_of(error) in (Cause.PAUSED, Cause.CONDITIONS)
        try:
            explain = self._policy().explain
        except ConfigError:  # a policy that cannot be read allows nothing
            explain = False
        return refusal(job, round, error, explain=explain, passing=passing)
