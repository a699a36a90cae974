"""A run as if its clients had been devices: a signed roster, terms, and what devices say."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsys.privacy import Signer, plan_of, read_ledger
from fedsys.privacy.ledger import canonical, commitment, read_private
from fedsys.privacy.ledger.private import told
from fedsys.wire.countersign import FILE, NO_HEAD, Countersignature, message
from fedsys.wire.members import Members
from fedsys.wire.roster import RosterStatement, signed_message
from fedsys.wire.terms import Terms
from tests.fedsys.audit.forge import Entry, close_again, entries, sign_again

Word = Countersignature
AUTHORITY = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
FIRST_NODE = 100


@functools.cache
def key_of(client: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(client.to_bytes(32, "big"))


@functools.cache
def public(client: int) -> bytes:
    return key_of(client).public_key().public_bytes_raw()


@functools.cache
def roster_of(population: int) -> RosterStatement:
    members = {FIRST_NODE + client: public(client) for client in range(population)}
    return RosterStatement(version=1, previous=b"", members=members)


def terms_of(run: Path) -> Terms:
    header = read_ledger(run / "ledger.jsonl").header
    plan = plan_of(header)
    return Terms(
        job=bytes.fromhex(header["job"]),
        name="job",
        task="digits",
        options={},
        task_sha256="c0de",
        local={},
        path="loop",
        dimension=1,
        example_clip=1.0,
        plan=plan,
        seed=0,
        roster_version=1,
        roster_hash=roster_of(plan.population).hash.hex(),
    )


def deploy(run: Path, signer: Signer) -> None:
    """Gives a simulated run's folder the header and the roster of a deployment. The first client of
    round 1 comes back in round 2."""
    (kind, header), *rest = entries(run)
    _bring_back(run, rest)
    roster = roster_of(header["plan"]["population"])
    stated = {"roster_version": 1, "roster_sha256": roster.hash.hex()}
    header["population"] = {**header["population"], **stated}
    sign_again(run, [(kind, header), *rest], signer)
    close_again(run, signer)
    enroll(run, roster, AUTHORITY)


def _bring_back(run: Path, rest: list[Entry]) -> None:
    """Edits ``private.jsonl`` and the ledger's commitments to it, which then commits to no seeds:
    nobody could draw such cohorts."""
    path, counts = run / "private.jsonl", Counter[int]()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    who, other = lines[0]["sampled"][0], lines[1]["sampled"][0]
    for _, body in rest:
        body.pop("seed_sha256", None)
    for line in lines:
        del line["opening"]
        for name in ("sampled", "survivors"):
            if line["round"] == 2 and who not in line[name]:
                line[name] = sorted({*line[name], who} - {other})
        counts.update(line["survivors"])
        line["participations"] = [counts[client] for client in line["survivors"]]
        body = next(b for k, b in rest if k == "commit" and b["round"] == line["round"])
        salt = bytes.fromhex(line["salt"])
        body["commitments"] = {
            name: commitment(name, value, salt) for name, value in told(line).items()
        }
    path.write_bytes(b"".join(canonical(line) + b"\n" for line in lines))


def enroll(run: Path, roster: RosterStatement, authority: Ed25519PrivateKey) -> None:
    members = Members(
        statement=roster.encoded,
        signature=authority.sign(signed_message(roster.encoded)),
        authority=authority.public_key().public_bytes_raw(),
        terms=terms_of(run).encoded,
    )
    (run / "members.json").write_bytes(members.encode())


def signed(word: Word, job: bytes) -> Word:
    return dataclasses.replace(word, signature=key_of(word.client).sign(message(job, word)))


def words_of(run: Path, each: int = 3) -> list[Word]:
    """What the first so many clients of each round's cohort say, and keep saying afterwards."""
    terms, view = terms_of(run), read_ledger(run / "ledger.jsonl")
    private, _ = read_private(run / "private.jsonl")
    chosen = {c for record in view.rounds for c in private[record.round]["sampled"][:each]}
    newest: dict[int, Word] = {}
    found: list[Word] = []
    for record in view.rounds:
        line = private[record.round]
        for client in sorted(chosen & set(line["sampled"])):
            before, uploaded = newest.get(client), client in line["survivors"]
            word = Word(
                round=record.round,
                client=client,
                key=public(client),
                terms=terms.digest,
                ledger_head=bytes.fromhex(record.hash),
                previous=NO_HEAD if before is None else before.ledger_head,
                weights=bytes.fromhex(record.model),
                uploaded=uploaded,
                nonce=bytes([record.round] * 16) if uploaded else bytes(16),
                invitations=1 + (before.invitations if before else 0),
                uploads=uploaded + (before.uploads if before else 0),
            )
            newest[client] = signed(word, terms.job)
            found.append(newest[client])
    return found


def write(run: Path, words: list[Word]) -> None:
    (run / FILE).write_bytes(b"".join(word.encode() + b"\n" for word in words))
