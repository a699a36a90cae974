"""What a device answers, and what it refuses with its reason; no sockets."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
)

from client.admission import check_participation
from client.journal import JobRecord, Journal
from client.policy import ApprovedTask, Policy, QueryPolicy
from client.session import Dismissed
from fedsys.errors import ConfigError, PolicyRefusal, ProtocolError
from fedsys.privacy import PrivacyPlan, from_ring
from fedsys.queries import Sheet, parse
from fedsys.wire import fleet_pb2
from fedsys.wire.roster import RosterStatement, signed_message
from secure_agg import Identity
from tests.client.devices import CODE, PLAN, Book, Conversation, D, Device, Devices, offer, plan_of

NO_NOISE: dict[str, Any] = {"mechanism": "none", "noise_multiplier": 0.0}


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    return Devices(tmp_path)


def agree(devices: Devices, **change: Any) -> Conversation:
    return Conversation(devices, devices.agree(**change))


def refusal(answer: fleet_pb2.Up) -> str:
    assert answer.HasField("refusal"), answer
    return str(answer.refusal.reason)


def run(talk: Conversation, devices: list[Device]) -> None:
    talk.close({k: talk.invite(device, k) for k, device in enumerate(devices)})
    while talk.messages:
        stages = {k: fleet_pb2.Down(stage=talk.stage(k)) for k in talk.messages}
        talk.close({k: devices[k].handle(stage) for k, stage in stages.items()})


def test_a_round_sums_what_the_devices_hold(devices: Devices) -> None:
    talk = agree(devices)
    run(talk, devices.all)
    result = talk.aggregator.result
    assert result.included == (0, 1, 2)
    mechanism = PLAN.build_mechanism()
    mean = mechanism.decode(result.total)
    spread = mechanism.noise_deviation
    assert np.abs(mean - 0.1).max() < 7 * spread  # six Gaussian draws: 2e-11
    assert from_ring(result.total, bits=PLAN.modulus_bits).any()
    assert [device.worker.trained for device in devices.all] == [1, 1, 1]


def test_a_restarted_device_goes_on_where_it_was(devices: Devices) -> None:
    talk = agree(devices)
    talk.close({k: talk.invite(device, k) for k, device in enumerate(devices.all)})
    while talk.messages:
        answers = {}
        for k in talk.messages:
            devices.all[k] = devices.start(k)  # every process dies before every stage
            devices.all[k].handle(offer(talk.terms))
            answers[k] = talk.invite(devices.all[k], k)
        talk.close(answers)
    assert talk.aggregator.result.included == (0, 1, 2)
    assert Journal(devices.root / "device0" / "journal.json").jobs[("6a" * 32)].joined == [1]


def test_a_replayed_round_is_refused(devices: Devices) -> None:
    talk = agree(devices)
    run(talk, devices.all)
    device = devices.start(0)
    device.handle(offer(talk.terms))
    again = Conversation(devices, talk.terms)
    assert "round 1" in refusal(again.invite(device, 0))
    # nor with another model: the round's number is used up
    again.assignment = dataclasses.replace(again.assignment, weights=np.ones(D, np.float32))
    assert refusal(again.invite(device, 0))
    assert device.worker.trained == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task": "mnist"}, "not on the owner's list"),
        ({"options": {"hidden": 5}}, "approved with options"),
        ({"task_sha256": "bad"}, "is not the one that this device has"),
        ({"roster_version": 2}, "was not announced"),
        ({"roster_hash": "00"}, "was not announced"),
        (
            {"plan": PLAN.changed(population=4, expected_cohort=4.0, cap=4)},
            "its roster has 3",
        ),
        ({"plan": PLAN.changed(noise_multiplier=0.5)}, "over the owner's total"),
        (
            {"plan": PLAN.changed(expected_cohort=2.0, **NO_NOISE)},
            "below the owner's min_cohort",
        ),
    ],
)
def test_a_job_that_the_owner_does_not_allow_is_refused(
    devices: Devices, change: dict[str, Any], reason: str
) -> None:
    answer = devices.all[0].handle(offer(devices.terms(**change)))
    assert reason in refusal(answer)
    assert answer.refusal.round == 0


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_clip": 0.5}, "above the owner's max_clip"),
        ({"min_noise_multiplier": 6.0}, "min_noise_multiplier"),
        ({"min_own_noise": 3.0}, "min_own_noise"),
        ({"epsilon": 0.1}, "over the owner's total of 0.1"),
        ({"epsilon_view": "server", "epsilon": 0.5}, "over the owner's total of 0.5"),
        ({"max_roster_version": 0}, "max_roster_version"),
        ({"corrupt": 0.2}, "the owner's policy says corrupt = 0.2"),
        ({"colluders": 1}, "the owner's policy says colluders = 1"),
    ],
)
def test_each_limit_is_enforced_before_anything_is_spent(
    devices: Devices, limits: dict[str, Any], reason: str
) -> None:
    device = devices.all[0]
    device.policy[0] = dataclasses.replace(device.policy[0], **limits)
    assert reason in refusal(device.handle(offer(devices.terms())))
    assert not device.session.journal.jobs


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"min_cohort": 4}, "min_cohort"),
        ({"max_clip": 0.5}, "max_clip"),
        ({"max_participations": 0}, "max_participations"),
        ({"tasks": {}}, "not on the owner's list"),
        ({"tasks": {"digits": ApprovedTask(sha256="ee")}}, "is not what the owner approved"),
        ({"tasks": {"digits": ApprovedTask(sha256=CODE, options={"a": 1})}}, "approved with"),
        ({"corrupt": 0.45}, "the owner's policy says corrupt = 0.45"),
        ({"colluders": 1}, "the owner's policy says colluders = 1"),
        ({"max_roster_version": 0}, "max_roster_version"),
    ],
)
def test_a_limit_tightened_later_counts_in_the_next_round(
    devices: Devices, limits: dict[str, Any], reason: str
) -> None:
    talk, device = agree(devices), devices.all[0]
    device.policy[0] = dataclasses.replace(device.policy[0], **limits)
    assert reason in refusal(talk.invite(device, 0))
    assert not device.session.journal.jobs[talk.terms.job.hex()].joined


def test_evaluations_barred_later_are_refused_between_rounds_of_training(devices: Devices) -> None:
    device = devices.all[0]
    for each in devices.all:
        each.policy[0] = dataclasses.replace(
            each.policy[0], queries=QueryPolicy(allow=("evaluate",))
        )
    asked = {"ask": "mean", "name": "m", "column": "accuracy", "low": 0, "high": 1}
    talk = agree(devices, evaluate_every=1, held_out=0.5, questions=(asked,))
    device.policy[0] = dataclasses.replace(device.policy[0], queries=QueryPolicy(allow=()))
    assert "the owner's queries.allow is []" in refusal(talk.invite(device, 0))
    assert talk.invite(devices.all[1], 1).HasField("answer")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 1}, "differs from the terms"),
        ({"local": {"epochs": 50}}, "differs from the terms"),
        ({"task": "mnist"}, "differs from the terms"),
        ({"terms": b"x" * 32}, "differs from the terms"),
        ({"weights": np.zeros(7, dtype=np.float32)}, "7 weights"),
        ({"clipping": {}}, "adaptive clipping"),
        ({"round": 6}, "round"),
        (
            {"mechanism": PLAN.changed(noise_multiplier=4.0).event().to_json()},
            "not the one agreed to",
        ),
    ],
)
def test_a_round_that_is_not_of_the_terms_is_refused(
    devices: Devices, change: dict[str, Any], reason: str
) -> None:
    talk = agree(devices)
    talk.assignment = dataclasses.replace(talk.assignment, **change)
    talk.number = talk.assignment.round
    assert reason in refusal(talk.invite(devices.all[0], 0))
    assert devices.all[0].worker.trained == 0


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2J", "\u202ejob", "nul\x00", "n" * 201])
def test_a_job_whose_name_would_upset_a_terminal_cannot_be(devices: Devices, name: str) -> None:
    with pytest.raises(ProtocolError, match="too long or not printable"):
        devices.all[0].session.handle(offer(devices.terms(name=name)))


Limits = dict[str, Any]


def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.conditions._busy", lambda: 97.0)


@pytest.mark.parametrize(
    ("limits", "cause", "secret"),
    [
        ({"epsilon": 0.125}, "EPSILON", "0.125"),
        ({"max_clip": 0.375}, "MECHANISM", "0.375"),
        ({"min_own_noise": 37.0}, "MECHANISM", "37"),
        ({"tasks": {"other": ApprovedTask(sha256="ab")}}, "TASK", "other"),
        ({"max_roster_version": 0}, "ROSTER", "max_roster_version"),
        ({"min_cohort": 17}, "COHORT", "17"),
        ({"only_idle": True}, "CONDITIONS", "97"),
        ({"hours": ("00:00-00:00",)}, "CONDITIONS", "hours"),
        ({"min_free_memory_mb": 10**9}, "CONDITIONS", "free"),
    ],
)
def test_a_refusal_tells_its_cause_and_the_owner_s_numbers_only_if_they_let_it(
    devices: Devices,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limits: Limits,
    cause: str,
    secret: str,
) -> None:
    busy(monkeypatch)
    caplog.set_level("INFO")
    talk, device = agree(devices), devices.all[0]
    for explain in (False, True):
        device.policy[0] = dataclasses.replace(device.policy[0], explain=explain, **limits)
        caplog.clear()
        passing = cause == "CONDITIONS"
        again = dataclasses.replace(talk.terms, job=b"k" * 32)
        answer = talk.invite(device, 0) if passing else device.handle(offer(again))
        assert answer.refusal.cause == fleet_pb2.Refusal.Cause.Value(cause)
        assert answer.refusal.passing is passing
        assert (secret in answer.refusal.reason) is explain
        assert answer.refusal.reason or not explain
        assert any(secret in record.getMessage() for record in caplog.records)
        if not explain:
            assert secret.encode() not in answer.SerializeToString()


def test_no_path_of_the_device_leaves_it(
    devices: Devices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = devices.all[0]
    device.policy[0] = dataclasses.replace(device.policy[0], explain=False)

    def unreadable() -> Policy:
        return Policy.load(tmp_path / "private" / "policy.toml")

    monkeypatch.setattr(device.session, "_policy", unreadable)
    answer = device.handle(offer(devices.terms()))
    assert answer.refusal.cause == fleet_pb2.Refusal.DEVICE
    assert answer.refusal.reason == ""


def test_other_terms_for_a_job_agreed_to_are_refused(devices: Devices) -> None:
    agree(devices)
    other = devices.terms(seed=9)
    assert "differ from those agreed to" in refusal(devices.all[0].handle(offer(other)))


def test_an_invitation_without_terms_or_model_is_refused(devices: Devices) -> None:
    talk = Conversation(devices, devices.terms())
    assert "has not agreed" in refusal(devices.all[0].handle(talk.invitation(0)))
    agree(devices)
    assert "without its model" in refusal(devices.all[0].handle(talk.invitation(0)))


def test_a_roster_that_grew_unannounced_is_refused(devices: Devices) -> None:
    stranger = {**devices.roster.members, 9: Identity.generate().public_bytes}
    grown = RosterStatement(version=2, previous=devices.roster.hash, members=stranger)
    forged = fleet_pb2.SignedRoster(
        statement=grown.encoded,
        signature=Ed25519PrivateKey.generate().sign(signed_message(grown.encoded)),
    )
    device = devices.all[0]
    news = fleet_pb2.Down(roster=fleet_pb2.RosterNews(roster=[forged]))
    assert "not signed by the pinned authority" in refusal(device.handle(news))
    plan = PLAN.changed(population=4, expected_cohort=4.0, cap=4)
    terms = devices.terms(roster_version=2, roster_hash=grown.hash.hex(), plan=plan)
    assert "was not announced" in refusal(device.handle(offer(terms)))
    # announced under the authority's signature, it counts, and is still held after a restart
    assert device.session.handle(devices.welcome(grown)) is None
    assert device.handle(offer(terms)).HasField("consent")
    assert devices.start(0).session.chain.version == 2


def test_a_paused_device_declines_for_the_time_being(devices: Devices) -> None:
    talk, device = agree(devices), devices.all[0]
    device.session.paused.touch()
    answer = talk.invite(device, 0)
    assert answer.refusal.passing
    assert "paused" in refusal(answer)
    device.session.paused.unlink()
    assert talk.invite(device, 0).HasField("answer")


def test_a_paused_device_trains_for_no_opening_whatever_came_before_it(devices: Devices) -> None:
    """It is in the round already: its first training failed, so that it has yet to upload."""
    talk, device = agree(devices), devices.all[0]
    device.worker.error = ValueError("no batch")
    assert talk.invite(device, 0).refusal.cause == fleet_pb2.Refusal.TRAINING
    device.worker.error = None
    device.session.paused.touch()
    opening = fleet_pb2.Down(stage=talk.stage(0))
    assert device.handle(opening).refusal.cause == fleet_pb2.Refusal.PAUSED
    assert talk.invite(device, 0).refusal.cause == fleet_pb2.Refusal.PAUSED
    device.session.paused.unlink()
    assert device.handle(opening).refusal.cause == fleet_pb2.Refusal.PROTOCOL, "it refused"
    assert device.worker.trained == 1, "the one that failed"
    assert talk.invite(device, 0).HasField("answer")
    assert device.worker.trained == 2


def test_conditions_are_checked_at_each_round(devices: Devices) -> None:
    talk, device = agree(devices), devices.all[0]
    device.policy[0] = dataclasses.replace(device.policy[0], min_free_memory_mb=1 << 30)
    answer = talk.invite(device, 0)
    assert answer.refusal.passing
    assert "min_free_memory_mb" in refusal(answer)


@pytest.mark.parametrize("error", [ValueError("record 17: secret"), MemoryError("secret")])
def test_what_training_says_stays_on_the_device(devices: Devices, error: Exception) -> None:
    talk = agree(devices)
    devices.all[0].worker.error = error
    answer = talk.invite(devices.all[0], 0)
    assert answer.refusal.cause == fleet_pb2.Refusal.TRAINING
    assert not refusal(answer), "it may quote the data, even where the owner lets others read"


def test_an_update_that_is_not_finite_is_sent_as_zeros(devices: Devices) -> None:
    talk = agree(devices)
    devices.all[2].worker.update[0, 3] = np.nan
    run(talk, devices.all)
    mechanism = PLAN.build_mechanism()
    mean = mechanism.decode(talk.aggregator.result.total)
    assert np.abs(mean - 0.2 / 3).max() < 7 * mechanism.noise_deviation


def test_a_device_that_contributed_often_enough_sends_zeros_and_noise(devices: Devices) -> None:
    """Refusing would make rounds fail, which shows: the device stays in them and adds its share."""
    talk = agree(devices, plan=PLAN.changed(max_participations=1))
    run(talk, devices.all)
    assert [device.worker.trained for device in devices.all] == [1, 1, 1]
    spent = devices.all[0].session.journal.spent("server")
    later = Conversation(devices, talk.terms, number=2)
    run(later, devices.all)
    assert later.aggregator.result.included == (0, 1, 2)
    assert [device.worker.trained for device in devices.all] == [1, 1, 1], "nobody trained again"
    mechanism = PLAN.build_mechanism()
    mean = mechanism.decode(later.aggregator.result.total)
    assert np.abs(mean).max() < 7 * mechanism.noise_deviation
    assert np.abs(mean).max() > 0
    assert devices.all[0].session.journal.spent("server") == spent


def test_what_was_spent_survives_a_restart(devices: Devices) -> None:
    talk = agree(devices)
    run(talk, devices.all)
    spent = devices.all[0].session.journal.spent("guarantee")
    assert 0 < spent < 10
    assert devices.start(0).session.journal.spent("guarantee") == spent
    server = devices.start(0).session.journal.spent("server")
    assert server > 0


def test_a_damaged_journal_stops_the_device(devices: Devices, tmp_path: Path) -> None:
    agree(devices)
    (tmp_path / "device0" / "journal.json").write_text("{")
    with pytest.raises(Exception, match="restore it from a backup"):
        devices.start(0)


def test_a_lost_roster_stops_the_device(devices: Devices, tmp_path: Path) -> None:
    """A coordinator could otherwise show it another past than the one it accepted."""
    path = tmp_path / "device0" / "roster.jsonl"
    path.unlink()
    with pytest.raises(ConfigError) as refused:
        devices.start(0)
    for part in (f"{path}: is gone", "accepted", "backup", "fedsys agent leave", "goes on"):
        assert part in str(refused.value)
    assert not path.exists()


def test_a_roster_that_was_begun_anew_beside_a_running_device(
    devices: Devices, tmp_path: Path
) -> None:
    first = devices.roster
    second = RosterStatement(version=2, previous=first.hash, members=dict(first.members))
    path = tmp_path / "device0" / "roster.jsonl"
    path.unlink()
    devices.all[0].session.handle(devices.welcome(first, second))
    with pytest.raises(ProtocolError, match=r"roster\.jsonl: roster version 2 .*from a backup"):
        devices.start(0)


def news(*rosters: fleet_pb2.SignedRoster) -> fleet_pb2.Down:
    return fleet_pb2.Down(roster=fleet_pb2.RosterNews(roster=rosters))


def test_what_comes_after_a_good_roster_neither_hides_it_nor_stops_the_device(
    devices: Devices, tmp_path: Path
) -> None:
    """Exactly what was accepted is on disk, whatever a coordinator sends with it."""
    first, device = devices.roster, devices.all[0]
    second = RosterStatement(version=2, previous=first.hash, members=dict(first.members))
    good = devices.sign(second)
    fork = RosterStatement(version=2, previous=first.hash, members={1: first.members[1]})
    unsigned = fleet_pb2.SignedRoster(statement=fork.encoded, signature=bytes(64))
    junk = fleet_pb2.SignedRoster(statement=b"junk", signature=bytes(64))
    again = fleet_pb2.SignedRoster(statement=good.statement, signature=bytes(64))
    for number, follows in enumerate((junk, unsigned, devices.sign(fork))):
        device = devices.all[number]
        assert "a roster is refused" in refusal(device.handle(news(good, again, follows)))
        assert device.session.chain.version == 2
        lines = (tmp_path / f"device{number}" / "roster.jsonl").read_bytes().splitlines()
        assert len(lines) == 2
        restarted = devices.start(number)
        assert restarted.session.chain.newest == second
        third = RosterStatement(version=3, previous=second.hash, members=dict(second.members))
        assert restarted.session.handle(news(devices.sign(third))) is None
        assert devices.start(number).session.chain.newest == third


def test_a_roster_that_is_not_on_disk_is_not_used(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, device = devices.roster, devices.all[0]
    second = RosterStatement(version=2, previous=first.hash, members=dict(first.members))

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            device.session.handle(devices.welcome(second))
    assert device.session.chain.version == 1
    device.session.handle(devices.welcome(second))
    assert devices.start(0).session.chain.version == 2


def test_a_roster_that_nobody_signed_is_not_even_decoded(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = devices.all[0]
    monkeypatch.setattr(RosterStatement, "decode", None)
    junk = fleet_pb2.SignedRoster(statement=b"[" * 1000, signature=bytes(64))
    assert "not signed by the pinned authority" in refusal(device.handle(news(junk)))


def test_farewells(devices: Devices) -> None:
    def goodbye(reason: fleet_pb2.Goodbye.Reason) -> fleet_pb2.Down:
        return fleet_pb2.Down(goodbye=fleet_pb2.Goodbye(reason=reason, text="why"))

    session = devices.all[0].session
    with pytest.raises(Dismissed, match="why") as farewell:
        session.handle(goodbye(fleet_pb2.Goodbye.SHUTTING_DOWN))
    assert not farewell.value.final
    with pytest.raises(Dismissed) as farewell:
        session.handle(goodbye(fleet_pb2.Goodbye.REVOKED))
    assert farewell.value.final
    with pytest.raises(ProtocolError):
        session.handle(fleet_pb2.Down())


def test_a_mechanism_without_noise_needs_an_owner_who_says_so(devices: Devices) -> None:
    with pytest.raises(PolicyRefusal, match="epsilon would reach inf"):
        Policy(epsilon=10.0).check_epsilon(others=0.0, after=float("inf"))
    Policy().check_epsilon(others=0.0, after=float("inf"))


def held(devices: Devices, number: int) -> int:
    """Sealing keys that the device could still serve with."""
    return devices.all[number].session._sealing.outstanding


def test_a_greeting_brings_sealing_keys_where_none_are_left(devices: Devices) -> None:
    assert len(devices.prekeys[0]) == held(devices, 0) == 8
    again = devices.start(0)
    assert not again.session.hello().hello.prekeys, "the coordinator has them"
    devices.reboot()
    fresh = devices.start(0).session.hello().hello
    assert not fresh.prekeys, "the test's own start took them"
    assert len(devices.prekeys[0]) == 8


def test_sealing_keys_are_sent_where_few_are_left(devices: Devices) -> None:
    device, terms = devices.all[0], devices.terms()

    def sent(left: int) -> int:
        message = fleet_pb2.Down(offer=fleet_pb2.Offer(terms=terms.encoded, prekeys=left))
        return len(device.handle(message).consent.prekeys)

    assert [sent(left) for left in (0, 4, 5, 8, 2**32 - 1)] == [8, 4, 0, 0, 0]
    talk = Conversation(devices, devices.agree())
    book = Book(talk.terms)
    book.round(1)
    device.session.handle(book.told())
    over = book.outcome(1)
    over.outcome.prekeys = 1
    assert len(device.handle(over).prekeys.prekeys) == 7, "nothing to countersign"
    run(talk, devices.all)
    given = device.handle(over).countersignature
    assert (len(given.prekeys), given.uploads) == (7, 1)
    over.outcome.prekeys = 8
    assert not device.handle(over).countersignature.prekeys
    over.outcome.job = b"of no job that was agreed to"
    assert device.session.handle(over) is None


def test_a_device_that_is_asked_far_too_often_declines() -> None:
    """Sixty of sixty rounds, where one in two hundred was promised."""
    plan = plan_of(
        1000, expected_cohort=5, cap=60, rounds=1000, mechanism="none", noise_multiplier=0.0
    )
    asked = [number for number in range(1, 61) if refused(plan, number, number) is None]
    assert asked == [1, 2, 3]
    assert "asked to take part 60 times in 60 rounds" in str(refused(plan, 60, 60))
    assert refused(plan, 60, 4) is None
    assert refused(plan, 1000, 20) is None
    assert refused(plan, 1000, 40) is not None


def refused(plan: PrivacyPlan, number: int, count: int) -> str | None:
    try:
        check_participation(plan, number, count)
    except PolicyRefusal as error:
        return str(error)
    return None


@pytest.mark.parametrize("rate", [0.005, 0.05, 0.3, 1.0])
def test_honest_sampling_is_refused_less_than_once_in_a_billion(rate: float) -> None:
    """The tail of the binomial distribution, by exact fractions."""
    population = 1000
    plan = plan_of(
        population,
        expected_cohort=round(rate * population),
        cap=population,
        rounds=1000,
        mechanism="none",
        noise_multiplier=0.0,
    )
    q, rounds = Fraction(round(rate * population), population), 40
    chances = [math.comb(rounds, k) * q**k * (1 - q) ** (rounds - k) for k in range(rounds + 1)]
    limit = next((k for k in range(1, rounds + 1) if refused(plan, rounds, k)), rounds + 1)
    assert sum(chances[limit:], Fraction(0)) < Fraction(1, 10**9)
    if limit <= rounds:
        assert sum(chances[limit - 1 :], Fraction(0)) >= Fraction(1, 10**9)


def test_cyclic_participation_counts_the_rounds_of_ones_own_turn() -> None:
    """Ten groups take turns, each whole: everybody is in every tenth round."""
    plan = plan_of(
        200,
        mechanism="banded-mf",
        expected_cohort=20,
        cap=60,
        rounds=100,
        min_separation=10,
        max_participations=10,
    )
    assert refused(plan, 100, 10) is None
    assert refused(plan, 101, 11) is None
    assert refused(plan, 100, 11) is not None
    assert refused(plan, 9, 2) is not None


def test_a_device_takes_part_in_its_own_group_s_rounds_alone(tmp_path: Path) -> None:
    """Under banded-mf with Poisson sampling the cost is that of one round in each cycle."""
    plan = plan_of(
        80,
        mechanism="banded-mf",
        expected_cohort=30,
        rounds=8,
        cap=60,
        min_survivors=5,
        min_separation=2,
        noise_multiplier=8.0,
    )
    devices = Devices(tmp_path, count=80, plan=plan, running=2)
    terms = devices.agree()

    def asked(round: int, client: int) -> str:
        talk = Conversation(devices, terms, number=round, cohort=tuple(range(40)))
        return str(talk.invite(devices.all[client], client).refusal.reason)

    assert "client 1 is asked in round 1, which is not one of its group's: 2" in asked(1, 1)
    assert asked(1, 0) == ""
    assert "client 0 is asked in round 4" in asked(4, 0)
    assert asked(2, 1) == ""
    assert [each.worker.trained for each in devices.all] == [1, 1]


def test_a_device_ends_a_job_where_its_coordinator_has_to(devices: Devices) -> None:
    """A budget below what all rounds cost is what the owner was told the job would spend."""
    plan = plan_of(3)
    record = JobRecord(job="", name="", terms="", plan=plan)
    budget = record.after(1, "guarantee") * 1.01
    talk = agree(devices, plan=plan.changed(budget=budget))
    run(talk, devices.all)
    later = Conversation(devices, talk.terms, number=2)
    assert f"over the budget {budget:g}: the job ends after 1 rounds" in refusal(
        later.invite(devices.all[0], 0)
    )
    assert [each.worker.trained for each in devices.all] == [1, 1, 1]


def test_a_round_number_beyond_the_plan_is_refused_before_it_is_accounted_for(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = agree(devices)

    def accounted(*_args: object) -> float:
        raise AssertionError("a million rounds are counted one by one")

    monkeypatch.setattr(JobRecord, "after", accounted)
    talk.assignment = dataclasses.replace(talk.assignment, round=10**6)
    talk.number = 10**6
    assert "round 1000000 of a job of 5 rounds" in refusal(talk.invite(devices.all[0], 0))


def test_a_protected_job_of_very_many_rounds_is_refused(devices: Devices) -> None:
    plan = plan_of(3, rounds=200_000, noise_multiplier=500.0)
    answer = devices.all[0].handle(offer(devices.terms(plan=plan)))
    assert "a device accounts for 100000 at most" in refusal(answer)


@pytest.mark.parametrize(
    "simulated",
    [
        {"noise": "once"},
        {"noise": "once", "guarantee": "server", "max_participations": 3},
        {"noise": "once", "encoding": "float"},
        {"noise": "once", "mechanism": "central-gaussian"},
    ],
)
def test_noise_that_only_a_simulation_draws_is_refused(
    devices: Devices, simulated: dict[str, Any]
) -> None:
    """The journal would count shares of noise that no device adds."""
    device = devices.all[0]
    answer = device.handle(offer(devices.terms(plan=plan_of(3, **simulated))))
    assert "noise is drawn 'once', as simulations do" in refusal(answer)
    assert not device.session.journal.jobs


EXAMPLES: dict[str, Any] = {
    "mechanism": "example-gaussian",
    "unit": "example",
    "example_rate": 0.1,
    "steps": 1,
}
BANDED: dict[str, Any] = {"mechanism": "banded-mf", "min_separation": 1}
TURNS: dict[str, Any] = {"sampling": "min-separation", "min_separation": 1, "max_participations": 1}
ASKED: list[dict[str, Any]] = [{"ask": "count", "name": "rows", "rows": 10}]


@pytest.mark.parametrize(
    ("plan", "weight_cap", "reason"),
    [
        (EXAMPLES, 9, "numbers of examples under mechanism 'example-gaussian'"),
        (EXAMPLES, 0, "clipping bits under mechanism 'example-gaussian'"),
        (BANDED, 0, "clipping bits under mechanism 'banded-mf'"),
    ],
)
def test_nothing_is_sent_that_the_noise_does_not_cover(
    devices: Devices, plan: dict[str, Any], weight_cap: int, reason: str
) -> None:
    sent = plan_of(3, **plan).changed(adaptive_clip=not weight_cap)
    device = devices.all[0]
    terms = devices.terms(plan=sent, weight_cap=weight_cap)
    assert reason in refusal(device.handle(offer(terms)))
    assert not device.session.journal.jobs


@pytest.mark.parametrize("kind", ["query", "train"])
@pytest.mark.parametrize(
    "plan",
    [EXAMPLES, BANDED, TURNS, {"participation": 0.5}, {"encoding": "narrow", "modulus_bits": 16}],
)
def test_questions_are_answered_under_what_an_operator_can_ask_with(
    devices: Devices, plan: dict[str, Any], kind: str
) -> None:
    dimension = Sheet.of(parse(ASKED)).dimension
    asked = {"kind": kind, "questions": ASKED, "dimension": 0}
    if kind == "train":
        asked |= {"evaluate_every": 1, "held_out": 0.2, "dimension": dimension}
    device = devices.all[0]
    allowed = dataclasses.replace(device.policy[0], queries=QueryPolicy())
    device.policy[0] = dataclasses.replace(allowed, epsilon=math.inf)

    def offered(**change: Any) -> fleet_pb2.Up:
        made = plan_of(3, rounds=1, dimension=dimension, **change)
        return device.handle(offer(devices.terms(plan=made, **asked)))

    assert "no operator can ask" in refusal(offered(**plan))
    assert not device.session.journal.jobs
    assert offered().HasField("consent")


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ({"corrupt": None}, "takes no fraction of a cohort for colluders"),
        ({"corrupt": 0.05}, "takes 0.05 as the fraction"),
    ],
)
def test_a_job_that_assumes_fewer_colluders_than_its_owner_is_refused(
    tmp_path: Path, plan: dict[str, Any], reason: str
) -> None:
    devices = Devices(tmp_path, count=4, plan=plan_of(4))
    lower = devices.plan.changed(**plan)
    assert reason in refusal(devices.all[0].handle(offer(devices.terms(plan=lower))))


def test_a_job_withstands_as_many_colluders_as_the_roster_states(tmp_path: Path) -> None:
    devices = Devices(tmp_path, count=6, plan=plan_of(6), colluders=2)
    answer = devices.all[0].handle(offer(devices.terms()))
    assert "withstands 0 colluders" in refusal(answer)
    assert "the roster 2" in refusal(answer)
    terms = devices.agree(plan=plan_of(6, colluders=2))
    talk = Conversation(devices, terms)
    assert (talk.announced.colluders, talk.announced.min_included) == (2, 4)
    run(talk, devices.all)
    assert talk.aggregator.result.included == tuple(range(6))


def test_a_round_whose_opening_was_never_seen_is_not_joined(devices: Devices) -> None:
    talk = agree(devices)
    talk.close({k: talk.invite(devices.all[k], k) for k in range(3)})
    stranger = Devices.start(devices, 0)
    stranger.handle(offer(talk.terms))
    stranger.session.journal.jobs[talk.terms.job.hex()].joined.clear()
    assert "never saw the opening" in refusal(talk.invite(stranger, 0))


def test_damaged_sealing_keys_are_named(devices: Devices) -> None:
    for path in devices.volatile.iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=f"{devices.volatile}/.*remove it") as refused:
        devices.start(0)
    assert "\n" not in str(refused.value)
