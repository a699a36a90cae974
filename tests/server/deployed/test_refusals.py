"""A device that declines without end costs a line and a count, and is shown as one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from client.refusal import cause_of
from fedsys.errors import Cause, FedsysError
from fedsys.wire import fleet_pb2
from fedsys.wire.refusals import cause_of as cause_on_the_wire
from fedsys.wire.refusals import reason_of
from server.coordinator import OpenRound
from server.deployed.conversation import Deadlines, DeployedRound
from server.deployed.fleet import Fleet, Link, Said
from server.deployed.refusals import Refusals
from server.grpc_operator import job_status
from server.home.folder import Home
from server.home.state import JobRow, NodeRow, State
from tests.client.devices import Conversation, Devices
from tests.server.deployed.news import silent_news


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "c", hosts=["localhost"])


@pytest.fixture
def state(home: Home) -> Iterator[State]:
    found = State.open(home.path)
    with found.transaction() as session:
        for id in range(1, 4):
            row = NodeRow(
                id=id, name=f"n{id}", identity=bytes([id]), status="active", enrolled_at=0
            )
            session.add(row)
        session.add(
            JobRow(id="j", name="job", config="", status="running", submitted_at=0.0, rounds=3)
        )
    yield found
    found.close()


def commits(state: State) -> list[None]:
    found: list[None] = []
    event.listen(state._engine, "commit", lambda _connection: found.append(None))
    return found


def test_a_thousand_refusals_are_a_row_and_a_few_writes(home: Home, state: State) -> None:
    now = [0.0]
    refusals = Refusals(state, "j", clock=lambda: now[0])
    written = commits(state)
    for number in range(1000):
        now[0] += 0.002
        refusals.note(round=number, node=1, cause=Cause.PAUSED, reason=f"reason {number}")
        refusals.note(round=0, node=2, cause=Cause.EPSILON, reason="too much")
    refusals.flush()
    refusals.flush()
    assert len(written) <= 4
    assert len(state.refusals_of("j")) == 2
    shown = job_status(home, state, state.job("j")).refusals
    assert sorted(shown) == [
        "n1 (round 999, 1000 times): reason 999",
        "n2 (the job, 1000 times): too much",
    ]
    again = Refusals(state, "j")
    again.note(round=1000, node=1, cause=Cause.PAUSED, reason="once more")
    again.flush()
    assert (
        "n1 (round 1000, 1001 times): once more" in job_status(home, state, state.job("j")).refusals
    )


def test_one_device_has_as_many_rows_as_there_are_causes(state: State) -> None:
    refusals = Refusals(state, "j")
    for number in range(2000):
        cause = list(Cause)[number % len(Cause)]
        refusals.note(round=number, node=1, cause=cause, reason=str(number))
    refusals.flush()
    assert len(state.refusals_of("j")) == len(Cause)


def test_the_newest_few_are_read(home: Home, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("server.deployed.refusals.time.time", lambda: now[0])
    refusals = Refusals(state, "j")
    for cause in Cause:
        for node in (3, 1, 2):
            now[0] += 1.0
            refusals.note(round=1, node=node, cause=cause, reason=f"{cause.name} {node}")
    refusals.flush()
    found = state.newest_refusals("j", 5)
    assert [row.reason.split()[1] for _, row in found] == ["1", "2", "3", "1", "2"]
    assert len(job_status(home, state, state.job("j")).refusals) == 20


def test_each_cause_is_on_the_wire() -> None:
    assert set(fleet_pb2.Refusal.Cause.keys()) == {cause.name for cause in Cause}
    for cause in Cause:
        refusal = fleet_pb2.Refusal(cause=fleet_pb2.Refusal.Cause.Value(cause.name))
        assert cause_on_the_wire(refusal) is cause
        assert reason_of(refusal) == cause.value
        assert cause.value.isprintable()
    unknown = fleet_pb2.Refusal.FromString(b"\x28\x63")
    assert cause_on_the_wire(unknown) is Cause.UNSPECIFIED
    assert cause_of(FedsysError("anything")) is Cause.UNSPECIFIED


class Silent:
    """A stage that waits for two members."""

    stage = "endorse"
    waiting = frozenset({0, 1})

    def begin(self) -> dict[int, bytes]:
        return {0: b"x", 1: b"x"}

    def awaits(self, client: int) -> bool:
        return client in self.waiting

    def receive(self, client: int, _message: bytes) -> None:
        self.waiting -= {client}

    def close_stage(self) -> dict[int, bytes]:
        return {}


def test_a_member_declines_a_round_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    devices = Devices(tmp_path)
    assignment = Conversation(devices, devices.terms()).assignment
    fleet, secure = Fleet(), Silent()
    untyped: Any = secure

    async def scene() -> DeployedRound:
        round_ = DeployedRound(
            open=OpenRound(number=1, cohort=(0, 1), assignment=assignment),
            secure=untyped,
            members=(1, 2),
            consenting=frozenset({0, 1}),
            fleet=fleet,
            deadlines=Deadlines(stage=60.0, training=60.0, reconnect=60.0),
            elsewhere=lambda event: None,
            entered=lambda stage: None,
            news=silent_news(fleet),
        )
        fleet.links.update({node: Link(node=node) for node in (1, 2)})
        running = asyncio.create_task(round_.run())
        await asyncio.sleep(0)
        refusal = fleet_pb2.Refusal(job=assignment.job, round=1, reason="no\n\x1b[2J")
        for _ in range(500):
            fleet.events.put_nowait(Said(1, fleet_pb2.Up(refusal=refusal)))
        answer = fleet_pb2.Answer(job=assignment.job, round=1, message=b"m")
        fleet.events.put_nowait(Said(2, fleet_pb2.Up(answer=answer)))
        await asyncio.wait_for(running, 60)
        return round_

    round_ = asyncio.run(scene())
    ((cause, reason),) = round_.report.refusals.values()
    assert (cause, reason.isprintable()) == (Cause.UNSPECIFIED, True)
    assert len([each for each in caplog.records if "declines" in each.getMessage()]) == 1
