"""A device that asks for witnesses computes nothing before it holds their cosignatures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.journal import Journal
from client.policy import Policy
from client.witnessed import check_witnessed
from fedsys.errors import Cause, ConfigError, PolicyRefusal
from fedsys.privacy import Ledger, Signer
from fedsys.transparency import LogProof, SignedNote, VerifierKey, cosign
from fedsys.transparency.note import COSIGNATURE_V1
from fedsys.wire import fleet_pb2
from tests.client.devices import Conversation, Devices

SIGNER = Signer.generate(entropy=lambda n: b"s" * n)
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([k]) * 32) for k in (1, 2)]
NAMES = ("w.example/1", "w.example/2")
VKEYS = tuple(
    str(
        VerifierKey(name=name, algorithm=COSIGNATURE_V1, public=key.public_key().public_bytes_raw())
    )
    for name, key in zip(NAMES, KEYS, strict=True)
)


@pytest.fixture
def talk(tmp_path: Path) -> Conversation:
    devices = Devices(tmp_path)
    found = Conversation(devices, devices.agree())
    session = devices.all[0].session
    session.credentials = dataclasses.replace(
        session.credentials, signer=SIGNER.public_key.public_bytes_raw()
    )
    return found


def demand(talk: Conversation, threshold: int) -> None:
    policy = talk.devices.all[0].policy
    policy[0] = dataclasses.replace(policy[0], witnesses=VKEYS, witness_threshold=threshold)


class Shown:
    """What an honest coordinator shows of a reservation, to be spoilt."""

    def __init__(self, talk: Conversation, path: Path, *, signer: Signer = SIGNER, by: int = 2):
        path.mkdir()
        paths = path / "ledger.jsonl", path / "private.jsonl"
        event = talk.assignment.mechanism
        job = talk.assignment.job
        with Ledger.create(*paths, signer=signer, header={"job": job.hex()}) as ledger:
            ledger.reserve(1, {"event": dict(event)})
            self.line, tree = ledger.newest, ledger.tree
        note = signer.sign_checkpoint(tree, 2, job=job)
        pairs = list(zip(NAMES, KEYS, strict=True))[:by]
        note = note.with_signatures(
            cosign(note.text, name=name, key=key, timestamp=1) for name, key in pairs
        )
        self.proof = LogProof(index=1, path=tuple(tree.inclusion_proof(1, 2)), note=note)

    def invite(self, talk: Conversation) -> fleet_pb2.Up:
        device = talk.devices.all[0]
        device.session.handle(talk.model())
        down = talk.invitation(0)
        down.invitation.reservation = self.line
        down.invitation.proof = self.proof.encode()
        return device.handle(down)


def test_a_witnessed_round_is_taken_part_in(talk: Conversation, tmp_path: Path) -> None:
    demand(talk, 2)
    assert Shown(talk, tmp_path / "l").invite(talk).HasField("answer")
    assert talk.devices.all[0].worker.trained == 1


def test_nothing_is_asked_for_by_default(talk: Conversation) -> None:
    device = talk.devices.all[0]
    assert talk.invite(device, 0).HasField("answer")


def refused(talk: Conversation, answer: fleet_pb2.Up) -> str:
    """Why, with nothing computed or counted."""
    assert answer.refusal.cause == fleet_pb2.Refusal.WITNESSES, answer
    assert talk.devices.all[0].worker.trained == 0
    journal = Journal(talk.devices.root / "device0" / "journal.json")
    assert journal.jobs[talk.terms.job.hex()].joined == []
    return str(answer.refusal.reason)


def test_without_a_proof_it_does_nothing(talk: Conversation) -> None:
    demand(talk, 1)
    assert "not strict JSON" in refused(talk, talk.invite(talk.devices.all[0], 0))


def test_too_few_cosignatures(talk: Conversation, tmp_path: Path) -> None:
    demand(talk, 2)
    why = refused(talk, Shown(talk, tmp_path / "l", by=1).invite(talk))
    assert "1 of the owner's witnesses" in why
    assert "below witness_threshold 2" in why


def test_another_coordinators_ledger(talk: Conversation, tmp_path: Path) -> None:
    demand(talk, 1)
    mallory = Signer.generate()
    why = refused(talk, Shown(talk, tmp_path / "l", signer=mallory).invite(talk))
    assert "not signed by this device's coordinator" in why


def _swap_line(shown: Shown, other: Shown) -> None:
    shown.line = other.line


def _swap_proof(shown: Shown, other: Shown) -> None:
    shown.proof = other.proof


def _index(shown: Shown, _: Shown) -> None:
    shown.proof = dataclasses.replace(shown.proof, index=0)


def _path(shown: Shown, _: Shown) -> None:
    shown.proof = dataclasses.replace(shown.proof, path=(bytes(32),))


def _unsigned(shown: Shown, _: Shown) -> None:
    note = shown.proof.note
    shown.proof = dataclasses.replace(
        shown.proof, note=SignedNote(text=note.text, signatures=note.signatures[1:])
    )


def _forged(shown: Shown, _: Shown) -> None:
    note = shown.proof.note
    bad = dataclasses.replace(note.signatures[1], value=bytes(72))
    signatures = (note.signatures[0], bad, *note.signatures[2:])
    shown.proof = dataclasses.replace(
        shown.proof, note=SignedNote(text=note.text, signatures=signatures)
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_swap_line, "another round, or at another price"),
        (_swap_proof, "not proved to be under"),
        (_index, "not proved to be under"),
        (_path, "not proved to be under"),
        (_unsigned, "did not sign"),
        (_forged, "does not verify"),
    ],
)
def test_whatever_does_not_fit_is_refused(
    talk: Conversation, tmp_path: Path, spoil: Callable[[Shown, Shown], None], words: str
) -> None:
    demand(talk, 1)
    shown = Shown(talk, tmp_path / "l")
    cheaper = dict(talk.assignment.mechanism) | {"noise_multiplier": 9.0}
    assignment = dataclasses.replace(talk.assignment, mechanism=cheaper)
    talk.assignment, kept = assignment, talk.assignment
    other = Shown(talk, tmp_path / "other")
    talk.assignment = kept
    spoil(shown, other)
    assert words in refused(talk, shown.invite(talk))


def test_a_reservation_of_another_job(talk: Conversation, tmp_path: Path) -> None:
    """The same line in another job's log: its origin is another."""
    demand(talk, 1)
    shown = Shown(talk, tmp_path / "l")
    message = talk.invitation(0).invitation
    message.reservation, message.proof = shown.line, shown.proof.encode()
    policy = talk.devices.all[0].policy[0]
    signer = SIGNER.public_key.public_bytes_raw()
    check_witnessed(message, talk.assignment, policy, signer=signer)
    elsewhere = dataclasses.replace(talk.assignment, job=b"k" * 32)
    with pytest.raises(PolicyRefusal, match="another ledger or place") as caught:
        check_witnessed(message, elsewhere, policy, signer=signer)
    assert caught.value.cause is Cause.WITNESSES


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"witnesses": ("x",)}, "expected name"),
        ({"witnesses": (VKEYS[0], VKEYS[0])}, "the same key"),
        ({"witness_threshold": 1}, "from 0 to that of the witnesses, 0"),
        ({"witnesses": VKEYS, "witness_threshold": 3}, "witnesses, 2"),
        ({"witnesses": VKEYS, "witness_threshold": -1}, "witnesses, 2"),
    ],
)
def test_bad_policies_say_so(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(Policy(), **change)  # type: ignore[arg-type]


def test_a_policy_reads_back(tmp_path: Path) -> None:
    policy = Policy(witnesses=VKEYS, witness_threshold=2)
    (tmp_path / "policy.toml").write_text(policy.dump())
    assert Policy.load(tmp_path / "policy.toml") == policy
