"""Whole jobs of buffered rounds with real sessions, without sockets: who is asked for what."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client.answer_time import AnswerTime
from client.identity import Credentials
from client.policy import Policy
from client.session import Session
from client.volatile import VolatileStore
from fedsys.audit import audit_run
from fedsys.config import Config, dump, validate
from fedsys.errors import Cause
from fedsys.privacy import Entropy, read_ledger
from fedsys.privacy.ledger import read_private
from fedsys.wire import Assignment, fleet_pb2
from fedsys.wire.terms import Terms
from server.deployed.fleet import Fleet, Link, Said
from server.deployed.submission import submit
from server.home.state import JobRow
from simulations.testbed.crowd import Still
from tests.server.deployed.test_job_run import Party

Gate = Callable[[int, Assignment], None]
"""Called with number and assignment of whoever trains, before it is done."""
Meddle = Callable[[int, fleet_pb2.Down], fleet_pb2.Down | None]
"""What a device gets in place of a message; None: nothing."""


class Gated(Still):
    """A worker that trains for as long as the test likes."""

    def __init__(self, number: int, gate: Gate) -> None:
        self._number, self._gate = number, gate

    def train(
        self, terms: Terms, assignment: Assignment, client: int, entropy: Entropy
    ) -> NDArray[np.float32]:
        self._gate(self._number, assignment)
        return super().train(terms, assignment, client, entropy)


@dataclass
class Buffers(Party):
    """Devices whose training lasts for as long as a test likes.

    Attributes:
        gate: called where a device trains.
        meddle: what becomes of each message to a device.
        heard: all that devices said.
        told: all that they were told.
    """

    gate: Gate = lambda _number, _assignment: None
    meddle: Meddle = lambda _number, message: message
    heard: list[tuple[int, fleet_pb2.Up]] = field(default_factory=list)
    told: list[tuple[int, fleet_pb2.Down]] = field(default_factory=list)

    def buffered(self, **settings: Any) -> str:
        """Queue a job; its id."""
        return submit(self.state, dump(buffered_job(self.size, **settings))).id

    async def _serve(self, fleet: Fleet, number: int) -> None:
        folder = self.folders[number]
        session = Session(
            credentials=Credentials.load(folder),
            worker=Gated(number, self.gate),
            policy=lambda: Policy(corrupt=0.0, explain=True),
            volatile=VolatileStore(folder, self.root / "tmpfs"),
            answer_time=AnswerTime(sleep=lambda _seconds: None),
            buffered=True,
        )
        node = session.credentials.node
        self.registry.prekeys.keep(node, session.hello())
        link = Link(node=node)
        rosters = [
            fleet_pb2.SignedRoster(statement=each.statement, signature=each.signature)
            for each in self.registry.statements(session.chain.version)
        ]
        link.send(fleet_pb2.Down(welcome=fleet_pb2.Welcome(protocol=1, roster=rosters)))
        fleet.open(link)
        trains: set[asyncio.Task[None]] = set()

        def say(up: fleet_pb2.Up | None) -> None:
            if up is None:
                return
            self.heard.append((number, up))
            self.registry.prekeys.keep(node, up)
            if not up.HasField("prekeys"):
                fleet.events.put_nowait(Said(node, up))

        async def train(work: Callable[[], fleet_pb2.Up | None]) -> None:
            say(await asyncio.to_thread(work))

        while (raw := await link.outgoing.get()) is not None:
            down = self.meddle(number, fleet_pb2.Down.FromString(raw))
            if down is None:
                continue
            self.told.append((number, down))
            say(session.handle(down))
            work = session.take_work()
            if work is not None:
                trains.add(asyncio.create_task(train(work)))

    def lines(self, job: str) -> dict[int, dict[str, Any]]:
        found, torn = read_private(self.home.jobs / job / "private.jsonl")
        assert not torn
        return found

    def outcomes(self, job: str) -> list[str | None]:
        view = read_ledger(self.home.jobs / job / "ledger.jsonl")
        return [each.outcome for each in view.rounds]

    def refusals(self) -> list[tuple[int, str, str]]:
        """Who declined what, by cause and reason."""
        return [
            (number, Cause[fleet_pb2.Refusal.Cause.Name(up.refusal.cause)].name, up.refusal.reason)
            for number, up in self.heard
            if up.HasField("refusal")
        ]


def buffered_job(
    size: int,
    *,
    rounds: int = 4,
    buffer: int = 3,
    most: int = 4,
    stale: int = 2,
    concurrency: int | None = None,
    **privacy: Any,
) -> Config:
    """Everybody may train at a time."""
    return validate(
        {
            "job": {"name": "small"},
            "population": {"clients": size},
            "cohort": {"sampling": "arrivals"},
            "rounds": {
                "mode": "buffered",
                "count": rounds,
                "buffer": buffer,
                "concurrency": concurrency or size,
                "max_staleness": stale,
                "epoch": 2,
            },
            "server": {"strategy": "fedavg"},
            "privacy": {"mechanism": "none", "max_participations": most, **privacy},
            "aggregation": {"dropout": 0.1, "corrupt": 0.0},
            "engine": {"path": "loop", "chunk": 1},
            "evaluation": {"data": "none"},
        }
    )


@pytest.fixture
def party(tmp_path: Path) -> Iterator[Callable[[int], Buffers]]:
    made: list[Buffers] = []

    def make(size: int) -> Buffers:
        made.append(Buffers(tmp_path, size))
        return made[-1]

    yield make
    for each in made:
        each.state.close()


def run(party: Buffers, job: str) -> JobRow:
    row = party.run(job)
    assert row.status == "completed", (row.reason, party.refusals())
    return row


def test_every_buffer_holds_as_many_uploads_as_was_agreed(
    party: Callable[[int], Buffers],
) -> None:
    found = party(5)
    job = found.buffered()
    run(found, job)
    assert found.outcomes(job) == ["commit"] * 4
    assert [len(line["survivors"]) for line in found.lines(job).values()] == [3] * 4
    assert not found.refusals()
    assert audit_run(found.home.jobs / job).passed
