"""Countersignatures are kept next to the ledger as they come, and only if they are of it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsys.privacy import Ledger, Signer, make_plan
from fedsys.run_folder import RunFolder
from fedsys.wire import fleet_pb2
from fedsys.wire.countersign import FILE, NO_HEAD, Countersignature, message
from fedsys.wire.roster import RosterStatement
from server.deployed.countersignatures import Countersignatures
from server.home.state import State
from server.job import Job

JOB = bytes(range(32))
TERMS = bytes([5] * 32)
MODEL = "0d" * 32
NODES = (3, 7)
KEYS = {node: Ed25519PrivateKey.from_private_bytes(bytes([node] * 32)) for node in NODES}
ROSTER = RosterStatement(
    version=1,
    previous=b"",
    members={node: key.public_key().public_bytes_raw() for node, key in KEYS.items()},
)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job with two committed rounds."""
    plan = make_plan(
        mechanism="none", population=2, expected_cohort=2, rounds=2, dimension=3, clip=1.0,
        delta=1e-5, sampling="fixed", cap=2, min_survivors=1,
    )  # fmt: skip
    folder = RunFolder(tmp_path)
    header = {"initial_weights_sha256": MODEL}
    ledger = Ledger.create(folder.ledger, folder.private, signer=Signer.generate(), header=header)
    for number in (1, 2):
        ledger.reserve(number, {"event": plan.event().to_json()})
        body = {"weights_sha256": MODEL}
        ledger.commit(number, body, sampled=[0, 1], survivors=[0, 1])
    return cast(Job, SimpleNamespace(ledger=ledger, folder=folder, plan=plan))


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(f"sqlite:///{tmp_path / 'state.sqlite'}")


def book(state: State, job: Job) -> Countersignatures:
    found = Countersignatures(state)
    found.expect(JOB, id="1", terms=TERMS, roster=ROSTER, job=job)
    return found


def given(
    node: int, round: int, head: str, *, by: int | None = None, **change: Any
) -> fleet_pb2.Countersignature:
    values: dict[str, Any] = {
        "round": round,
        "client": 0,
        "key": bytes(32),
        "terms": TERMS,
        "ledger_head": bytes.fromhex(head),
        "previous": NO_HEAD,
        "weights": bytes.fromhex(MODEL),
        "uploaded": True,
        "nonce": bytes([node] * 16),
        "invitations": round,
        "uploads": round,
    }
    unsigned = Countersignature(**{**values, **change})
    signature = KEYS[by or node].sign(message(JOB, unsigned))
    return dataclasses.replace(unsigned, signature=signature).to_wire(JOB)


def lines(job: Job) -> list[tuple[int, int]]:
    path = job.folder.path / FILE
    found = [Countersignature.parse(raw, "line") for raw in path.read_bytes().splitlines()]
    assert all(each.holds(JOB) for each in found)
    return [(each.round, each.client) for each in found]


def test_they_are_kept_once_and_for_their_owner_alone(state: State, job: Job) -> None:
    words = book(state, job)
    heads = job.ledger.committed
    for node, round in ((7, 1), (3, 1), (7, 1), (3, 2)):
        words.take(node, given(node, round, heads[round]))
    assert lines(job) == [(1, 1), (1, 0), (2, 0)]
    assert (job.folder.path / FILE).stat().st_mode & 0o077 == 0


def test_what_is_not_of_this_ledger_is_not_kept(state: State, job: Job) -> None:
    words = book(state, job)
    heads = job.ledger.committed
    words.take(3, given(3, 1, heads[2]))  # another line
    words.take(3, given(3, 3, heads[2]))  # a round that is not committed
    words.take(3, given(3, 1, heads[1], by=7))  # another's signature
    words.take(9, given(3, 1, heads[1]))  # nobody on the roster
    changes: list[dict[str, Any]] = [
        {"terms": bytes(32)},
        {"weights": bytes(32)},
        {"previous": bytes.fromhex(heads[2])},
        {"previous": bytes([1] * 32)},
        {"nonce": b""},
    ]
    for change in changes:
        words.take(3, given(3, 1, heads[1], **change))
    foreign = given(3, 1, heads[1])
    foreign.job = bytes(32)
    words.take(3, foreign)
    assert not (job.folder.path / FILE).exists()
    words.take(3, given(3, 1, heads[1]))
    assert lines(job) == [(1, 0)]


def test_what_a_crash_kept_from_the_file_is_added(state: State, job: Job) -> None:
    heads = job.ledger.committed
    words = book(state, job)
    words.take(3, given(3, 1, heads[1]))
    words.take(7, given(7, 1, heads[1]))
    path = job.folder.path / FILE
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:cut])
        again = book(state, job)
        assert sorted(lines(job)) == [(1, 0), (1, 1)]
        again.take(7, given(7, 2, heads[2]))
        assert sorted(lines(job)) == [(1, 0), (1, 1), (2, 1)]
        with state.transaction() as session:
            from server.home.state import CountersignatureRow

            session.query(CountersignatureRow).filter_by(round=2).delete()


def test_what_a_failed_write_tore_is_mended_by_the_next(
    state: State, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, heads = book(state, job), job.ledger.committed
    words.take(3, given(3, 1, heads[1]))
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        write(descriptor, data[:20])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            words.take(7, given(7, 1, heads[1]))
    words.take(7, given(7, 1, heads[1]))
    assert lines(job) == [(1, 0), (1, 1)]


def test_a_flood_of_wrong_ones_is_logged_a_few_times(
    state: State, job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    words = book(state, job)
    wrong = given(3, 1, job.ledger.committed[2])
    for _ in range(1000):
        words.take(3, wrong)
    assert len(caplog.records) == 10
    assert "no more of this node's are logged" in caplog.records[-1].getMessage()
    words.take(7, given(7, 1, job.ledger.committed[2]))
    assert len(caplog.records) == 11
