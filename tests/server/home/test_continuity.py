"""A coordinator that came back from an older backup, and devices that remember what it forgot."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from client.identity import TlsKey
from fedsys.errors import ConfigError, EnrollmentError
from fedsys.wire import fleet_pb2
from server.deployed.fleet import Link
from server.deployed.lost_rosters import compare_greeting, take_back
from server.home.backup import back_up, move, restore
from server.home.enrollment import Registry
from server.home.folder import Home
from server.home.pki import Peer, pem
from server.home.recovery import recover
from server.home.state import JobRow, MarkRow, State
from simulations.testbed.joining import join


def hello(version: int, digest: bytes = b"", *jobs: fleet_pb2.Spent) -> fleet_pb2.Hello:
    return fleet_pb2.Hello(roster_version=version, roster_hash=digest, jobs=jobs)


class Fleet:
    """A coordinator with three devices, a backup, and what happened after it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = Home.create(root / "c", hosts=["localhost"], epsilon=20.0)
        state = State.open(self.home.path)
        registry = self.home.registry(state)
        for name in ("s0", "s1", "s2"):
            join(registry, name)
        with state.transaction() as session:
            session.add(
                JobRow(
                    id="j", name="job", config="", status="running", submitted_at=0.0,
                    started_at=1.0, ledger="aa" * 32, round=3, rounds=9, promised=2.0, spent=1.0,
                )
            )  # fmt: skip
        back_up(self.home, root / "old.tar")
        registry.revoke("s0")
        join(registry, "s3")
        self.newest = registry.chain().newest
        self.lists = registry.statements(3)
        state.close()

    def restored(self) -> tuple[State, Registry]:
        assert restore(self.root / "old.tar", self.root / "again")
        home = Home.open(self.root / "again")
        state = State.open(home.path)
        return state, home.registry(state)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def statuses(state: State) -> dict[str, str]:
    return {row.name: row.status for row in state.nodes()}


def asked(link: Link) -> fleet_pb2.Down:
    raw = link.outgoing.get_nowait()
    assert raw is not None
    down: fleet_pb2.Down = fleet_pb2.Down.FromString(raw)
    return down


def test_a_revocation_comes_back_from_the_devices(fleet: Fleet) -> None:
    state, registry = fleet.restored()
    assert statuses(state)["s0"] == "active"
    assert "restored on" in registry.continuity.held
    assert fleet.newest is not None
    link = Link(node=2)
    compare_greeting(registry, link, hello(fleet.newest.version, fleet.newest.hash))
    assert "s1 holds roster version 5, and this coordinator 3" in [
        row.text for row in registry.continuity.holds()
    ]
    with pytest.raises(ConfigError, match="let that device connect"):
        recover(state, registry, act=True)
    with pytest.raises(EnrollmentError, match="restored from an older backup"):
        join(registry, "s9")  # it would be signed as version 4, which is taken
    assert asked(link).roster_wanted.after == 3
    news = [
        fleet_pb2.SignedRoster(statement=each.statement, signature=each.signature)
        for each in fleet.lists
    ]
    take_back(registry, link, fleet_pb2.RosterNews(roster=news[:1]))
    assert asked(link).roster_wanted.after == 4
    take_back(registry, link, fleet_pb2.RosterNews(roster=news[1:]))
    assert registry.roster_version() == 5
    assert statuses(state) == {"s0": "revoked", "s1": "active", "s2": "active",
                               "restored-4": "active"}  # fmt: skip
    state.close()


def test_what_is_not_known_is_counted_at_its_worst(fleet: Fleet) -> None:
    state, registry = fleet.restored()
    link = Link(node=2)
    known = fleet_pb2.Spent(job=b"\xaa" * 32, round=5, promised=2.0)
    lost = fleet_pb2.Spent(job=b"\xbb" * 32, round=1, promised=4.0)
    fine = fleet_pb2.Spent(job=b"\xaa" * 32, round=3, promised=2.0)
    registry.continuity.greeted(3, hello(3, b"", fine))
    assert len(registry.continuity.holds()) == 1, "what the backup has as well is no news"
    compare_greeting(registry, link, hello(3, b"", known, lost))
    shown = recover(state, registry, act=False)
    assert "s1 took part in round 5 of job j, of which this coordinator knows 3" in shown
    assert state.job("j").status == "running", "shown, not done"
    recover(state, registry, act=True)
    assert registry.continuity.held == ""
    job = state.job("j")
    assert (job.status, job.spent, job.round) == ("failed", 2.0, 5)
    gone = state.job("bb" * 6)
    assert (gone.status, gone.spent) == ("lost", 4.0)
    registry.continuity.greeted(2, hello(3, b"", known, lost))
    assert registry.continuity.held == "", "known by now"
    assert recover(state, registry, act=True) == []
    state.close()


def test_a_second_list_under_a_taken_number_is_noticed(fleet: Fleet) -> None:
    state, registry = fleet.restored()
    newest = registry.chain().newest
    assert newest is not None
    registry.continuity.greeted(2, hello(3, newest.hash))
    assert len(registry.continuity.holds()) == 1
    registry.continuity.greeted(2, hello(3, hashlib.sha256(b"other").digest()))
    with pytest.raises(ConfigError, match="cannot both be true"):
        recover(state, registry, act=True)
    registry.revoke("s1")  # which lied: what it said counts no more
    recover(state, registry, act=True)
    assert registry.chain().newest is not None
    newest = registry.chain().newest
    assert newest is not None
    assert 2 not in newest.members
    state.close()


def test_one_device_cannot_fill_the_database(fleet: Fleet) -> None:
    state, registry = fleet.restored()
    for number in range(10):
        jobs = [fleet_pb2.Spent(job=bytes([number, each] * 16), round=1) for each in range(32)]
        registry.continuity.greeted(2, hello(3, b"", *jobs))
    assert len(registry.continuity.holds()) == 41
    state.close()


def test_a_certificate_that_was_renewed_after_the_backup_is_known_after_recovery(
    fleet: Fleet,
) -> None:
    state, registry = fleet.restored()
    renewed = Peer.of(pem(fleet.home.authority.issue_agent(TlsKey.generate().csr, node=2)))
    with pytest.raises(EnrollmentError, match="no node's"):
        registry.admit(renewed)
    recover(state, registry, act=True)
    assert registry.admit(renewed).name == "s1"
    stray = Peer.of(pem(fleet.home.authority.issue_agent(TlsKey.generate().csr, node=2)))
    state_now = stray.issued
    assert state_now is not None
    with state.transaction() as session:  # as if it had been recovered long before
        session.get_one(MarkRow, "recovered").at = state_now.timestamp() - 60
    with pytest.raises(EnrollmentError, match="no node's"):
        registry.admit(stray)
    state.close()


def test_a_coordinator_that_was_moved_runs_in_one_place_only(fleet: Fleet) -> None:
    move(fleet.home, fleet.root / "moved.tar")
    assert (fleet.root / "moved.tar").stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match=r"was moved to moved\.tar"), fleet.home.alone():
        raise AssertionError
    assert not restore(fleet.root / "moved.tar", fleet.root / "new", hosts=["hq.example"])
    home = Home.open(fleet.root / "new")
    assert home.settings().hosts == ["hq.example"]
    assert home.settings().epsilon == 20.0
    assert home.server_identity().fits
    state = State.open(home.path)
    assert home.registry(state).roster_version() == 5
    assert home.registry(state).continuity.held == ""
    assert state.job("j").status == "running"
    with home.alone():
        pass
    state.close()


def test_what_is_no_backup_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(ConfigError, match="not a backup"):
        restore(tmp_path / "no.tar", tmp_path / "d")
    with pytest.raises(ConfigError, match="not empty"):
        restore(fleet.root / "old.tar", fleet.home.path)
    with pytest.raises(ConfigError, match="exists already"):
        back_up(fleet.home, fleet.root / "old.tar")
    with pytest.raises(ConfigError, match="no such file"):
        restore(tmp_path / "none.tar", tmp_path / "d")
