"""A device in buffered rounds: it trains at its own pace, and uploads when it is asked.

An epoch is entered once: its opening uses up the sealing key, and costs no epsilon. Training runs
in the background. The update is asked for once it is ready: only then is the buffer that it enters
counted as spent, durably, and the update scaled by its staleness, clipped, noised and encrypted. It
is used once, whatever follows.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.admission import (
    Worker,
    announced_size,
    check_assignment,
    check_model,
    check_params,
)
from client.agent import Agent, mechanism_of
from client.answer_time import AnswerTime
from client.epoch_admission import check_buffer, check_epoch, check_staleness, check_version
from client.journal import Journal
from client.ledger_copy import Sent, event_digest
from client.policy import Policy
from client.privatize import privatize
from client.privatize.contribution import contribution
from client.privatize.staleness import staleness_factor
from fedsys.errors import Cause, FedsysError, PolicyRefusal, ProtocolError, TrainingError
from fedsys.privacy import Entropy, Mechanism
from fedsys.privacy.ledger.openings import NONCE_BYTES
from fedsys.wire import Assignment, fleet_pb2
from fedsys.wire.roster import RosterStatement
from fedsys.wire.terms import Buffering, Terms
from secure_agg import Identity, SealingKeys, SecureAggError, Store
from secure_agg.errors import InputError
from secure_agg.messages import HEADER_SIZE, U32, Kind, kind_of

__all__ = ["BufferedRounds", "Device", "Work"]

_log = logging.getLogger(__name__)
_DUTIES = (Kind.DELIVERY, Kind.PROPOSAL, Kind.CERTIFICATE)

Work = Callable[[], fleet_pb2.Up | None]
"""Training, which a session's host runs in another thread; it returns the message to send, if any.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Device:
    """What a device uses in all of its rounds.

    Attributes:
        identity: its signing key.
        journal: its durable count.
        worker: its data.
        sealing: its single-use sealing keys.
        store: keeps secure aggregation's record of what was sent.
        keys: source of secure aggregation's keys.
        noise: maps a round to the source of its noise.
        answer_time: delays answers that would reveal how long it trained.
        ready: returns the owner's policy; raises PolicyRefusal if the device must not work now.
        roster: maps a job's terms to the list of its members, or to None if it was never announced.
        refuse: makes the refusal of a job's round, given the error.
    """

    identity: Identity
    journal: Journal
    worker: Worker
    sealing: SealingKeys
    store: Store
    keys: Entropy
    noise: Callable[[int], Entropy]
    answer_time: AnswerTime
    ready: Callable[[], Policy]
    roster: Callable[[Terms], RosterStatement | None]
    refuse: Callable[[bytes, int, FedsysError | SecureAggError], fleet_pb2.Up]


@dataclass(kw_only=True, eq=False)
class _Epoch:
    """The epoch in which this device takes part."""

    terms: Terms
    buffering: Buffering
    client: int
    assignment: Assignment
    mechanism: Mechanism
    agent: Agent

    @property
    def number(self) -> int:
        return self.assignment.round


@dataclass(kw_only=True, eq=False)
class _Training:
    """Training that is in progress or done.

    Attributes:
        job: the job it is for.
        round: the buffer that was being filled when it began.
        version: version of the model that it began with.
        weights: SHA-256 of that model's weights, as hex.
        update: (1, d) the update, once training is done.
    """

    job: bytes
    round: int
    version: int
    weights: str
    update: NDArray[np.float32] | None = None

    def message(self) -> fleet_pb2.Trained:
        return fleet_pb2.Trained(
            job=self.job, round=self.round, version=self.version, done=self.update is not None
        )


class BufferedRounds:
    """The buffered rounds of one device.

    Refusals are raised; the session sends them.

    Args:
        device: the device.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._epoch: _Epoch | None = None
        self._training: _Training | None = None
        self._work: Work | None = None

    @property
    def activity(self) -> str:
        """What the device is doing, for people; empty if nothing."""
        if self._epoch is None:
            return ""
        return f"epoch {self._epoch.number} of {self._epoch.terms.name}"

    def training(self, job: bytes) -> fleet_pb2.Trained | None:
        """What this process is training, or has trained, for a job; None if nothing."""
        known = self._training
        return None if known is None or known.job != job else known.message()

    def take_work(self) -> Work | None:
        """Training to be run in the background, if any; handed out once."""
        work, self._work = self._work, None
        return work

    # -- the epoch --------------------------------------------------------------------------------

    def invite(
        self,
        message: fleet_pb2.Invitation,
        model: fleet_pb2.Model | None,
        *,
        terms: Terms,
        client: int,
    ) -> None:
        """Enter an epoch, or resume it after the connection or the process was lost.

        Raises:
            FedsysError: it differs from what was agreed to, or the owner does not allow it.
            SecureAggError: a refusal, named by its cause.
        """
        device, buffering = self._device, terms.buffering
        policy = device.ready()
        if buffering is None or kind_of(message.stage.message) is not Kind.OPENING:
            raise ProtocolError("an invitation that opens no epoch")
        if model is None or (model.job, model.round) != (message.job, message.round):
            raise ProtocolError("an invitation without its model")
        assignment = Assignment.decode(message.assignment, model.weights)
        check_assignment(assignment, message, terms)
        size = announced_size(message.params)
        roster = self._allowed(terms, policy)
        check_epoch(assignment, size, message.version, terms, policy=policy, journal=device.journal)
        current = self._epoch
        if current is None or current.assignment.digest != assignment.digest:
            current = self._enter(
                message, assignment, size, terms, buffering, client, policy, roster
            )
        device.journal.note_version(terms.job, message.version)
        self._epoch = current

    def _enter(
        self,
        message: fleet_pb2.Invitation,
        assignment: Assignment,
        size: int,
        terms: Terms,
        buffering: Buffering,
        client: int,
        policy: Policy,
        roster: RosterStatement,
    ) -> _Epoch:
        device = self._device
        mechanism = mechanism_of(assignment)
        params = check_params(message.params, size, terms, mechanism, roster.roster)
        agent = Agent(
            id=client,
            identity=device.identity,
            roster=roster.roster,
            policy=policy,
            sealing=device.sealing,
            entropy=device.keys,
            store=device.store,
            counted=device.journal,
        )
        agent.accept(assignment, params, buffers=buffering.epoch)
        device.journal.enter_epoch(terms.job, assignment.round)
        if not agent.resumes(message.stage.message):
            agent.enter(message.stage.message)
        return _Epoch(
            terms=terms,
            buffering=buffering,
            client=client,
            assignment=assignment,
            mechanism=mechanism,
            agent=agent,
        )

    def outcome(self, message: fleet_pb2.Outcome) -> None:
        """Take note that a buffer is over, with or without a new version of the model.

        Raises:
            PolicyRefusal: the version announced does not follow the one before.
        """
        epoch = self._epoch
        if epoch is None or epoch.terms.job != message.job:
            return
        journal = self._device.journal
        check_version(
            message.version, committed=message.committed, terms=epoch.terms, journal=journal
        )
        journal.note_version(message.job, message.version)
        if message.over:
            self._end(epoch)

    def offered(self, job: bytes) -> None:
        """Drop the state of other jobs: a coordinator that offers `job` has finished them."""
        epoch, known = self._epoch, self._training
        if known is not None and known.job != job:
            self._training = None
        if epoch is not None and epoch.terms.job != job:
            self._end(epoch)

    def _end(self, epoch: _Epoch) -> None:
        self._device.journal.end_epoch(epoch.terms.job)
        self._device.sealing.forget(epoch.assignment.context.job_hash)
        self._epoch = None

    def _current(self, job: bytes) -> _Epoch:
        epoch = self._epoch
        if epoch is None or epoch.terms.job != job:
            raise ProtocolError("this device is in no epoch of that job")
        return epoch

    def _allowed(self, terms: Terms, policy: Policy) -> RosterStatement:
        """The roster of a job that is within the owner's limits as they are now."""
        roster = self._device.roster(terms)
        if roster is None:
            raise PolicyRefusal("this device does not hold the job's roster", cause=Cause.ROSTER)
        policy.check_terms(terms, roster, self._device.worker.sha256)
        return roster

    def _check_limits(self, epoch: _Epoch, number: int, policy: Policy) -> None:
        """Check a buffer against the owner's limits as they are now: an epoch may last for days."""
        self._allowed(epoch.terms, policy)
        others = self._device.journal.others(epoch.terms.job, number)
        policy.check(epoch.assignment, participations=others)

    # -- training ---------------------------------------------------------------------------------

    def begin(self, message: fleet_pb2.Begin, model: fleet_pb2.Model | None) -> None:
        """Let training begin; earlier training is dropped.

        Raises:
            FedsysError: it differs from what was agreed to, or the owner does not allow it.
        """
        epoch, device = self._current(message.job), self._device
        policy = device.ready()
        self._check_limits(epoch, message.round, policy)
        check_buffer(
            message.round,
            message.version,
            epoch.number,
            epoch.terms,
            policy=policy,
            journal=device.journal,
        )
        known = self._training
        asked = (message.job, message.round, message.version)
        if known is not None and (known.job, known.round, known.version) == asked:
            return
        if model is None or (model.job, model.round) != asked[:2]:
            raise ProtocolError("training is asked for without its model")
        head = dataclasses.replace(epoch.assignment, round=message.round).head
        assignment = Assignment.decode(head, model.weights)
        check_model(assignment, epoch.terms)
        job, number, version = asked
        training = _Training(
            job=job, round=number, version=version, weights=assignment.weights_sha256
        )
        started, deadline = device.answer_time.clock(), message.milliseconds / 1000
        self._training = training

        def hold() -> None:
            device.answer_time.hold(epoch.terms, policy.answer, asked=started, deadline=deadline)

        def work() -> fleet_pb2.Up | None:
            if self._training is not training:
                return None
            try:
                update = device.worker.train(
                    epoch.terms, assignment, epoch.client, device.noise(number)
                )
            except (
                ArithmeticError,
                FedsysError,
                LookupError,
                MemoryError,
                RuntimeError,
                TypeError,
                ValueError,
            ) as e:
                if self._training is training:
                    self._training = None
                failed = TrainingError(f"training failed: {type(e).__name__}: {e}")
                hold()
                return device.refuse(job, number, e if isinstance(e, FedsysError) else failed)
            hold()
            training.update = update
            if self._training is not training:
                return None
            return fleet_pb2.Up(trained=training.message())

        self._work = work

    def discard(self, message: fleet_pb2.Discard) -> None:
        """Drop what was trained: the coordinator will not ask for it."""
        known = self._training
        if known is not None and (known.job, known.round) == (message.job, message.round):
            _log.info("buffer %d: the update is not asked for", message.round)
            self._training = None

    # -- what is sent -----------------------------------------------------------------------------

    def collect(self, message: fleet_pb2.Collect) -> bytes:
        """The upload; the same one if the same message comes again.

        Raises:
            FedsysError: it differs from what was agreed to, or the owner does not allow it.
            SecureAggError: a refusal, named by its cause.
        """
        stage, device = message.stage, self._device
        epoch = self._current(stage.job)
        policy = device.ready()
        if kind_of(stage.message) is not Kind.NEXT:
            raise ProtocolError("an upload is asked for by a message other than NEXT")
        if stage.round in device.journal.jobs[stage.job.hex()].uploaded:
            return self._again(epoch, stage)
        self._check_limits(epoch, stage.round, policy)
        check_buffer(
            stage.round,
            message.version,
            epoch.number,
            epoch.terms,
            policy=policy,
            journal=device.journal,
        )
        training = self._training
        if training is None or training.job != stage.job or training.update is None:
            raise PolicyRefusal("there is no trained update to send", cause=Cause.TRAINING)
        staleness = check_staleness(
            message.staleness, message.version, training.version, epoch.terms
        )
        self._training = None  # used once, whatever follows
        sent = Sent(
            weights=training.weights,
            event=event_digest(epoch.assignment.mechanism),
            nonce=device.noise(stage.round)(NONCE_BYTES).hex(),
        )
        device.journal.receive(stage.job, stage.round, sent, one_model=False)
        epoch.agent.contribute(dataclasses.replace(epoch.assignment, round=stage.round))
        factor = staleness_factor(staleness, most=epoch.buffering.max_staleness)
        try:
            self._provide(epoch, stage.round, training.update * np.float32(factor))
            device.journal.upload(stage.job, stage.round)  # first: no buffer gets a second vector
            return epoch.agent.handle(stage.message)
        finally:
            epoch.agent.withdraw()  # one that did not leave must not leave in `_again`

    def _again(self, epoch: _Epoch, stage: fleet_pb2.Stage) -> bytes:
        """What was sent already; there is nothing new that could be sent in its place."""
        try:
            return epoch.agent.handle(stage.message)
        except InputError:
            raise PolicyRefusal(
                f"this device has already sent a vector in buffer {stage.round}; it does not send "
                f"a second one",
                cause=Cause.PARTICIPATION,
            ) from None

    def _provide(self, epoch: _Epoch, number: int, update: NDArray[np.float32]) -> None:
        entropy = self._device.noise(number)
        contributed = contribution(
            update,
            participation=epoch.mechanism.event.sampling.participation,
            clipping=epoch.assignment.clipping,
            entropy=entropy,
        )
        privatized = privatize(
            epoch.mechanism, contributed, seed=epoch.assignment.digest, entropy=entropy
        )
        if privatized.unusable.any():
            _log.error("buffer %d: the update is not finite; zeros and noise were sent", number)
        epoch.agent.provide(privatized.values[0])

    def stage(self, stage: fleet_pb2.Stage) -> bytes:
        """A committee member's duty.

        Raises:
            ProtocolError: it is not such a duty, of a buffer that is not the epoch's, or of another
                buffer's sum.
            SecureAggError: a refusal, named by its cause.
        """
        epoch = self._current(stage.job)
        if not epoch.number <= stage.round < epoch.number + epoch.buffering.epoch:
            raise ProtocolError(f"buffer {stage.round} is not one of epoch {epoch.number}'s")
        if kind_of(stage.message) not in _DUTIES:
            raise ProtocolError("an upload is asked for as if it were the committee's duty")
        # Each begins with the number of its sum. The journal notes a sum that was opened under the
        # buffer's, and an outcome by which nobody opened it is compared with that.
        if stage.message[HEADER_SIZE : HEADER_SIZE + 4] != U32.pack(stage.round - epoch.number):
            raise ProtocolError(f"a duty of another sum than that of buffer {stage.round}")
        return epoch.agent.handle(stage.message)
