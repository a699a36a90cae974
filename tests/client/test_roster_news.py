"""Lists of members that a device holds and its coordinator has lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client.session import Session
from fedsys.wire import fleet_pb2
from fedsys.wire.roster import RosterStatement
from fedsys.wire.roster_chain import shortest
from tests.client.devices import Conversation, Devices, offer


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    return Devices(tmp_path)


def without(devices: Devices, node: int, *, colluders: int = 0) -> RosterStatement:
    """The next list, which omits a node; 0 omits nobody."""
    members = {key: value for key, value in devices.roster.members.items() if key != node}
    return RosterStatement(
        version=2, previous=devices.roster.hash, members=members, colluders=colluders
    )


def announce(session: Session, devices: Devices, statement: RosterStatement) -> None:
    news = fleet_pb2.RosterNews(roster=[devices.sign(statement)])
    assert session.handle(fleet_pb2.Down(roster=news)) is None


def test_a_new_job_under_a_list_whose_member_was_removed_is_refused(devices: Devices) -> None:
    device = devices.all[0]
    announce(device.session, devices, without(devices, 3))
    answer = device.handle(offer(devices.terms()))
    assert "version 2, which removed node 3: was the coordinator restored" in answer.refusal.reason


def test_a_new_job_under_a_list_that_expected_fewer_colluders_is_refused(devices: Devices) -> None:
    device = devices.all[0]
    announce(device.session, devices, without(devices, 0, colluders=1))
    assert (
        "expects 1 colluders instead of 0" in device.handle(offer(devices.terms())).refusal.reason
    )


def test_a_job_that_was_agreed_to_before_goes_on(devices: Devices) -> None:
    terms = devices.agree()
    announce(devices.all[0].session, devices, without(devices, 3))
    again = devices.start(0)
    assert again.handle(offer(terms)).consent.terms == terms.digest


def test_lists_that_the_coordinator_lost_are_sent_back_as_they_were_signed(
    devices: Devices,
) -> None:
    session = devices.all[0].session
    announce(session, devices, without(devices, 3))
    hello = session.hello().hello
    assert (hello.roster_version, hello.roster_hash) == (2, without(devices, 3).hash)
    wanted = fleet_pb2.Down(roster_wanted=fleet_pb2.RosterWanted(after=1))
    answer = session.handle(wanted)
    assert answer is not None
    assert list(answer.roster.roster) == [devices.sign(without(devices, 3))]
    wanted.roster_wanted.after = 2
    answer = session.handle(wanted)
    assert answer is not None
    assert not answer.roster.roster


def test_a_greeting_tells_what_was_spent_with_this_coordinator_and_no_other(
    devices: Devices,
) -> None:
    talk = Conversation(devices, devices.agree())
    session = devices.all[0].session
    assert not session.hello().hello.jobs
    talk.invite(devices.all[0], 0)
    (spent,) = session.hello().hello.jobs
    assert (spent.job, spent.round) == (b"j" * 32, 1)
    assert spent.promised > 0
    record = session.journal.jobs[(b"j" * 32).hex()]
    record.signer = "another coordinator's"
    assert not session.hello().hello.jobs


def changed(devices: Devices, before: RosterStatement, after: RosterStatement) -> Any:
    """A list as the change that makes it, signed as a whole."""
    signed = devices.sign(after)
    signed.statement = shortest(before, after)
    return signed


def test_what_changes_is_durable_and_says_the_same_after_a_restart(devices: Devices) -> None:
    two = without(devices, 3)
    three = two.successor({**two.members, 9: bytes([9]) * 32}, colluders=0)
    session = devices.all[0].session
    news = [changed(devices, devices.roster, two), changed(devices, two, three)]
    assert session.handle(fleet_pb2.Down(roster=fleet_pb2.RosterNews(roster=news))) is None
    for held in (session.chain, devices.start(0).session.chain):
        assert held.newest == three
        assert held.find(2) == two
        assert held.find(1) == devices.roster
    refused = devices.all[0].handle(offer(devices.terms())).refusal.reason
    assert "version 2, which removed node 3" in refused
    wanted = fleet_pb2.Down(roster_wanted=fleet_pb2.RosterWanted(after=1))
    answer = devices.all[0].session.handle(wanted)
    assert answer is not None
    assert list(answer.roster.roster) == news


def test_a_change_that_nobody_signed_is_refused_and_forgotten(devices: Devices) -> None:
    two = without(devices, 3)
    forged = changed(devices, devices.roster, two)
    forged.signature = bytes(64)
    session = devices.all[0].session
    answer = session.handle(fleet_pb2.Down(roster=fleet_pb2.RosterNews(roster=[forged])))
    assert answer is not None
    assert "not signed by the pinned authority" in answer.refusal.reason
    assert devices.start(0).session.chain.newest == devices.roster


def test_a_device_that_began_with_a_later_list_gives_back_those_after_it(tmp_path: Path) -> None:
    devices = Devices(tmp_path)
    two = without(devices, 3)
    three = two.successor({**two.members, 9: bytes([9]) * 32}, colluders=0)
    credentials = devices.all[0].session.credentials
    (credentials.folder / "roster.jsonl").write_bytes(b"")
    session = devices.start(0).session
    assert session.hello().hello.roster_version == 0
    news = [devices.sign(two), changed(devices, two, three)]
    welcome = fleet_pb2.Down(welcome=fleet_pb2.Welcome(protocol=1, roster=news))
    assert session.handle(welcome) is None
    assert session.hello().hello.roster_version == 3
    assert devices.start(0).session.chain.newest == three, "also after a restart"
    for held, expected in ((0, news), (1, news), (2, news[1:]), (3, []), (2**63, [])):
        answer = session.handle(fleet_pb2.Down(roster_wanted=fleet_pb2.RosterWanted(after=held)))
        assert answer is not None
        assert list(answer.roster.roster) == expected
