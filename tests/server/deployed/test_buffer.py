"""Whole jobs of buffered rounds with real sessions, without sockets: who is asked for what."""

from __future__ import annotations

import asyncio
import threading
import time
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
from secure_agg import prekey_suite
from secure_agg.messages import HEADER_SIZE, Kind, Opening, kind_of
from server.deployed.fleet import Fleet, Link, Said
from server.deployed.queue import submit
from server.home.state import JobRow
from simulations.testbed.crowd import Still
from tests.server.deployed.test_job_run import Party, broken

Gate = Callable[[int, Assignment], None]
"""Called with number and assignment of anyone who trains, before it is done."""
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
        crash: whether a device's process dies and begins again at a message: ``before`` it is
            handled, or ``after``, with the answer lost; empty for no crash.
        heard: all that devices said.
        told: all that they were told.
        sessions: of the devices, as they run.
    """

    gate: Gate = lambda _number, _assignment: None
    meddle: Meddle = lambda _number, message: message
    crash: Callable[[int, fleet_pb2.Down], str] = lambda _number, _message: ""
    heard: list[tuple[int, fleet_pb2.Up]] = field(default_factory=list)
    told: list[tuple[int, fleet_pb2.Down]] = field(default_factory=list)
    sessions: dict[int, Session] = field(default_factory=dict)

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
        self.sessions[number] = session
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
            if up.HasField("answer"):
                up.answer.message = self._spoil(number, up.answer.message)
            self.heard.append((number, up))
            self.registry.prekeys.keep(node, up)
            if not up.HasField("prekeys"):
                link.pending += 1
                fleet.events.put_nowait(Said(node, up, link))

        async def train(work: Callable[[], fleet_pb2.Up | None]) -> None:
            say(await asyncio.to_thread(work))

        while (raw := await link.outgoing.get()) is not None:
            down = self.meddle(number, fleet_pb2.Down.FromString(raw))
            if down is None:
                continue
            self.told.append((number, down))
            when = self.crash(number, down)
            answer = None if when == "before" else session.handle(down)
            if when:
                fleet.closed(link)
                return await self._serve(fleet, number)
            say(answer)
            work = session.take_work()
            if work is not None:
                trains.add(asyncio.create_task(train(work)))

    def lines(self, job: str) -> dict[int, Any]:
        found, torn = read_private(self.home.jobs / job / "private.jsonl")
        assert not torn
        return dict(found)

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
    suite: str = "x25519",
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
            "aggregation": {"dropout": 0.1, "corrupt": 0.0, "suite": suite},
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


def test_epochs_run_in_the_hybrid_suite(party: Callable[[int], Buffers]) -> None:
    found = party(5)
    job = found.buffered(suite="x25519-mlkem768")
    run(found, job)
    assert found.outcomes(job) == ["commit"] * 4
    assert not found.refusals()
    invitations = [down.invitation for _, down in found.told if down.HasField("invitation")]
    openings = [Opening.parse(each.stage.message[HEADER_SIZE:]) for each in invitations]
    assert {opening.context.round for opening in openings} == {1, 3}
    named = [prekey for opening in openings for prekey in opening.prekeys]
    assert {prekey_suite(prekey) for prekey in named} == {2}
    assert len(set(named)) == 2 * 5, "each epoch has keys of its own"
    assert audit_run(found.home.jobs / job).passed


class Straggle:
    """One device trains until a buffer has begun; in that buffer the others wait until something
    became of what it trained.

    Args:
        party: whose.
        slow: whose training lasts.
        until: the buffer.
    """

    def __init__(self, party: Buffers, slow: int, until: int) -> None:
        self._party, self._slow, self._until = party, slow, until
        self._reached = threading.Event()

    def __call__(self, number: int, assignment: Assignment) -> None:
        if assignment.round >= self._until:
            self._reached.set()
        if number == self._slow:
            assert self._reached.wait(60)
        elif assignment.round == self._until:
            end = time.monotonic() + 60
            while not self._over() and time.monotonic() < end:
                time.sleep(0.01)

    def _over(self) -> bool:
        """Whether it was collected, or discarded."""
        uploaded = any(
            number == self._slow
            and up.HasField("answer")
            and kind_of(up.answer.message) is Kind.UPLOAD
            for number, up in list(self._party.heard)
        )
        told = [down for number, down in list(self._party.told) if number == self._slow]
        return uploaded or any(down.HasField("discard") for down in told)


def test_a_stale_upload_counts_in_the_buffer_that_it_comes_to(
    party: Callable[[int], Buffers],
) -> None:
    found = party(4)
    found.gate = Straggle(found, slow=3, until=3)
    job = found.buffered(rounds=4, most=4, stale=2)
    run(found, job)
    lines = found.lines(job)
    assert [3 in line["survivors"] for line in lines.values()][:3] == [False, False, True]
    assert lines[3]["most_staleness"] == 2
    assert lines[3]["mean_staleness"] == pytest.approx(2 / 3)
    assert not any(line["too_stale"] for line in lines.values())
    assert not found.refusals()


def test_an_update_that_is_too_old_is_not_asked_for(party: Callable[[int], Buffers]) -> None:
    found = party(4)
    found.gate = Straggle(found, slow=3, until=4)
    job = found.buffered(rounds=6, most=6, stale=1)
    run(found, job)
    discards = [(n, down.discard) for n, down in found.told if down.HasField("discard")]
    assert [(n, each.round, each.cause) for n, each in discards] == [
        (3, 1, fleet_pb2.Refusal.STALE)
    ]
    lines = found.lines(job)
    assert sum(line["too_stale"] for line in lines.values()) == 1
    assert all(line["most_staleness"] <= 1 for line in lines.values())
    assert found.outcomes(job) == ["commit"] * 6
    assert audit_run(found.home.jobs / job).passed


def test_nobody_is_asked_before_the_buffer_is_paid_for(party: Callable[[int], Buffers]) -> None:
    found = party(4)
    early: list[str] = []

    def watch(number: int, down: fleet_pb2.Down) -> fleet_pb2.Down:
        kind = down.WhichOneof("content")
        content = getattr(down, kind or "", None)
        asks = {"invitation", "begin", "collect", "stage"}
        if kind in asks and content is not None:
            about = content.stage.round if kind == "collect" else content.round
            ledger = found.home.jobs / job / "ledger.jsonl"
            view = read_ledger(ledger, allow_torn=True)
            if about not in [each.round for each in view.rounds]:
                early.append(f"{kind} of {about}")
            versions = sum(each.outcome == "commit" for each in view.rounds)
            if kind in ("begin", "collect", "invitation") and content.version > versions:
                early.append(f"{kind}: version {content.version} of {versions}")
        return down

    found.meddle = watch
    job = found.buffered()
    run(found, job)
    assert not early


def test_a_job_ends_when_too_few_may_contribute_once_more(
    party: Callable[[int], Buffers],
) -> None:
    """A device's own count may be ahead of the coordinator's: what it uploaded was lost."""
    found = party(3)

    def ahead(number: int, down: fleet_pb2.Down) -> fleet_pb2.Down:
        if number == 0 and down.HasField("begin"):
            record = next(iter(found.sessions[0].journal.jobs.values()))
            record.joined = [7, 8]
        return down

    found.meddle = ahead
    row = found.run(found.buffered(rounds=2, most=2))
    assert row.status == "budget-exhausted"
    assert "2 clients may contribute once more" in row.reason
    assert [each[:2] for each in found.refusals()] == [(0, "PARTICIPATION")]


def test_who_may_not_contribute_any_more_serves_on_the_committee(
    party: Callable[[int], Buffers],
) -> None:
    found = party(5)
    job = found.buffered(rounds=3, most=2, buffer=3)
    run(found, job)
    uploads = [client for line in found.lines(job).values() for client in line["survivors"]]
    assert max(uploads.count(client) for client in range(5)) <= 2


def test_an_upload_that_never_comes_gives_its_place_to_another(
    party: Callable[[int], Buffers],
) -> None:
    found = party(4)
    found.home.settings_file.write_text(
        found.home.settings_file.read_text().replace("stage = 30.0", "stage = 1.0")
    )
    dropped: list[int] = []

    def deaf(number: int, down: fleet_pb2.Down) -> fleet_pb2.Down | None:
        if down.HasField("collect") and number == 2 and not dropped:
            dropped.append(down.collect.stage.round)
            return None
        return down

    found.meddle = deaf
    job = found.buffered(rounds=3)
    run(found, job)
    lines = found.lines(job)
    assert dropped
    assert 2 not in lines[dropped[0]]["survivors"]
    assert lines[dropped[0]]["dropped"]["upload"] == 1
    assert found.outcomes(job) == ["commit"] * 3


def test_a_buffer_that_nobody_is_left_to_fill_is_given_up_and_ends_its_epoch(
    party: Callable[[int], Buffers],
) -> None:
    found = party(3)

    def refuse(number: int, down: fleet_pb2.Down) -> fleet_pb2.Down:
        if down.HasField("begin") and number == 1 and down.begin.round == 2:
            down.begin.version += 1  # a coordinator that contradicts itself
        return down

    found.meddle = refuse
    job = found.buffered(rounds=4)
    run(found, job)
    assert found.outcomes(job) == ["commit", "abort", "commit", "commit"]
    assert found.lines(job)[2]["reason"].startswith("a buffer could not be filled: 2 of 3")
    invited = sorted({down.invitation.round for _, down in found.told if down.invitation.round})
    assert invited == [1, 3]
    over = [down.outcome.round for n, down in found.told if n == 0 and down.outcome.over]
    assert over == [2, 4]
    assert found.refusals()[0][:2] == (1, "STALE")
    assert audit_run(found.home.jobs / job).passed


def test_a_coordinator_started_anew_goes_on_with_the_next_buffer(
    party: Callable[[int], Buffers],
) -> None:
    found = party(4)
    job = found.buffered(rounds=5, most=5)
    row = found.run(job, until_round=3)
    assert row.status == "running"
    run(found, job)
    outcomes = found.outcomes(job)
    assert len(outcomes) == 5
    assert outcomes.count("commit") >= 4
    counted = [
        up.countersignature.round for _, up in found.heard if up.HasField("countersignature")
    ]
    assert {number for number, each in enumerate(outcomes, 1) if each == "commit"} == set(counted)
    assert audit_run(found.home.jobs / job).passed


def test_three_buffers_cost_what_they_cost_in_a_simulation(
    party: Callable[[int], Buffers], tmp_path: Path
) -> None:
    found = party(4)
    job = found.buffered(rounds=3, most=3, mechanism="distributed-gaussian", noise_multiplier=30.0)
    run(found, job)
    audited = audit_run(found.home.jobs / job)
    assert audited.passed
    header = read_ledger(found.home.jobs / job / "ledger.jsonl").header
    assert header["plan"]["sampling"] == "arrivals"


def test_a_fleet_that_is_too_small_is_told(party: Callable[[int], Buffers]) -> None:
    found = party(3)
    config = buffered_job(4)
    population = config.population.model_copy(update={"clients": None})
    text = dump(config.model_copy(update={"population": population}))
    row = found.run(submit(found.state, text).id)
    assert row.status == "failed"
    assert "rounds.concurrency = 4, but 3 nodes are on the roster" in row.reason


@pytest.mark.parametrize("kind", [Kind.UPLOAD, Kind.ENDORSEMENT, Kind.ANSWER])
def test_who_is_caught_cheating_is_asked_no_more(
    party: Callable[[int], Buffers], kind: Kind
) -> None:
    found = party(6)
    found.spoiled[3] = (kind, broken)
    job = found.buffered(rounds=3, most=3)
    run(found, job)
    assert found.state.blamed(job).keys() == {4}
    caught = min(
        up.answer.round
        for n, up in found.heard
        if n == 3 and up.HasField("answer") and kind_of(up.answer.message) is kind
    )
    asked = [
        down.collect.stage.round for n, down in found.told if n == 3 and down.HasField("collect")
    ]
    assert all(number <= caught for number in asked)
    lines = found.lines(job)
    assert not any(3 in line["survivors"] for number, line in lines.items() if number > caught)
    assert audit_run(found.home.jobs / job).passed


def test_a_device_that_dies_at_any_message_misses_no_buffer(
    party: Callable[[int], Buffers],
) -> None:
    """All three are needed in every buffer; one of them dies at every kind of message."""
    found = party(3)
    points = [
        (kind, when)
        for when in ("before", "after")
        for kind in ("invitation", "begin", "collect", "stage", "outcome")
    ]

    def crash(number: int, down: fleet_pb2.Down) -> str:
        if number == 1 and points and down.WhichOneof("content") == points[0][0]:
            return points.pop(0)[1]
        return ""

    found.crash = crash
    job = found.buffered(rounds=6, most=12)
    run(found, job)
    assert not points
    assert found.outcomes(job) == ["commit"] * 6
    assert all(line["survivors"] == [0, 1, 2] for line in found.lines(job).values())
    assert audit_run(found.home.jobs / job).passed
