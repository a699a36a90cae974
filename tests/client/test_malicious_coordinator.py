"""A coordinator that cheats, against real sessions: what it would need is refused, by its reason.

It holds one colluding device of ten, as the plan assumes it may, speaks the protocol to the byte,
and drives each device through `Session.handle` as a host would.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.identity import Credentials
from client.session import Session
from client.volatile import VolatileStore
from fedsys.wire import fleet_pb2
from secure_agg import Aggregator, Identity, Kind, SealingKeys, SecAggParams
from secure_agg.errors import QuorumNotMet
from secure_agg.messages import HEADER_SIZE, Certificate, Delivery, Opening, frame, read_rows
from secure_agg.session import SET_ROW, endorsement_digest, set_digest, upload_digest
from tests.client.devices import Conversation, D, Device, Devices, params_of, plan_of

COUNT = 10
VICTIM, COLLUDER = 0, 9


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    return Devices(tmp_path, count=COUNT, plan=plan_of(COUNT, min_survivors=5))


def reason(answer: fleet_pb2.Up) -> str:
    assert answer.HasField("refusal"), answer
    return str(answer.refusal.reason)


def reply(answer: fleet_pb2.Up) -> bytes:
    assert answer.HasField("answer"), answer
    return bytes(answer.answer.message)


def ask(talk: Conversation, device: Device, message: bytes) -> fleet_pb2.Up:
    """One message of secure aggregation, in the round that the device is in."""
    stage = fleet_pb2.Stage(
        job=talk.assignment.job, round=talk.number, step=talk.step, message=message
    )
    return device.handle(fleet_pb2.Down(stage=stage))


def opened(talk: Conversation, **change: Any) -> bytes:
    """The opening with some of it replaced, under the hash of the true session."""
    session = talk.aggregator.session
    body = dataclasses.replace(Opening.of(session), **change).body()
    return frame(Kind.OPENING, session.hash, body)


def uploads(talk: Conversation, *aggregators: Aggregator, without: int | None = None) -> None:
    """Have everybody upload, for every aggregator; the last lacks the upload `without`."""
    for client in talk.cohort:
        upload = reply(talk.invite(talk.devices.all[client], client))
        for aggregator in aggregators:
            if aggregator is not aggregators[-1] or client != without:
                aggregator.receive(client, upload)


def begun(talk: Conversation) -> Aggregator:
    aggregator = talk.another()
    assert dict(aggregator.begin()) == dict(talk.messages)
    return aggregator


# -- what a coordinator announces ------------------------------------------------------------------


def weaker(params: SecAggParams, **change: int) -> SecAggParams:
    return dataclasses.replace(params, **change)


WEAKER: dict[str, dict[str, int]] = {
    "a sum of two": {"min_included": 2},
    "no colluders": {"colluders": 0, "quorum": 6},
    "an easy threshold": {"threshold": 2, "packing": 1, "errors": 0},
    "a coarse ring": {"modulus_bits": 15},
}


@pytest.mark.parametrize("change", WEAKER.values(), ids=WEAKER)
@pytest.mark.parametrize("place", ["announced", "in the opening"])
def test_parameters_below_the_agreed_are_refused(
    devices: Devices, change: dict[str, int], place: str
) -> None:
    terms = devices.agree()
    agreed = params_of(terms, devices.roster, COUNT)
    low = weaker(agreed, **change)
    talk = Conversation(devices, terms, params=low)
    said = "differ from those that the agreed plan gives for a cohort of 10"
    if place == "in the opening":
        talk.announced, said = agreed, "another parameters than was agreed upon"
    for client, device in enumerate(devices.all):
        assert said in reason(talk.invite(device, client))
        assert device.worker.trained == 0


HYBRID = "x25519-mlkem768"


def test_a_weaker_suite_than_was_agreed_to_is_refused(tmp_path: Path) -> None:
    """What is recorded of a round that sealed with X25519 alone opens to a quantum computer."""
    devices = Devices(tmp_path, count=4, plan=plan_of(4))
    terms = devices.agree(suite=HYBRID)
    usual = dataclasses.replace(terms, suite="x25519")
    weak = params_of(usual, devices.roster, 4)
    assert (weak.suite, params_of(terms, devices.roster, 4).suite) == (1, 2)
    device = devices.all[VICTIM]
    # Parameters of suite 1, and sealing keys that fit them.
    talk = Conversation(devices, terms, params=weak, suite=1)
    said = "differ from those that the agreed plan gives for a cohort of 4"
    assert said in reason(talk.invite(device, VICTIM))
    # The agreed parameters, in an opening of suite 1.
    talk.announced = params_of(terms, devices.roster, 4)
    assert "another parameters than was agreed upon" in reason(talk.invite(device, VICTIM))
    # Another word on what was agreed.
    offered = device.handle(fleet_pb2.Down(offer=fleet_pb2.Offer(terms=usual.encoded)))
    assert "differ from those agreed to before" in reason(offered)
    assert device.worker.trained == 0
    # An honest coordinator's round.
    finished(Conversation(devices, terms))


def test_sealing_keys_of_a_weaker_suite_are_refused(tmp_path: Path) -> None:
    devices = Devices(tmp_path, count=4, plan=plan_of(4))
    terms = devices.agree(suite=HYBRID)
    talk = Conversation(devices, terms)
    weak = tuple(devices.take(client, 1) for client in talk.cohort)
    assert all(weak)
    talk.messages = dict.fromkeys(talk.cohort, opened(talk, prekeys=weak))
    said = reason(talk.invite(devices.all[VICTIM], VICTIM))
    assert "an OPENING message that ends before its committee" in said, "they are too short"
    assert devices.all[VICTIM].worker.trained == 0


def test_a_device_without_ml_kem_says_so_before_anything_is_agreed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = Devices(tmp_path, count=4, plan=plan_of(4))
    monkeypatch.setattr("secure_agg.sealing._has_mlkem", lambda: False)
    terms = devices.terms(suite=HYBRID)
    said = devices.all[0].handle(fleet_pb2.Down(offer=fleet_pb2.Offer(terms=terms.encoded)))
    assert "install its wheel from PyPI, or choose suite 'x25519'" in reason(said)
    assert not devices.all[0].session.journal.jobs
    devices.agree()


def test_a_cohort_below_the_agreed_survivors_is_refused(devices: Devices) -> None:
    """Cohorts of at least five were agreed to; three are invited, one of them the coordinator's."""
    terms = devices.agree()
    lower = dataclasses.replace(terms, plan=plan_of(COUNT, min_survivors=2))
    talk = Conversation(
        devices,
        terms,
        params=params_of(lower, devices.roster, 3),
        cohort=(VICTIM, 1, COLLUDER),
    )
    said = reason(talk.invite(devices.all[VICTIM], VICTIM))
    assert "a cohort of 3, where at least 5 and at most 10 were agreed to" in said
    assert devices.all[VICTIM].worker.trained == 0


def test_a_cohort_above_the_agreed_cap_is_refused(tmp_path: Path) -> None:
    plan = plan_of(COUNT, cap=8, mechanism="none", noise_multiplier=0.0)
    devices = Devices(tmp_path, count=COUNT, plan=plan, running=1)
    talk = Conversation(devices, devices.agree())
    assert "a cohort of 10, where" in reason(talk.invite(devices.all[0], 0))


def test_a_committee_of_the_coordinators_choice_is_refused(tmp_path: Path) -> None:
    """Above a hundred members the committee is drawn; nobody may choose it."""
    count = 150
    devices = Devices(tmp_path, count=count, plan=plan_of(count), running=1)
    talk = Conversation(devices, devices.agree())
    session = talk.aggregator.session
    assert len(session.committee) < count
    others = sorted(set(talk.cohort) - set(session.committee))
    own = tuple(sorted((*session.committee[1:], others[0])))
    prekeys = tuple(talk.prekeys[member] for member in own)
    talk.messages = {0: opened(talk, committee=own, prekeys=prekeys)}
    assert "committee" in reason(talk.invite(devices.all[0], 0))
    assert devices.all[0].worker.trained == 0


def test_sealing_keys_of_the_coordinators_making_are_refused(devices: Devices) -> None:
    """With them it would open every share that is meant for somebody else."""
    terms = devices.agree()
    forged = {k: SealingKeys(Identity.generate()).issue(1)[0] for k in range(COUNT)}
    talk = Conversation(devices, terms)
    for taken in (
        tuple(forged.values()),
        (forged[0], *(talk.prekeys[k] for k in range(1, COUNT))),
        tuple(talk.prekeys[(k + 1) % COUNT] for k in range(COUNT)),
    ):
        talk.messages = dict.fromkeys(range(COUNT), opened(talk, prekeys=taken))
        assert "sealing key" in reason(talk.invite(devices.all[VICTIM], VICTIM))
    one = (talk.prekeys[0],) * 2 + tuple(talk.prekeys[k] for k in range(2, COUNT))
    talk.messages = dict.fromkeys(range(COUNT), opened(talk, prekeys=one))
    assert talk.invite(devices.all[VICTIM], VICTIM).HasField("refusal")


def test_strangers_in_the_cohort_are_refused(devices: Devices) -> None:
    talk = Conversation(devices, devices.agree())
    cohort = (*range(COUNT - 1), 4711)
    talk.messages = dict.fromkeys(range(COUNT), opened(talk, cohort=cohort, committee=cohort))
    assert "roster" in reason(talk.invite(devices.all[VICTIM], VICTIM))


# -- two sums from one round -----------------------------------------------------------------------


def delivered(talk: Conversation, first: Aggregator, second: Aggregator) -> bytes:
    """All shares for the first sum; the check holds for the second, which lacks the victim.

    Returns:
        What was delivered to the colluder.
    """
    shares = first.close_stage()
    second.close_stage()
    for client in talk.cohort:
        checked = reply(ask(talk, talk.devices.all[client], shares[client]))
        first.receive(client, checked)
        second.receive(client, checked)
    return shares[COLLUDER]


def test_two_sets_in_one_round_are_refused(devices: Devices) -> None:
    """The sum with the victim and the sum without it would tell the victim's vector."""
    talk = Conversation(devices, devices.agree())
    first, second = begun(talk), begun(talk)
    uploads(talk, first, second, without=VICTIM)
    delivered(talk, first, second)
    whole, less = first.close_stage(), second.close_stage()
    assert whole[1] != less[1]
    for client in talk.cohort:
        first.receive(client, reply(ask(talk, devices.all[client], whole[client])))
        said = reason(ask(talk, devices.all[client], less[client]))
        assert "another set was endorsed for this sum; there is no second one" in said
    certificate = first.close_stage()
    for client in talk.cohort:
        first.receive(client, reply(ask(talk, devices.all[client], certificate[client])))
        assert ask(talk, devices.all[client], less[client]).HasField("refusal")
    first.close_stage()
    assert first.result.included == talk.cohort
    with pytest.raises(QuorumNotMet):
        second.close_stage()


def test_a_split_set_gives_one_sum_at_most(devices: Devices) -> None:
    """Half is asked to endorse the sum with the victim, half the one without; the colluder signs
    both. One of the two finds a quorum, and anyone who endorsed the other refuses its certificate.
    """
    talk = Conversation(devices, devices.agree())
    whole, less = begun(talk), begun(talk)
    uploads(talk, whole, less, without=VICTIM)
    rows = delivered(talk, whole, less)
    sets = {"whole": (whole, whole.close_stage()), "less": (less, less.close_stage())}
    halves = {client: "whole" if client % 2 else "less" for client in range(COLLUDER)}
    for client, half in halves.items():
        aggregator, proposal = sets[half]
        aggregator.receive(client, reply(ask(talk, devices.all[client], proposal[client])))
    for half, left_out in (("whole", None), ("less", VICTIM)):
        sets[half][0].receive(COLLUDER, signed_by_the_colluder(talk, rows, left_out))
    assert talk.announced.quorum == 6
    with pytest.raises(QuorumNotMet):
        whole.close_stage()  # four honest members and the colluder
    certificate = less.close_stage()  # five and the colluder
    answered = set()
    for client, half in halves.items():
        said = ask(talk, devices.all[client], certificate[COLLUDER])
        if said.HasField("answer"):
            answered.add(half)
        else:
            assert "signature" in reason(said)
    assert answered == {"less"}


@pytest.mark.parametrize("kind", ["short", "forged", "of the other half", "twice the same"])
def test_a_certificate_that_is_none_opens_nothing(devices: Devices, kind: str) -> None:
    talk = Conversation(devices, devices.agree())
    whole, less = begun(talk), begun(talk)
    uploads(talk, whole, less, without=VICTIM)
    rows = delivered(talk, whole, less)
    proposals = whole.close_stage(), less.close_stage()
    given = {
        client: reply(ask(talk, devices.all[client], proposals[client % 2][client]))[-64:]
        for client in range(COLLUDER)
    }
    given[COLLUDER] = signed_by_the_colluder(talk, rows, None)[-64:]
    own = {client: given[client] for client in given if client % 2 == 0 or client == COLLUDER}
    quorum = talk.announced.quorum
    assert len(own) == quorum
    session = talk.aggregator.session
    certificates = {
        "short": dict(list(own.items())[: quorum - 1]),
        "forged": {**own, COLLUDER: bytes(64)},
        "of the other half": dict(list(given.items())[:quorum]),
        "twice the same": {**own, COLLUDER: own[0]},
    }
    chosen = certificates[kind]
    body = Certificate(
        buffer=0,
        positions=tuple(sorted(chosen)),
        signatures=tuple(chosen[k] for k in sorted(chosen)),
    ).body(COUNT)
    for client in range(COLLUDER):
        said = ask(talk, devices.all[client], frame(Kind.CERTIFICATE, session.hash, body))
        assert said.HasField("refusal")


def signed_by_the_colluder(talk: Conversation, delivery: bytes, left_out: int | None) -> bytes:
    """An endorsement of the set of all delivered uploads but one."""
    session = talk.aggregator.session
    dealt = read_rows(Delivery.parse(delivery[HEADER_SIZE:], session.params).rows, session.params)
    rows = [
        SET_ROW.pack(
            one.id,
            one.sequence,
            upload_digest(
                session.hash,
                one.id,
                one.sequence,
                one.ephemeral,
                one.ciphertext_hash,
                one.sealed_hash,
                hashlib.sha256(one.proof).digest(),
            ),
        )
        for one in dealt
        if one.id != left_out
    ]
    digest = endorsement_digest(set_digest(session.hash, 0, b"".join(rows)))
    signature = talk.devices.identities[COLLUDER].sign(digest)
    return frame(Kind.ENDORSEMENT, session.hash, bytes(4), signature)


# -- the same thing twice --------------------------------------------------------------------------


def test_one_vector_leaves_a_device_in_a_round(devices: Devices) -> None:
    terms = devices.agree()
    talk, device = Conversation(devices, terms), devices.all[VICTIM]
    first = reply(talk.invite(device, VICTIM))
    assert reply(talk.invite(device, VICTIM)) == first, "asked again after a reconnection"
    again = Conversation(devices, terms)  # other sealing keys, so another session
    assert again.messages[VICTIM] != talk.messages[VICTIM]
    assert "round 1" in reason(again.invite(device, VICTIM))
    other = Conversation(devices, terms)
    other.assignment = dataclasses.replace(other.assignment, weights=np.ones(D, np.float32))
    other.aggregator = other.another()
    other.messages = other.aggregator.begin()
    assert "round 1" in reason(other.invite(device, VICTIM))
    assert device.worker.trained == 1


def test_a_sealing_key_serves_one_round(devices: Devices) -> None:
    """Under a key of an earlier round, whose shares may be known, a member checks no more."""
    terms = devices.agree()
    talk = Conversation(devices, terms)
    finished(talk)
    later = Conversation(devices, terms, number=2)
    later.prekeys = dict(talk.prekeys)
    later.aggregator = later.another()
    later.messages = later.aggregator.begin()
    uploads(later, later.aggregator)
    shares = later.aggregator.close_stage()
    for client in later.cohort:
        said = reason(ask(later, devices.all[client], shares[client]))
        assert "sealing key" in said


def finished(talk: Conversation) -> None:
    """An honest round."""
    uploads(talk, talk.aggregator)
    messages = talk.aggregator.close_stage()
    while messages:
        for client in list(messages):
            answer = ask(talk, talk.devices.all[client], messages[client])
            talk.aggregator.receive(client, reply(answer))
        messages = talk.aggregator.close_stage()
    assert talk.aggregator.result.included == talk.cohort


@pytest.mark.parametrize("put_back", ["round.state", "journal.json", "both"])
def test_state_that_is_put_back_does_not_open_a_round_again(
    devices: Devices, put_back: str
) -> None:
    terms = devices.agree()
    folder = devices.root / "device0"
    names = ("round.state", "journal.json")
    before = {
        name: (folder / name).read_bytes() if (folder / name).exists() else None for name in names
    }
    finished(Conversation(devices, terms))
    for name in names if put_back == "both" else (put_back,):
        content = before[name]
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)
    device = devices.start(0)
    device.handle(fleet_pb2.Down(offer=fleet_pb2.Offer(terms=terms.encoded)))
    again = Conversation(devices, terms)
    assert "round 1" in reason(again.invite(device, 0))
    assert device.worker.trained == 0


def copied(devices: Devices, number: int) -> Session:
    """A device's folder, copied while it ran, and started elsewhere on the same machine."""
    folder = devices.root / f"copy{number}"
    shutil.copytree(devices.root / f"device{number}", folder)
    original = devices.all[number]
    return Session(
        credentials=Credentials.load(folder),
        worker=original.worker,
        policy=lambda: original.policy[0],
        volatile=VolatileStore(folder, devices.volatile),
    )


def test_a_copied_folder_sits_on_no_committee(devices: Devices) -> None:
    """It has the identity and the marks, but no sealing key of the original's."""
    talk = Conversation(devices, devices.agree())
    uploads(talk, talk.aggregator)
    shares = talk.aggregator.close_stage()
    clone = Device(
        session=copied(devices, 3), worker=devices.all[3].worker, policy=devices.all[3].policy
    )
    clone.handle(fleet_pb2.Down(offer=fleet_pb2.Offer(terms=talk.terms.encoded)))
    assert "has left in this round" in reason(talk.invite(clone, 3))
    assert ask(talk, clone, shares[3]).HasField("refusal")
    assert reply(ask(talk, devices.all[3], shares[3]))


def test_a_machine_that_was_booted_sits_its_round_out(devices: Devices) -> None:
    talk = Conversation(devices, devices.agree())
    uploads(talk, talk.aggregator)
    shares = talk.aggregator.close_stage()
    devices.reboot()
    device = devices.start(3)
    device.handle(fleet_pb2.Down(offer=fleet_pb2.Offer(terms=talk.terms.encoded)))
    talk.messages = shares
    assert "lost" in reason(talk.invite(device, 3))
    assert device.worker.trained == 0
