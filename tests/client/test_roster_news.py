"""Lists of members that a device holds and its coordinator has lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.session import Session
from fedsys.wire import fleet_pb2
from fedsys.wire.roster import RosterStatement
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
