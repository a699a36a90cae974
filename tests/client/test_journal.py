"""What a device has spent is on its disk before it answers, whatever fails in between."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from client.journal import JobRecord, Journal
from client.policy import Policy, QueryPolicy
from fedsys.errors import ConfigError
from fedsys.privacy.accounting.costs import steps_epsilon
from fedsys.privacy.events import GaussianStep
from fedsys.wire import fleet_pb2
from tests.client.devices import Conversation, Devices, offer, plan_of

JOB = b"j" * 32


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    return Devices(tmp_path)


def full(_descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def agreed(devices: Devices) -> Conversation:
    return Conversation(devices, devices.agree())


def another(talk: Conversation, number: int) -> Conversation:
    return Conversation(talk.devices, talk.terms, number)


def test_a_round_that_cannot_be_counted_is_not_answered(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, device = agreed(devices), devices.all[0]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for _ in range(2):  # the second time, too: what failed was not remembered as done
            answer = talk.invite(device, 0)
            assert "journal.json: cannot be written: no space" in answer.refusal.reason
        assert device.session.journal.jobs[JOB.hex()].joined == []
    assert talk.invite(device, 0).HasField("answer")
    assert Journal(devices.root / "device0" / "journal.json").jobs[JOB.hex()].joined == [1]


def test_terms_that_cannot_be_written_are_not_agreed_to(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, terms = devices.all[0], devices.terms()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert device.handle(offer(terms)).HasField("refusal")
        assert not device.session.journal.jobs
    assert device.handle(offer(terms)).HasField("consent")


def test_participations_are_limited_across_restarts(devices: Devices) -> None:
    """Two rounds are the owner's limit; a device that forgets at every restart would join all."""
    talk = agreed(devices)
    accepted = []
    for number in range(1, 6):
        device = devices.all[0] = devices.start(0)
        device.policy[0] = dataclasses.replace(device.policy[0], max_participations=2)
        device.handle(offer(talk.terms))
        accepted.append(another(talk, number).invite(device, 0).HasField("answer"))
    assert accepted == [True, True, False, False, False]


def test_the_count_is_of_other_rounds(devices: Devices) -> None:
    """A device that died between its count and its first answer may still take part."""
    talk, device = agreed(devices), devices.all[0]
    device.session.journal.join(JOB, 1)
    again = devices.start(0)
    again.policy[0] = Policy(max_participations=1, epsilon=10.0)
    again.handle(offer(talk.terms))
    assert talk.invite(again, 0).HasField("answer")
    assert again.session.journal.others(JOB, 1) == 0
    assert again.session.journal.others(JOB, 2) == 1


def test_a_lost_store_does_not_open_a_round_again(devices: Devices) -> None:
    """The vector left; a store that somebody deleted must not let another one follow."""
    talk = agreed(devices)
    assert talk.invite(devices.all[0], 0).HasField("answer")
    (devices.root / "device0" / "round.state").unlink()
    devices.reboot()
    device = devices.start(0)
    device.handle(offer(talk.terms))
    fresh = another(talk, 1)
    assert "this device has already sent a vector" in fresh.invite(device, 0).refusal.reason
    assert device.worker.trained == 0
    for number, expected in ((3, True), (2, False)):
        assert another(talk, number).invite(device, 0).HasField("answer") is expected


def test_what_a_killed_process_wrote_is_made_certain_before_it_is_relied_upon(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = agreed(devices)
    talk.invite(devices.all[0], 0)
    flushed: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    device = devices.start(0)
    device.handle(offer(talk.terms))
    monkeypatch.setattr(os, "fsync", noted)
    assert talk.invite(device, 0).HasField("answer")
    assert any("journal.json" in name for name in flushed)
    assert str(devices.root / "device0") in flushed  # the folder: its new name is durable


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"journal\.json: cannot be written"):
        Journal.begin(tmp_path / "missing" / "journal.json")


def test_a_lost_journal_is_not_begun_anew(devices: Devices) -> None:
    """Otherwise a device whose count somebody deleted would spend its owner's epsilon twice."""
    talk, path = agreed(devices), devices.root / "device0" / "journal.json"
    talk.invite(devices.all[0], 0)
    path.unlink()
    with pytest.raises(ConfigError) as refused:
        devices.start(0)
    said = str(refused.value)
    for part in (f"{path}: is gone", "epsilon", "begin at 0", "backup", "fedsys agent leave"):
        assert part in said
    assert not path.exists()


def test_a_running_device_counts_on_where_its_journal_was_deleted(devices: Devices) -> None:
    talk, device = agreed(devices), devices.all[0]
    talk.invite(device, 0)
    path = devices.root / "device0" / "journal.json"
    path.unlink()
    assert another(talk, 2).invite(device, 0).HasField("answer")
    assert Journal(path).jobs[JOB.hex()].joined == [1, 2]


def test_a_folder_that_is_joined_again_counts_on(devices: Devices) -> None:
    talk = agreed(devices)
    talk.invite(devices.all[0], 0)
    before = devices.all[0].session.journal.spent("guarantee")
    devices.all[0].session.credentials.store()
    journal = Journal(devices.root / "device0" / "journal.json")
    assert journal.spent("guarantee") == before > 0


@pytest.mark.parametrize(
    "damage",
    [b"", b"\xff", b"[]", b'{"version": 2}', b'{"version": 2, "jobs": [{"plan": {}}]}'],
)
def test_a_damaged_journal_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal.json"
    path.write_bytes(damage)
    for begin in (Journal, Journal.begin):
        with pytest.raises(ConfigError, match=r"journal\.json: damaged .*restore it from a backup"):
            begin(path)
    assert path.read_bytes() == damage


def test_queries_and_training_count_together_and_the_eleventh_is_refused_by_the_device(
    devices: Devices,
) -> None:
    """A forged coordinator has eleven jobs agreed to while nothing is spent, and then asks for all
    of them: the device's own count, by composition, ends it."""
    plan = plan_of(3, rounds=1)
    device = devices.all[0]
    for each in devices.all:
        each.policy[0] = dataclasses.replace(each.policy[0], queries=QueryPolicy())
    jobs = [
        devices.agree(
            job=bytes([number]) * 32,
            plan=plan,
            kind="train" if number == 0 else "evaluate",
            questions=() if number == 0 else ({"ask": "count", "name": "rows"},),
        )
        for number in range(12)
    ]
    alone = JobRecord(job="", name="", terms="", plan=plan).after(1, "guarantee")
    step = GaussianStep(multiplier=plan.event().outsider_step().multiplier, rate=1.0)
    limit = steps_epsilon({step: 11}, plan.delta * 0.99)
    device.policy[0] = dataclasses.replace(device.policy[0], epsilon=limit)
    for number, terms in enumerate(jobs[:11]):
        answer = Conversation(devices, terms).invite(device, 0)
        assert answer.HasField("answer"), (number, answer)
    spent = device.session.journal.spent("guarantee")
    assert spent < 0.4 * 11 * alone
    answer = Conversation(devices, jobs[11]).invite(device, 0)
    assert "epsilon would reach" in answer.refusal.reason
    assert answer.refusal.cause == fleet_pb2.Refusal.EPSILON
    assert jobs[11].job.hex() not in [
        job for job, record in device.session.journal.jobs.items() if record.joined
    ]
    again = devices.start(0).session.journal
    assert again.spent("guarantee") == pytest.approx(spent)
