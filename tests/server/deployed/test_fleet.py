"""Sessions and their queues."""

from __future__ import annotations

import asyncio

import pytest

from fedsys.wire import fleet_pb2
from server.deployed.fleet import Arrived, Fleet, Left, Link, Said


def test_a_second_session_of_a_node_ends_the_first() -> None:
    async def scene() -> None:
        fleet = Fleet()
        first, second = Link(node=1), Link(node=1)
        fleet.open(first)
        fleet.open(second)
        farewell = fleet_pb2.Down.FromString(first.outgoing.get_nowait() or b"")
        assert farewell.goodbye.reason == fleet_pb2.Goodbye.REPLACED
        assert first.outgoing.get_nowait() is None
        fleet.closed(first)  # late: the second stays
        assert fleet.links == {1: second}
        fleet.closed(second)
        events = [fleet.events.get_nowait() for _ in range(fleet.events.qsize())]
        assert events == [Arrived(1), Arrived(1), Left(1)]

    asyncio.run(scene())


def test_a_copied_folder_does_not_end_the_first_session_and_both_are_told() -> None:
    async def scene() -> None:
        fleet = Fleet()
        first = Link(node=1, instance=b"a" * 16, address="ipv4:10.0.0.1:5")
        again = Link(node=1, instance=b"a" * 16)
        copy = Link(node=1, instance=b"b" * 16, address="ipv4:10.0.0.2:5")
        assert fleet.rival_of(first) is None
        fleet.open(first)
        assert fleet.rival_of(again) is None, "the same process, over a new connection"
        assert fleet.rival_of(copy) is first
        for _ in range(3):  # it tries again
            assert "10.0.0.1" in fleet.warn_of_copy(copy, first)
        notice = fleet_pb2.Down.FromString(first.outgoing.get_nowait() or b"").notice.text
        assert "10.0.0.2" in notice
        assert first.outgoing.empty(), "told once"
        assert fleet.copies == {1: notice}

    asyncio.run(scene())


def test_absence_is_counted_from_the_end_of_the_session() -> None:
    async def scene() -> None:
        now = [100.0]
        fleet = Fleet(clock=lambda: now[0])
        assert fleet.absent_since(1) == 100.0
        link = Link(node=1)
        fleet.open(link)
        assert fleet.absent_since(1) is None
        now[0] = 200.0
        fleet.closed(link)
        assert fleet.absent_since(1) == 200.0
        assert not fleet.send(1, fleet_pb2.Down())

    asyncio.run(scene())


def test_what_is_pending_is_counted_down_when_it_is_taken() -> None:
    async def scene() -> None:
        fleet, link = Fleet(), Link(node=1)
        for _ in range(3):
            link.pending += 1
            fleet.events.put_nowait(Said(1, fleet_pb2.Up(), link))
        await fleet.events.get()
        fleet.events.get_nowait()
        assert link.pending == 1

    asyncio.run(scene())


def test_only_an_open_round_s_members_may_send_much_those_too_who_come_back() -> None:
    """An upload over the small limit, from an agent whose connection broke in the round."""

    async def scene() -> None:
        fleet, first, second, other = Fleet(), Link(node=1), Link(node=1), Link(node=2)
        fleet.open(first)
        fleet.open(other)
        fleet.allow(8 << 20, [1])
        assert (first.answer, other.answer) == (8 << 20, 0)
        fleet.closed(first)
        fleet.open(second)
        assert second.answer == 8 << 20
        fleet.allow(0, ())
        assert second.answer == 0
        assert fleet.largest_answer == 8 << 20

    asyncio.run(scene())


def test_an_agent_that_reads_nothing_holds_no_more_than_a_few_models() -> None:
    async def scene() -> None:
        fleet, link = Fleet(), Link(node=1)
        fleet.open(link)
        model = bytes(8 << 20)
        for _ in range(5):
            fleet.send_bytes(1, model)
        assert not link.overrun.is_set()
        for _ in range(5):  # read, and sent again
            link.outgoing.get_nowait()
            fleet.send_bytes(1, model)
        assert not link.overrun.is_set()
        fleet.send_bytes(1, model)
        assert link.overrun.is_set()

    asyncio.run(scene())


def test_nobody_is_read_while_too_much_waits_to_be_taken() -> None:
    async def scene() -> None:
        fleet = Fleet()
        for node in range(5):
            fleet.events.put_nowait(Said(node, fleet_pb2.Up(), size=4 << 20))
        reader = asyncio.create_task(fleet.room())
        for _ in range(3):
            await asyncio.sleep(0)
        assert not reader.done()
        await fleet.next_event(1.0)  # 16 MiB are left
        await asyncio.wait_for(reader, 60)
        fleet.events.put_nowait(Said(5, fleet_pb2.Up()))  # small ones never fill it
        await asyncio.wait_for(fleet.room(), 60)

    asyncio.run(scene())


def test_what_happens_at_a_jobs_devices_is_that_jobs_alone() -> None:
    async def scene() -> None:
        fleet, link = Fleet(), Link(node=1)
        part = fleet.part([1, 2])
        fleet.open(link)
        link.pending += 1
        fleet.events.put_nowait(Said(1, fleet_pb2.Up(), link))
        fleet.events.put_nowait(Arrived(3))
        assert fleet.events.get_nowait() == Arrived(3)
        assert fleet.events.empty()
        assert await part.next_event(60) == Arrived(1)
        with pytest.raises(ValueError, match=r"nodes \[2\] serve another job"):
            fleet.part([2, 3])
        fleet.release(part)
        assert link.pending == 1, "what nobody took waits still"
        assert fleet.events.get_nowait() == Said(1, fleet_pb2.Up())
        assert link.pending == 0
        fleet.part([2, 3])

    asyncio.run(scene())


def test_rounds_of_two_jobs_allow_and_forbid_their_own_devices_alone() -> None:
    async def scene() -> None:
        fleet, first, second = Fleet(), Link(node=1), Link(node=2)
        one, other = fleet.part([1]), fleet.part([2])
        fleet.open(first)
        fleet.open(second)
        one.allow(100, [1])
        other.allow(200, [2])
        assert (first.answer, second.answer) == (100, 200)
        one.allow(0, ())
        assert (first.answer, second.answer) == (0, 200)

    asyncio.run(scene())


def test_a_job_that_takes_nothing_does_not_keep_others_from_being_read() -> None:
    async def scene() -> None:
        fleet = Fleet()
        part = fleet.part([1])
        for _ in range(5):
            fleet.events.put_nowait(Said(1, fleet_pb2.Up(), size=4 << 20))
        await asyncio.wait_for(fleet.room(2), 60)
        reader = asyncio.create_task(fleet.room(1))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not reader.done()
        fleet.release(part)  # its job is over
        await asyncio.wait_for(reader, 60)

    asyncio.run(scene())
