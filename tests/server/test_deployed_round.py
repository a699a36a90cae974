"""What a device sends wrong costs itself its place in the round, and nobody else; no sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

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
    assert "sent something wrong" in round_.report.refusals[1]


def test_whoever_sends_what_is_asked_is_in_the_sum(tmp_path: Path) -> None:
    secure, round_ = asyncio.run(asyncio.wait_for(round_with(Devices(tmp_path)), 120))
    assert secure.result.included == (0, 1, 2)
    assert not round_.report.refusals
    assert secure.result.total.dtype == np.uint32
