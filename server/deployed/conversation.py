"""One round over the fleet: invite, collect each stage's answers until its deadline, sum.

Nobody is waited for without limit: a stage ends when everybody answered, when its deadline passed,
or when all who are missing have been gone for longer than an agent needs to reconnect.
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
from secure_agg.errors import LateMessage
from server.coordinator import OpenRound
from server.deployed.fleet import Arrived, Devices, Event, Left, Said
from server.deployed.ledger_news import LedgerNews
from server.rounds import SecureRound

__all__ = ["Deadlines", "DeployedRound", "Report"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Seconds."""

    stage: float
    training: float
    reconnect: float

    def of(self, stage: str) -> float:
        """Until a stage is closed."""
        return self.training if stage == "upload" else self.stage


@dataclass(kw_only=True)
class Report:
    """What a round's host saw.

    Attributes:
        refusals: causes and reasons by client.
        seconds: each stage's duration by name, with all its exchanges.
    """

    refusals: dict[int, tuple[Cause, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class DeployedRound:
    """The open round's conversation with its cohort.

    Args:
        open: reserved and drawn.
        secure: its secure aggregation.
        members: node of each client number.
        consenting: clients that agreed to the job; no others are invited.
        fleet: the sessions.
        deadlines: of its stages.
        elsewhere: takes every event that is not this round's business.
        entered: called with each stage's name, durably, before its messages are sent.
        news: of the ledger, told with the outcome.
    """

    def __init__(
        self,
        *,
        open: OpenRound,
        secure: SecureRound,
        members: tuple[int, ...],
        consenting: frozenset[int],
        fleet: Devices,
        deadlines: Deadlines,
        elsewhere: Callable[[Event], None],
        entered: Callable[[str], None],
        news: LedgerNews,
    ) -> None:
        self.report = Report()
        self._news = news
        self._open = open
        self._secure = secure
        self._members = members
        self._clients = {members[client]: client for client in open.cohort}
        self._invited = frozenset(open.cohort) & consenting
        self._willing = set(self._invited)
        self._fleet = fleet
        self._deadlines = deadlines
        self._elsewhere = elsewhere
        self._entered = entered
        self._step = 0
        self._closes = 0.0
        self._model: bytes = b""
        self._messages: Mapping[int, bytes] = {}
        """Of the current exchange, some of them put together when they are looked up."""
        self.nonces: dict[int, bytes] = {}
        """What each client sent along with its upload."""
        self._owed: set[int] = set()
        """Who may still have to be told, or told again."""

    async def run(self) -> None:
        """Until the sum exists; `secure.result` then has it.

        Raises:
            RoundAborted: too few were left.
        """
        assignment = self._open.assignment
        model = fleet_pb2.Model(
            job=assignment.job, round=assignment.round, weights=assignment.weights_bytes
        )
        self._model = fleet_pb2.Down(model=model).SerializeToString()
        self._messages = self._secure.begin()
        while self._messages:
            stage, started = self._secure.stage, self._fleet.clock()
            self._entered(stage)
            self._closes = started + self._deadlines.of(stage)
            self._owed = set(self._messages) & self._willing
            for client in sorted(self._owed):
                self._tell(client, invite=stage == "upload")
            await self._collect()
            taken = self._fleet.clock() - started
            self.report.seconds[stage] = round(self.report.seconds.get(stage, 0.0) + taken, 6)
            self._messages = await asyncio.to_thread(self._secure.close_stage)
            self._step += 1
        await self._drain()

    def dismiss(self, *, committed: bool, ledger_head: bytes) -> None:
        """Tell the cohort how the round ended, and each how many sealing keys it has left. Who is
        not there, or has not agreed in its new session, is told once it has."""
        there = {
            client: node for node, client in self._clients.items() if node in self._fleet.links
        }
        held = self._news.prekeys(list(there.values()))
        for client in (*there, *sorted(self._invited - there.keys())):
            outcome = fleet_pb2.Outcome(
                job=self._open.assignment.job,
                round=self._open.number,
                committed=committed,
                ledger_head=ledger_head,
            )
            if client in there and self._news.knows(client):
                outcome.prekeys = held[there[client]]
                self._news.tell(client, outcome)
            else:
                self._news.owe(client, outcome)

    # -- talking ----------------------------------------------------------------------------------

    def _tell(self, client: int, *, invite: bool) -> None:
        """Send a client the message of the current stage, with all that a fresh process needs."""
        node = self._members[client]
        if client not in self._owed or node not in self._fleet.links:
            return
        assignment = self._open.assignment
        stage = fleet_pb2.Stage(
            job=assignment.job,
            round=self._open.number,
            step=self._step,
            message=self._messages[client],
            milliseconds=max(1, int((self._closes - self._fleet.clock()) * 1000)),
        )
        if not invite:
            self._fleet.send(node, fleet_pb2.Down(stage=stage))
            return
        self._fleet.send_bytes(node, self._model)
        invitation = fleet_pb2.Invitation(
            job=assignment.job,
            round=self._open.number,
            assignment=assignment.head,
            params=self._secure.params.encode(),
            stage=stage,
            reservation=self._open.reservation,
            proof=self._open.proof,
        )
        self._fleet.send(node, fleet_pb2.Down(invitation=invitation))

    # -- listening --------------------------------------------------------------------------------

    async def _collect(self) -> None:
        while True:
            wait = self._patience()
            if wait <= 0:
                return
            event = await self._fleet.next_event(wait)
            if event is not None:
                await self._take(event)

    async def _drain(self) -> None:
        """Hand on what arrived while the round was ending."""
        while not self._fleet.events.empty():
            self._elsewhere(self._fleet.events.get_nowait())

    def _patience(self) -> float:
        """Seconds for which somebody may still answer; 0 once nobody may."""
        now, latest = self._fleet.clock(), 0.0
        for client in self._secure.waiting:
            if client not in self._willing:
                continue
            gone = self._fleet.absent_since(self._members[client])
            if gone is None:
                return self._closes - now
            latest = max(latest, gone + self._deadlines.reconnect)
        return min(self._closes, latest) - now

    async def _take(self, event: Event) -> None:
        client = self._clients.get(event.node)
        if isinstance(event, Arrived):
            self._elsewhere(event)
            if client in self._willing and client is not None and self._secure.awaits(client):
                self._tell(client, invite=True)
            return
        if isinstance(event, Left) or client is None:
            self._elsewhere(event)
            return
        await self._said(client, event)

    async def _said(self, client: int, said: Said) -> None:
        job, number = self._open.assignment.job, self._open.number
        content = said.message
        if content.HasField("refusal"):
            refusal = content.refusal
            if refusal.job == job and refusal.round == number:
                if client in self._willing:  # said again, it changes nothing
                    reason = reason_of(refusal)
                    _log.info("round %d: client %d declines: %s", number, client, reason)
                    self._exclude(client, cause_of(refusal), reason)
                return
        if not content.HasField("answer"):
            self._elsewhere(said)
            return
        answer = content.answer
        if not self._awaits(client, answer):
            return  # late, or said twice after a reconnection
        uploads = self._secure.stage == "upload"
        try:
            if uploads and len(answer.nonce) != NONCE_BYTES:
                raise ProtocolError(f"a nonce of {len(answer.nonce)} bytes, not {NONCE_BYTES}")
            await asyncio.to_thread(self._secure.receive, client, answer.message)
        except LateMessage:
            return
        except (SecureAggError, ProtocolError) as error:
            _log.warning("round %d: client %d: %s", number, client, error)
            self._exclude(client, Cause.PROTOCOL, f"sent something wrong: {error}")
        else:
            self._owed.discard(client)
            if uploads:
                self.nonces[client] = bytes(answer.nonce)

    def _awaits(self, client: int, answer: fleet_pb2.Answer) -> bool:
        """Whether this is the answer to what this client was asked last, and is not there yet."""
        asked = (self._open.assignment.job, self._open.number, self._step)
        given = (answer.job, answer.round, answer.step)
        return given == asked and self._secure.awaits(client)

    def _exclude(self, client: int, cause: Cause, why: str) -> None:
        """Go on without a client."""
        self.report.refusals[client] = (cause, why)
        self._willing.discard(client)
        self._owed.discard(client)
