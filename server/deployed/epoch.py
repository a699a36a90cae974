"""One epoch of buffered rounds over the fleet: who is invited, trains, uploads, and settles sums.

Devices train in their own time. One that has trained says so, and is asked for its upload as soon
as the buffer that is being filled has a place. So an upload comes only after its buffer was paid
for, and enters that one or none. One that trained from too old a model is not asked.

Nobody is waited for without limit: training and uploads have a deadline each, a device that is
gone is waited for as long as an agent needs to reconnect, and where nobody is left whose upload
could come the buffer is given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedsys.errors import Cause, ProtocolError
from fedsys.privacy.ledger.openings import NONCE_BYTES
from fedsys.wire import fleet_pb2
from fedsys.wire.refusals import cause_of, reason_of
from secure_agg import SecureAggError
from secure_agg.errors import LateMessage, StageError
from server.coordinator import OpenRound
from server.deployed.conversation import Deadlines
from server.deployed.crowd import Asked, Crowd, Training
from server.deployed.fleet import Arrived, Devices, Event, Left, Link, Said
from server.deployed.secure_epoch import SecureEpoch
from server.rounds import RoundAborted

__all__ = ["Buffer", "DeployedEpoch", "Surroundings"]

_log = logging.getLogger(__name__)
_SOON = 0.01
_OF_THE_COMMITTEE = (Cause.UNSPECIFIED, Cause.SECURE_AGGREGATION, Cause.PROTOCOL, Cause.DEVICE)
"""Causes of refusing a duty, rather than an upload."""


@dataclass(kw_only=True)
class Buffer:
    """The buffer in hand.

    Attributes:
        open: reserved; nobody is in it yet.
        version: versions of the model released before it.
        staleness: of each upload in it, by client.
        nonces: what each of them came with, by client.
        too_stale: updates that were not asked for, being too old.
        lost: clients that were asked and did not come.
        certified: whether a certificate was sent, so that its sum may have been opened. The epoch's
            aggregator goes on to the next sum, and forgets.
        seconds: each stage's duration by name.
    """

    open: OpenRound
    version: int
    staleness: dict[int, int] = field(default_factory=dict)
    nonces: dict[int, bytes] = field(default_factory=dict)
    too_stale: int = 0
    lost: int = 0
    certified: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Of the round."""
        return self.open.number


@dataclass(frozen=True, kw_only=True, eq=False)
class Surroundings:
    """What an epoch needs of its job and its host.

    Attributes:
        members: node of each client number.
        fleet: the sessions.
        deadlines: of training and of the other stages.
        most_stale: versions that may be released while a client trains.
        able: clients that may contribute once more, and agree to.
        elsewhere: takes every event that is not this epoch's business.
        entered: called with each stage's name, durably, before its messages are sent.
        refused: takes round, client, cause and reason of each refusal.
    """

    members: tuple[int, ...]
    fleet: Devices
    deadlines: Deadlines
    most_stale: int
    able: Callable[[], frozenset[int]]
    elsewhere: Callable[[Event], None]
    entered: Callable[[str], None]
    refused: Callable[[int, int, Cause, str], None]


class DeployedEpoch:
    """The conversation with those invited.

    Args:
        secure: its secure aggregation.
        crowd: who trains; it outlives the epoch.
        around: job and host.
    """

    def __init__(self, secure: SecureEpoch, crowd: Crowd, around: Surroundings) -> None:
        self.secure = secure
        self._crowd = crowd
        self._around = around
        self._fleet = around.fleet
        self._clients = {around.members[client]: client for client in secure.cohort}
        self._openings: Mapping[int, bytes] = {}
        self._model = b""
        """Of the epoch's assignment, for those that are invited again."""
        self._holds: set[int] = set()
        """Who has that model and has not trained from it."""
        self._links: dict[int, Link] = {}
        """The session in which each was invited: in another one, a new process may listen that
        knows nothing yet, whether or not we have heard of it."""
        self._away: dict[int, float] = {}
        """Who is to be invited again once it is back, and until when it is waited for."""
        self._out: set[int] = set()
        """Who is not asked to train or upload."""
        self._mute: set[int] = set()
        """Who does nothing for the committee."""
        self._buffer: Buffer | None = None
        self._messages: Mapping[int, bytes] = {}
        """To the committee, of the step in hand."""
        self._step = 0
        self._closes = 0.0

    # -- the epoch --------------------------------------------------------------------------------

    def invite_all(self, version: int) -> None:
        """Open the epoch.

        Raises:
            RoundAborted: secure aggregation cannot serve those who are there.
        """
        self._openings = self.secure.begin()
        assignment = self.secure.assignment
        self._model = _model_bytes(assignment.job, assignment.round, assignment.weights_bytes)
        nodes = [self._around.members[client] for client in self.secure.cohort]
        self._fleet.allow(self.secure.largest_answer, nodes)
        for client in self.secure.cohort:
            self._invite(client, version)

    def _invite(self, client: int, version: int) -> None:
        node, assignment = self._around.members[client], self.secure.assignment
        link = self._fleet.links.get(node)
        if link is None:
            self._gone(client)
            return
        self._links[client] = link
        self._fleet.send_bytes(node, self._model)
        self._holds.add(client)
        invitation = fleet_pb2.Invitation(
            job=assignment.job,
            round=assignment.round,
            assignment=assignment.head,
            params=self.secure.params.encode(),
            stage=fleet_pb2.Stage(
                job=assignment.job, round=assignment.round, message=self._openings[client]
            ),
            version=version,
        )
        self._fleet.send(node, fleet_pb2.Down(invitation=invitation))

    def end(self) -> None:
        """Nobody may send much any longer."""
        self._fleet.allow(0, ())

    @property
    def present(self) -> Mapping[int, int]:
        """Client of each node that is to be told how a buffer ended: the others are told of all
        that they missed when they are back."""
        return {node: client for node, client in self._clients.items() if self.there(client)}

    def there(self, client: int) -> bool:
        """Whether a client listens in the session in which it was invited."""
        link = self._links.get(client)
        if link is not None and self._fleet.links.get(link.node) is link:
            return True
        if client not in self._away:
            self._gone(client)
        return False

    # -- a buffer ---------------------------------------------------------------------------------

    async def fill(self, buffer: Buffer) -> None:
        """Take uploads as they come until the buffer is full.

        Raises:
            RoundAborted: nobody is left whose upload could come.
        """
        self._buffer = buffer
        self._crowd.begin_buffer()
        self._around.entered("upload")
        started = self._fleet.clock()
        while not self.secure.full:
            now = self._fleet.clock()
            buffer.lost += len(self._crowd.expire(now))
            for client in [each for each, until in self._away.items() if until <= now]:
                self._crowd.drop(client)
            able = self._around.able() - self._out
            self._ask_for_uploads(buffer, able, now)
            self._have_some_begin(buffer, able - self._out, now)
            wait = self._patience(able, now)
            if wait is None:
                raise RoundAborted(
                    f"a buffer could not be filled: {len(buffer.staleness)} of "
                    f"{self.secure.size} uploads came",
                    nothing_summed=True,
                )
            event = await self._fleet.next_event(wait)
            if event is not None:
                await self._take(event)
        buffer.seconds["upload"] = round(self._fleet.clock() - started, 6)

    async def settle(self, buffer: Buffer) -> None:
        """Have the committee open the sum of the full buffer; `secure.result` then has it.

        Raises:
            RoundAborted: too few were left.
        """
        self._messages = await asyncio.to_thread(self.secure.settle)
        while self._messages:
            stage, started = self.secure.stage, self._fleet.clock()
            self._around.entered(stage)
            buffer.certified |= not self.secure.nothing_summed
            self._step += 1
            self._closes = started + self._around.deadlines.stage
            for client in sorted(self._messages):
                self._tell(client)
            await self._collect()
            taken = self._fleet.clock() - started
            buffer.seconds[stage] = round(buffer.seconds.get(stage, 0.0) + taken, 6)
            self._messages = await asyncio.to_thread(self.secure.close_stage)

    def _patience(self, able: frozenset[int], now: float) -> float | None:
        """Seconds until something that is waited for is given up; None where nothing is."""
        ends = self._crowd.deadlines()
        ends += [
            until
            for client, until in self._away.items()
            if until > now and client in able and client not in self._crowd.spent
        ]
        return max(min(ends) - now, _SOON) if ends else None

    def _have_some_begin(self, buffer: Buffer, able: frozenset[int], now: float) -> None:
        if not self._crowd.room:
            return
        there = [each for each in self.secure.cohort if each in able and self.there(each)]
        chosen = self._crowd.next_idle(there)
        if not chosen:
            return
        assignment, patience = buffer.open.assignment, self._around.deadlines.training
        model = _model_bytes(assignment.job, buffer.number, assignment.weights_bytes)
        begin = fleet_pb2.Down(
            begin=fleet_pb2.Begin(
                job=assignment.job,
                round=buffer.number,
                version=buffer.version,
                milliseconds=max(1, int(patience * 1000)),
            )
        )
        for client in chosen:
            node = self._around.members[client]
            training = Training(round=buffer.number, version=buffer.version, closes=now + patience)
            self._crowd.begin(client, training)
            if buffer.number != self.secure.number or client not in self._holds:
                self._fleet.send_bytes(node, model)
            self._holds.discard(client)
            self._fleet.send(node, begin)

    def _ask_for_uploads(self, buffer: Buffer, able: frozenset[int], now: float) -> None:
        for client, work in list(self._crowd.trained.items()):
            if not self.there(client) or client in self._crowd.spent:
                continue
            staleness = buffer.version - work.version
            if client not in able or staleness > self._around.most_stale:
                self._discard(buffer, client, work)
                continue
            places = self.secure.size - len(buffer.staleness) - len(self._crowd.asked)
            if places <= 0:
                return
            try:
                message = self.secure.ask(client)
            except SecureAggError as error:
                self._leave_out(client, Cause.SECURE_AGGREGATION, f"cannot be asked: {error}")
                continue
            closes = now + self._around.deadlines.stage
            self._crowd.ask(client, Asked(staleness=staleness, message=message, closes=closes))
            self._ask(buffer, client)

    def _ask(self, buffer: Buffer, client: int) -> None:
        asked = self._crowd.asked[client]
        collect = fleet_pb2.Collect(
            version=buffer.version,
            staleness=asked.staleness,
            stage=fleet_pb2.Stage(
                job=self.secure.assignment.job,
                round=buffer.number,
                message=asked.message,
                milliseconds=max(1, int((asked.closes - self._fleet.clock()) * 1000)),
            ),
        )
        self._fleet.send(self._around.members[client], fleet_pb2.Down(collect=collect))

    def _discard(self, buffer: Buffer, client: int, work: Training) -> None:
        """Its update is not asked for; one that is too old may be followed by another."""
        self._crowd.drop(client)
        stale = buffer.version - work.version > self._around.most_stale
        buffer.too_stale += int(stale)
        cause = Cause.STALE if stale else Cause.PARTICIPATION
        discard = fleet_pb2.Discard(
            job=self.secure.assignment.job,
            round=work.round,
            cause=fleet_pb2.Refusal.Cause.Value(cause.name),
        )
        self._fleet.send(self._around.members[client], fleet_pb2.Down(discard=discard))

    # -- the committee ----------------------------------------------------------------------------

    def _tell(self, client: int) -> None:
        """Send a committee member the message of the step in hand."""
        node = self._around.members[client]
        if client in self._mute or self._buffer is None or not self.there(client):
            return
        stage = fleet_pb2.Stage(
            job=self.secure.assignment.job,
            round=self._buffer.number,
            step=self._step,
            message=self._messages[client],
            milliseconds=max(1, int((self._closes - self._fleet.clock()) * 1000)),
        )
        self._fleet.send(node, fleet_pb2.Down(stage=stage))

    async def _collect(self) -> None:
        """Until everybody answered, the deadline passed, or those missing are gone for good."""
        while True:
            now, latest = self._fleet.clock(), 0.0
            for client in self.secure.waiting - self._mute:
                latest = max(latest, self._away.get(client, self._closes))
            wait = min(self._closes, latest) - now
            if wait <= 0:
                return
            event = await self._fleet.next_event(wait)
            if event is not None:
                await self._take(event)

    # -- listening --------------------------------------------------------------------------------

    def note(self, event: Event) -> None:
        """Follow who comes and goes, anyone who takes the events.

        A device that came back is talked to again when it has agreed to the job once more: a
        process that is new knows of no job before.
        """
        client = self._clients.get(event.node)
        if client is None:
            return
        if isinstance(event, Arrived | Left):
            self._gone(client)
        elif event.message.HasField("consent") and not self.there(client):
            self._returned(client)

    def _gone(self, client: int) -> None:
        self._holds.discard(client)
        self._links.pop(client, None)
        self._away[client] = self._fleet.clock() + self._around.deadlines.reconnect

    def _returned(self, client: int) -> None:
        """Give a device all that a fresh process needs."""
        buffer = self._buffer
        if buffer is None or self._around.members[client] not in self._fleet.links:
            return
        self._away.pop(client, None)
        self._invite(client, buffer.version)
        if client in self._crowd.asked:
            self._ask(buffer, client)
        if self.secure.awaits(client) and client in self._messages:
            self._tell(client)

    async def _take(self, event: Event) -> None:
        client = self._clients.get(event.node)
        if isinstance(event, Said) and client is not None and self._buffer is not None:
            content, job = event.message, self.secure.assignment.job
            if content.HasField("answer") and content.answer.job == job:
                await self._answered(client, content.answer, self._buffer)
                return
            refusal = content.refusal
            if content.HasField("refusal") and refusal.job == job and refusal.round > 0:
                self._declined(client, refusal)
                return
        self._around.elsewhere(event)

    async def _answered(self, client: int, answer: fleet_pb2.Answer, buffer: Buffer) -> None:
        asked = self._crowd.asked.get(client)
        owed = asked is not None or self.secure.awaits(client)
        step = 0 if asked is not None else self._step
        if (answer.round, answer.step) != (buffer.number, step) or not owed:
            return  # late, or said twice after a reconnection
        try:
            if asked is not None and len(answer.nonce) != NONCE_BYTES:
                raise ProtocolError(f"a nonce of {len(answer.nonce)} bytes, not {NONCE_BYTES}")
            await asyncio.to_thread(self.secure.receive, client, answer.message)
        except (LateMessage, StageError):
            return
        except (SecureAggError, ProtocolError) as error:
            _log.warning("buffer %d: client %d: %s", buffer.number, client, error)
            self._leave_out(client, Cause.PROTOCOL, f"sent something wrong: {error}")
            return
        if asked is not None:
            buffer.staleness[client] = asked.staleness
            buffer.nonces[client] = bytes(answer.nonce)
            self._crowd.fail(client)  # it had its turn

    def _declined(self, client: int, refusal: fleet_pb2.Refusal) -> None:
        """One that could not train, or not now, is asked again in the next buffer; one that may not
        contribute any more serves on the committee all the same."""
        cause, reason = cause_of(refusal), reason_of(refusal)
        if cause in _OF_THE_COMMITTEE and self.secure.awaits(client):
            self._mute.add(client)
        if client in self._out:
            return  # said again, it changes nothing
        _log.info("buffer %d: client %d declines: %s", refusal.round, client, reason)
        if refusal.passing or cause is Cause.TRAINING:
            if cause is Cause.TRAINING:
                self._crowd.lose(client)
            else:
                self._crowd.fail(client)
            self._around.refused(refusal.round, client, cause, reason)
        else:
            self._leave_out(client, cause, reason)

    def _leave_out(self, client: int, cause: Cause, why: str) -> None:
        """Go on without a client until the epoch is over."""
        self._crowd.drop(client)
        self._out.add(client)
        number = self.secure.number if self._buffer is None else self._buffer.number
        self._around.refused(number, client, cause, why)


def _model_bytes(job: bytes, number: int, weights: bytes) -> bytes:
    model = fleet_pb2.Model(job=job, round=number, weights=weights)
    message: bytes = fleet_pb2.Down(model=model).SerializeToString()
    return message
