"""What a device sends wrong costs itself its place in the round, and nobody else; no sockets."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedsys.wire import fleet_pb2
from secure_agg.messages import Kind, kind_of
from server.coordinator import OpenRound
from server.deployed.conversation import Deadlines, DeployedRound
from server.deployed.fleet import Event, Fleet, Link, Said
from server.rounds import SecureRound
from tests.client.devices import Conversation, D, Device, Devices, plan_of
from tests.server.deployed.news import silent_news

Spoil = Callable[[bytes], bytes]
NO_NOISE: dict[str, Any] = {"mechanism": "none", "noise_multiplier": 0.0}


def spoil_upload(device: Device, spoil: Spoil) -> None:
    """Its upload leaves changed; everything else as it should."""
    handle = device.session.handle

    def spoiled(message: fleet_pb2.Down) -> fleet_pb2.Up | None:
        answer = handle(message)
        upload = answer is not None and answer.HasField("answer")
        if answer is not None and upload and kind_of(answer.answer.message) is Kind.UPLOAD:
            answer.answer.message = spoil(answer.answer.message)
        return answer

    device.session.handle = spoiled  # type: ignore[method-assign]


async def serve(fleet: Fleet, link: Link, device: Device) -> None:
    """A device at the other end of its link."""
    while (raw := await link.outgoing.get()) is not None:
        answer = device.session.handle(fleet_pb2.Down.FromString(raw))
        if answer is not None:
            fleet.events.put_nowait(Said(link.node, answer))


async def round_with(
    devices: Devices, stages: list[str] | None = None, *, patience: float = 60.0
) -> tuple[SecureRound, DeployedRound]:
    """A round from the first invitation to the outcome; `stages` takes each one entered."""
    stages = [] if stages is None else stages
    talk = Conversation(devices, devices.agree())
    cohort = tuple(range(devices.count))
    open_ = OpenRound(number=1, cohort=cohort, assignment=talk.assignment)
    secure = SecureRound(
        open=open_,
        mechanism=devices.plan.build_mechanism(),
        roster=devices.roster.roster,
        params=talk.announced,
        prekeys={k: kept.pop(0) for k, kept in enumerate(devices.prekeys)},
    )
    fleet, strays = Fleet(), list[Event]()
    round_ = DeployedRound(
        open=open_,
        secure=secure,
        members=devices.roster.nodes,
        consenting=frozenset(cohort),
        fleet=fleet,
        deadlines=Deadlines(stage=patience, training=60.0, reconnect=60.0),
        elsewhere=strays.append,
        entered=stages.append,
        news=silent_news(fleet),
    )
    tasks = []
    for node, device in zip(devices.roster.nodes, devices.all, strict=True):
        link = Link(node=node)
        fleet.open(link)
        tasks.append(asyncio.create_task(serve(fleet, link, device)))
    await round_.run()
    round_.dismiss(committed=True, ledger_head=b"")
    for task in tasks:
        task.cancel()
    return secure, round_


def lengthened(message: bytes) -> bytes:
    return message + bytes(4)


def shortened(message: bytes) -> bytes:
    return message[:-4]


def doubled(message: bytes) -> bytes:
    return message + message[-4 * D :]


def empty(_message: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("spoil", [lengthened, shortened, doubled, empty])
def test_an_upload_of_a_wrong_shape_is_left_out_of_the_sum(spoil: Spoil, tmp_path: Path) -> None:
    devices = Devices(tmp_path, count=5, plan=plan_of(5, dropout=0.2, **NO_NOISE))
    spoil_upload(devices.all[1], spoil)
    secure, round_ = asyncio.run(asyncio.wait_for(round_with(devices), 120))
    assert secure.result.included == (0, 2, 3, 4)
    assert len(secure.result.total) == D
    assert list(round_.report.refusals) == [1]
    assert "sent something wrong" in round_.report.refusals[1][1]
    assert list(secure.result.blamed) == ([] if spoil is empty else [1])


def test_whoever_sends_what_is_asked_is_in_the_sum(tmp_path: Path) -> None:
    stages: list[str] = []
    secure, round_ = asyncio.run(asyncio.wait_for(round_with(Devices(tmp_path), stages), 120))
    assert secure.result.included == (0, 1, 2)
    assert not round_.report.refusals
    assert secure.result.total.dtype.kind == "u"
    assert stages == ["upload", "endorse", "endorse", "answer"]
    assert list(round_.report.seconds) == ["upload", "endorse", "answer"]


def test_who_dies_after_its_upload_is_in_the_sum(tmp_path: Path) -> None:
    devices = Devices(tmp_path, count=5, plan=plan_of(5, dropout=0.2, **NO_NOISE))
    handle = devices.all[4].session.handle

    def once(message: fleet_pb2.Down) -> fleet_pb2.Up | None:
        return None if message.HasField("stage") else handle(message)

    devices.all[4].session.handle = once  # type: ignore[method-assign]

    secure, round_ = asyncio.run(asyncio.wait_for(round_with(devices, patience=2.0), 120))
    assert secure.result.included == (0, 1, 2, 3, 4)
    assert secure.result.dropped["endorse"] == (4,)
    assert not round_.report.refusals


BIG = 1 << 20
CROWD = 12


class Shares(Mapping[int, bytes]):
    """Large messages, each put together when it is looked up."""

    def __getitem__(self, client: int) -> bytes:
        return bytes(BIG)

    def __iter__(self) -> Iterator[int]:
        return iter(range(CROWD))

    def __len__(self) -> int:
        return CROWD


class Dealer:
    """The protocol's side of one stage whose messages are large.

    Attributes:
        held: bytes that this process holds more than before the stage, when the first answer is
            taken, when the last is, and when the stage is closed.
    """

    stage = "endorse"

    def __init__(self, refusing: frozenset[int]) -> None:
        self.waiting = frozenset(range(CROWD))
        self.held: list[int] = []
        self._refusing = refusing
        self._before = 0

    def begin(self) -> Mapping[int, bytes]:
        self._before = tracemalloc.get_traced_memory()[0]
        return Shares()

    def awaits(self, client: int) -> bool:
        return client in self.waiting

    def receive(self, client: int, _message: bytes) -> None:
        self.waiting -= {client}
        if len(self.waiting) in (CROWD - 1, len(self._refusing)):
            self._note()

    def close_stage(self) -> dict[int, bytes]:
        self._note()
        return {}

    def _note(self) -> None:
        self.held.append(tracemalloc.get_traced_memory()[0] - self._before)


def test_no_message_is_held_once_it_is_on_its_way(tmp_path: Path) -> None:
    """Who comes back is told again; that message is put together again."""
    devices = Devices(tmp_path, running=0)
    open_ = OpenRound(
        number=1,
        cohort=tuple(range(CROWD)),
        assignment=Conversation(devices, devices.terms()).assignment,
    )
    refusing, absent = frozenset({1}), 2
    dealer: Any = Dealer(refusing | {absent})
    fleet, job = Fleet(), open_.assignment.job

    def says(node: int) -> fleet_pb2.Up:
        if node in refusing:
            return fleet_pb2.Up(refusal=fleet_pb2.Refusal(job=job, round=1))
        return fleet_pb2.Up(answer=fleet_pb2.Answer(job=job, round=1, message=b"answer"))

    async def take(link: Link) -> None:
        assert len(await link.outgoing.get() or b"") > BIG

    async def scenario() -> None:
        round_ = DeployedRound(
            open=open_,
            secure=dealer,
            members=tuple(range(CROWD)),
            consenting=frozenset(range(CROWD)) - {absent},
            fleet=fleet,
            deadlines=Deadlines(stage=60.0, training=60.0, reconnect=60.0),
            elsewhere=lambda event: None,
            entered=lambda stage: None,
            news=silent_news(fleet),
        )
        links = [Link(node=node) for node in range(CROWD)]
        fleet.links.update({link.node: link for link in links})
        running = asyncio.create_task(round_.run())
        for link in links:
            if link.node != absent:
                await take(link)
        for node in sorted(set(range(CROWD)) - {absent}, key=lambda node: node not in refusing):
            fleet.events.put_nowait(Said(node, says(node)))
        await running

    tracemalloc.start()
    try:
        asyncio.run(asyncio.wait_for(scenario(), 120))
    finally:
        tracemalloc.stop()
    assert [round(bytes_ / BIG) for bytes_ in dealer.held] == [0, 0, 0]
