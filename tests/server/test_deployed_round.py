"""What a device sends wrong costs itself its place in the round, and nobody else; no sockets."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsys.wire import fleet_pb2
from secure_agg.messages import Kind, kind_of
from server.coordinator import OpenRound
from server.deployed_round import Deadlines, DeployedRound
from server.fleet import Event, Fleet, Link, Said
from server.rounds import SecureRound
from tests.client.devices import PLAN, Conversation, D, Device, Devices, offer

Spoil = Callable[[bytes], bytes]


def spoil_upload(device: Device, spoil: Spoil) -> None:
    """Its masked vector leaves changed; everything else as it should."""
    handle = device.session.handle

    def spoiled(message: fleet_pb2.Down) -> fleet_pb2.Up | None:
        answer = handle(message)
        upload = answer is not None and answer.HasField("answer")
        if answer is not None and upload and kind_of(answer.answer.message) is Kind.MASKED:
            answer.answer.message = spoil(answer.answer.message)
        return answer

    device.session.handle = spoiled  # type: ignore[method-assign]


async def serve(fleet: Fleet, link: Link, device: Device) -> None:
    """A device at the other end of its link."""
    while (raw := await link.outgoing.get()) is not None:
        answer = device.session.handle(fleet_pb2.Down.FromString(raw))
        if answer is not None:
            fleet.events.put_nowait(Said(link.node, answer))


async def round_with(devices: Devices) -> tuple[SecureRound, DeployedRound]:
    talk = Conversation(devices.terms(), devices.roster)
    open_ = OpenRound(number=1, cohort=(0, 1, 2), assignment=talk.assignment)
    mechanism = PLAN.build_mechanism()
    secure = SecureRound(
        open=open_, mechanism=mechanism, roster=devices.roster.roster, corrupt=0.0, dropout=0.0
    )
    fleet, strays = Fleet(), list[Event]()
    round_ = DeployedRound(
        open=open_,
        secure=secure,
        members=devices.roster.nodes,
        consenting=frozenset(range(3)),
        fleet=fleet,
        deadlines=Deadlines(stage=60.0, training=60.0, reconnect=60.0),
        elsewhere=strays.append,
        entered=lambda stage: None,
    )
    tasks = []
    for node, device in zip(devices.roster.nodes, devices.all, strict=True):
        assert device.handle(offer(talk.terms)).HasField("consent")
        link = Link(node=node)
        fleet.open(link)
        tasks.append(asyncio.create_task(serve(fleet, link, device)))
    await round_.run()
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
    devices = Devices(tmp_path)
    spoil_upload(devices.all[1], spoil)
    secure, round_ = asyncio.run(asyncio.wait_for(round_with(devices), 120))
    assert secure.result.included == (0, 2)
    assert len(secure.result.total) == D
    assert list(round_.report.refusals) == [1]
    assert "sent something wrong" in round_.report.refusals[1][1]


def test_whoever_sends_what_is_asked_is_in_the_sum(tmp_path: Path) -> None:
    secure, round_ = asyncio.run(asyncio.wait_for(round_with(Devices(tmp_path)), 120))
    assert secure.result.included == (0, 1, 2)
    assert not round_.report.refusals
    assert secure.result.total.dtype == np.uint32


BIG = 1 << 20
CROWD = 12


class Dealer:
    """The protocol's side of one stage whose messages are large.

    Attributes:
        held: bytes that this process holds more than before the stage, when the first answer is
            taken, when the last is, and when the stage is closed.
    """

    stage = "masked_input"

    def __init__(self, refusing: frozenset[int]) -> None:
        self.waiting = frozenset(range(CROWD))
        self.held: list[int] = []
        self._refusing = refusing
        self._before = 0

    def begin(self) -> dict[int, bytes]:
        self._before = tracemalloc.get_traced_memory()[0]
        return {client: bytes(BIG) for client in range(CROWD)}

    def receive(self, client: int, _message: bytes) -> None:
        self.waiting -= {client}
        if len(self.waiting) in (CROWD - 1, len(self._refusing)):
            self._note()

    def close_stage(self) -> dict[int, bytes]:
        self._note()
        return {}

    def _note(self) -> None:
        self.held.append(tracemalloc.get_traced_memory()[0] - self._before)


def test_a_message_is_let_go_of_when_it_was_answered(tmp_path: Path) -> None:
    """Until then it may have to be sent again; while many train, that is most of the memory."""
    devices = Devices(tmp_path)
    open_ = OpenRound(
        number=1,
        cohort=tuple(range(CROWD)),
        assignment=Conversation(devices.terms(), devices.roster).assignment,
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
    first, last, closed = (round(bytes_ / BIG) for bytes_ in dealer.held)
    assert first == CROWD - 2, "of those who neither refused nor never agreed"
    assert last == 1
    assert closed == 0
