"""An epoch's conversation: whom it asks, in which session, and what of their answers it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from fedsys.errors import Cause
from fedsys.wire import fleet_pb2
from fedsys.wire.terms import Buffering
from server.coordinator import OpenRound
from server.deployed.conversation import Deadlines
from server.deployed.crowd import Crowd
from server.deployed.epoch import Buffer, DeployedEpoch, Surroundings
from server.deployed.fleet import Event, Fleet, Link, Said
from server.deployed.secure_epoch import SecureEpoch
from server.rounds import RoundAborted
from tests.client.devices import Devices
from tests.client.epochs import NONE, Epoch, buffered_plan, buffered_terms


class Host:
    """An epoch over links whose other ends are looked at, and answered, by the test."""

    def __init__(self, root: Path) -> None:
        self.devices = Devices(root, count=4, plan=buffered_plan(4, **NONE))
        buffering = Buffering(concurrency=4, epoch=3, max_staleness=2)
        self.talk = Epoch(self.devices, buffered_terms(self.devices, buffering=buffering))
        self.fleet, self.crowd = Fleet(), Crowd(concurrency=4)
        self.refused: list[tuple[int, Cause]] = []
        self.stages: list[str] = []
        plan = self.talk.terms.plan
        self.secure = SecureEpoch(
            assignment=self.talk.assignment,
            cohort=(0, 1, 2, 3),
            mechanism=plan.build_mechanism(),
            roster=self.devices.roster.roster,
            params=self.talk.announced,
            prekeys=self.talk.keys,
            size=plan.cap,
            buffers=3,
        )
        self.epoch = DeployedEpoch(
            self.secure,
            self.crowd,
            Surroundings(
                members=self.devices.roster.nodes,
                fleet=self.fleet,
                deadlines=Deadlines(stage=0.3, training=0.6, reconnect=0.2),
                most_stale=2,
                able=lambda: frozenset(range(4)),
                elsewhere=self.elsewhere,
                entered=self.stages.append,
                refused=lambda _round, client, cause, _why: self.refused.append((client, cause)),
            ),
        )
        self.links = {client: self.connect(client) for client in range(4)}
        self.forget_events()  # they arrived, were offered the job and agreed
        self.epoch.invite_all(0)
        open_ = OpenRound(number=1, cohort=(), assignment=self.talk.assignment)
        self.buffer = Buffer(open=open_, version=0)

    def connect(self, client: int) -> Link:
        link = Link(node=client + 1)
        self.fleet.open(link)
        return link

    def forget_events(self) -> None:
        while not self.fleet.events.empty():
            self.fleet.events.get_nowait()

    def elsewhere(self, event: Event) -> None:
        if isinstance(event, Said) and event.message.HasField("trained"):
            found = event.message.trained
            self.crowd.done(event.node - 1, round=found.round, version=found.version)
        self.epoch.note(event)

    def say(self, client: int, **content: Any) -> None:
        self.fleet.events.put_nowait(Said(client + 1, fleet_pb2.Up(**content)))

    def told(self, link: Link) -> list[str]:
        """Kinds of what was sent, and taken off the link."""
        kinds = []
        while not link.outgoing.empty():
            raw = link.outgoing.get_nowait()
            assert raw is not None
            kinds.append(str(fleet_pb2.Down.FromString(raw).WhichOneof("content")))
        return kinds

    def fill(self, *steps: Callable[[], None]) -> str:
        """Fill the buffer while steps are taken, a moment apart; why it was given up."""

        async def act() -> None:
            for step in steps:
                await asyncio.sleep(0.05)
                step()

        async def both() -> None:
            acting = asyncio.create_task(act())
            try:
                await self.epoch.fill(self.buffer)
            finally:
                await acting

        with pytest.raises(RoundAborted) as caught:
            asyncio.run(asyncio.wait_for(both(), 20))
        assert caught.value.nothing_summed
        return str(caught.value)

    def trained(self, clients: Iterable[int], version: int = 0, round: int = 1) -> None:
        for client in clients:
            found = fleet_pb2.Trained(
                job=self.talk.terms.job, round=round, version=version, done=True
            )
            self.say(client, trained=found)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_each_is_invited_with_the_model_and_begins_with_it(host: Host) -> None:
    reason = host.fill()
    assert reason.startswith("a buffer could not be filled: 0 of 3 uploads came")
    assert [host.told(link) for link in host.links.values()] == [
        ["model", "invitation", "begin"]
    ] * 4
    assert host.buffer.lost == 4  # all of them were waited for, for as long as training may take
    assert host.stages == ["upload"]


def test_no_more_are_asked_for_their_upload_than_have_a_place(host: Host) -> None:
    seen: list[tuple[list[int], list[int]]] = []
    host.fill(
        lambda: host.trained([3, 2, 1, 0]),
        lambda: seen.append((list(host.crowd.asked), list(host.crowd.trained))),
    )
    assert seen == [([3, 2, 1], [0])]


def test_a_place_that_stays_empty_goes_to_the_next(host: Host) -> None:
    host.fill(lambda: host.trained([3, 2, 1, 0]))
    collected = [host.told(link).count("collect") for link in host.links.values()]
    assert collected == [1, 1, 1, 1]


def test_who_was_not_asked_is_not_heard(host: Host) -> None:
    answer = fleet_pb2.Answer(job=host.talk.terms.job, round=1, message=b"\x01" * 40)

    def uninvited() -> None:
        host.trained([0], version=1)  # never begun
        host.trained([1], round=2)
        host.say(2, answer=answer)

    host.fill(uninvited)
    assert not any("collect" in host.told(link) for link in host.links.values())
    assert not host.refused
    assert not host.secure.blamed


def test_nothing_is_sent_in_a_session_that_was_not_invited(host: Host) -> None:
    """A new process listens there, which was not offered the job yet."""
    again = host.connect(0)
    host.forget_events()  # nobody has heard of it
    assert not host.epoch.there(0)
    assert sorted(host.epoch.present.values()) == [1, 2, 3]
    host.fill(lambda: host.trained([0]))
    assert host.told(again) == []


def test_a_device_that_agreed_again_is_invited_again(host: Host) -> None:
    fresh: list[Link] = []

    def restart() -> None:
        host.told(host.links[0])
        fresh.append(host.connect(0))

    host.fill(restart, lambda: host.say(0, consent=fleet_pb2.Consent(job=host.talk.terms.job)))
    kinds = host.told(fresh[0])
    assert kinds[:2] == ["model", "invitation"]


def test_a_refusal_ends_a_turn_or_all_of_them(host: Host) -> None:
    job = host.talk.terms.job

    def refuse() -> None:
        passing = fleet_pb2.Refusal(job=job, round=1, passing=True, cause=fleet_pb2.Refusal.PAUSED)
        final = fleet_pb2.Refusal(job=job, round=1, cause=fleet_pb2.Refusal.STALE)
        host.say(0, refusal=passing)
        host.say(1, refusal=final)
        host.say(1, refusal=final)

    host.fill(refuse)
    assert host.refused == [(0, Cause.PAUSED), (1, Cause.STALE)]
    assert host.crowd.next_idle([0]) == []
    host.crowd.begin_buffer()
    assert host.crowd.next_idle([0]) == [0]
    assert host.buffer.lost == 2


def test_a_wrong_upload_leaves_its_sender_out(host: Host) -> None:
    answer = fleet_pb2.Answer(job=host.talk.terms.job, round=1, message=b"\x01" * 40)
    host.fill(lambda: host.trained([0]), lambda: host.say(0, answer=answer))
    assert host.refused == [(0, Cause.PROTOCOL)]
    assert not host.buffer.staleness
