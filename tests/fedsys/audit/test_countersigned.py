"""Agents' signatures on the ledger: checked, never trusted further than they reach."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsys.audit import audit_run
from fedsys.audit.countersigned import AgainstCohorts, Countersigned, Said, countersigned_claims
from fedsys.privacy import Signer, plan_of, read_ledger
from fedsys.records import Claim
from fedsys.release.publication import publish_run
from fedsys.wire.countersign import FILE
from fedsys.wire.roster import RosterStatement
from simulations import harness
from tests.fedsys.audit.conftest import failed, failures, job
from tests.fedsys.audit.deployed import (
    AUTHORITY,
    FIRST_NODE,
    Word,
    deploy,
    enroll,
    key_of,
    public,
    roster_of,
    signed,
    words_of,
    write,
)
from tests.fedsys.audit.forge import Entry, close_again, edit_json, entries, sign_again, sparse

NAME = "Countersignatures"


@pytest.fixture(scope="module")
def enrolled(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Word]]:
    """A finished run, as if devices had taken part, and what they say; never changed.

    The client that `deploy` has come back may then be the one that spent most, more than the
    summary says, or one that was lost: about one run in three is not used.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(home))
        for _ in range(30):
            run = harness.run(job(), out=tmp_path_factory.mktemp("enrolled") / "run").folder
            deploy(run, Signer.load_or_create(home))
            words = words_of(run)
            if not failed(run) and [True, True] in said_by(words).values():
                return run, words
    raise RuntimeError("no run of 30 is of use")


@pytest.fixture
def run(enrolled: tuple[Path, list[Word]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(enrolled[0], tmp_path / "run"))


@pytest.fixture
def words(enrolled: tuple[Path, list[Word]]) -> list[Word]:
    return list(enrolled[1])


def job_of(run: Path) -> bytes:
    return bytes.fromhex(read_ledger(run / "ledger.jsonl").header["job"])


def said(run: Path) -> Claim:
    return next(claim for claim in audit_run(run).claims if claim.name == NAME)


def test_agents_vouch_for_the_history_up_to_their_newest_round(
    run: Path, words: list[Word], tmp_path: Path
) -> None:
    write(run, words[::-1])  # as they came
    with (run / FILE).open("ab") as file:
        file.write(words[0].encode()[:50])  # a crash
    result = audit_run(run)
    assert result.passed
    claim = said(run)
    assert claim.holds is True
    assert "on 4 of 4 concluded rounds, 3 to " in claim.rederived
    covered = [c for c in result.claims if "countersigned by" in c.rests_on]
    assert {"Ledger chain and signatures", "Cohort limits"} <= {c.name for c in covered}
    assert any("cannot be rewritten" in note for note in result.notes)
    published = publish_run(run, tmp_path / "out").path
    assert not (published / FILE).exists()
    assert not (published / "members.json").exists()
    open_ = {claim.name for claim in audit_run(published).claims if claim.holds is None}
    assert {NAME, "Members"} <= open_


def test_without_agents_nothing_is_claimed(run: Path, finished: Path) -> None:
    assert NAME not in {claim.name for claim in audit_run(finished).claims}
    assert said(run).holds is None
    write(run, [])
    assert said(run).holds is None


def test_the_authority_of_the_roster_is_pinned(run: Path, words: list[Word]) -> None:
    """An invented authority signs a roster of invented agents."""
    write(run, words)
    known = AUTHORITY.public_key().public_bytes_raw().hex()
    assert audit_run(run, authority=known).passed
    enroll(run, roster_of(1437), Ed25519PrivateKey.generate())
    assert audit_run(run).passed
    assert failures(audit_run(run, authority=known)) == {"Members"}


def test_a_roster_that_is_not_the_headers_counts_for_nothing(run: Path, words: list[Word]) -> None:
    write(run, words)
    members = {**roster_of(1437).members, FIRST_NODE: key_of(5000).public_key().public_bytes_raw()}
    enroll(run, RosterStatement(version=1, previous=b"", members=members), AUTHORITY)
    assert failed(run) == {"Members", NAME}
    (run / "members.json").unlink()
    assert failed(run) == {NAME}
    (run / "members.json").write_bytes(b"{}")
    assert failed(run) == {"Members", NAME}


def rewritten(run: Path, signer: Signer, change: Callable[[list[Entry]], list[Entry]]) -> None:
    """The coordinator writes another history, in order in itself, and signs it."""
    sign_again(run, change(entries(run)), signer)
    head = close_again(run, signer)
    edit_json(run, lambda body: body.update(ledger_head=head))


def test_a_dropped_round_contradicts_those_who_were_there(
    run: Path, words: list[Word], signer: Signer
) -> None:
    """Round 3 never was, and round 4 takes its number; private.jsonl and summary follow."""

    def drop(lines: list[Entry]) -> list[Entry]:
        kept = [line for line in lines if line[1].get("round") != 3]
        return [
            (kind, {**body, "round": 3} if body.get("round") == 4 else body) for kind, body in kept
        ]

    write(run, words)
    rewritten(run, signer, drop)
    assert NAME in failed(run)
    first = next(word.client for word in words if word.round == 3)
    why = said(run).rederived
    assert f"client {first} (node {FIRST_NODE + first}) for round 3 signs line" in why
    assert "two histories" in why


def test_a_rewritten_last_line_contradicts_its_witnesses_alone(
    run: Path, words: list[Word], signer: Signer
) -> None:
    def change(lines: list[Entry]) -> list[Entry]:
        kind, body = lines[-2]
        return [*lines[:-2], (kind, {**body, "aggregate_sha256": "00" * 32}), lines[-1]]

    write(run, words)
    rewritten(run, signer, change)
    assert failed(run) == {NAME}
    assert "for round 4 signs line" in said(run).rederived


def changed(**fields: object) -> Callable[[list[Word], bytes], list[Word]]:
    """A word, saying something else, signed by the agent itself, which says no other."""

    def change(words: list[Word], job: bytes) -> list[Word]:
        at = only(words)
        words[at] = signed(dataclasses.replace(words[at], **fields), job)  # type: ignore[arg-type]
        return words

    return change


def only(words: list[Word], round: int | None = None) -> int:
    """The place of the one word of somebody whose update was summed: a second would contradict the
    first when that is changed, and be what is reported."""
    said = said_by(words)
    places = (at for at, word in enumerate(words) if round in (None, word.round))
    return next(at for at in places if said[words[at].client] == [True])


def later(words: list[Word]) -> int:
    """The place of the second and last word of somebody whose updates were summed."""
    said = said_by(words)
    places = (at for at, word in enumerate(words) if word.previous != bytes(32))
    return next(at for at in places if said[words[at].client] == [True, True])


def said_by(words: list[Word]) -> dict[int, list[bool]]:
    """What each client says of its rounds, in order: whether it sent an update."""
    found: dict[int, list[bool]] = {}
    for word in words:
        found.setdefault(word.client, []).append(word.uploaded)
    return found


def restated(**fields: object) -> Callable[[list[Word], bytes], list[Word]]:
    """The same, of somebody who spoke before."""

    def change(words: list[Word], job: bytes) -> list[Word]:
        at = later(words)
        words[at] = signed(dataclasses.replace(words[at], **fields), job)  # type: ignore[arg-type]
        return words

    return change


def _in_round_two(**fields: object) -> Callable[[list[Word], bytes], list[Word]]:
    """The same, in round 2."""

    def change(words: list[Word], job: bytes) -> list[Word]:
        at = only(words, round=2)
        words[at] = signed(dataclasses.replace(words[at], **fields), job)  # type: ignore[arg-type]
        return words

    return change


def alone_with_fewer(words: list[Word], job: bytes) -> list[Word]:
    """Somebody's first word was lost, and the second counts one update where two were summed."""
    word = words[later(words)]
    rest = [each for each in words if each.client != word.client]
    return [*rest, signed(dataclasses.replace(word, uploads=1), job)]


SPOILED: dict[str, tuple[Callable[[list[Word], bytes], list[Word]], str]] = {
    "forged": (
        lambda words, job: [dataclasses.replace(words[0], signature=bytes(64)), *words[1:]],
        "is forged",
    ),
    "of another job": (lambda words, job: [signed(words[0], bytes(32)), *words[1:]], "is forged"),
    "other terms": (changed(terms=bytes(32)), "other terms"),
    "another history": (changed(ledger_head=bytes(32)), "two histories"),
    "a round that is not": (changed(round=9), "does not conclude"),
    "another model": (changed(weights=bytes(32)), "was sent the model 00000"),
    "a hidden invitation": (_in_round_two(invitations=2), "was invited 2 times so far"),
    "more uploads than invitations": (changed(uploads=2), "impossible counts"),
    "no count": (changed(invitations=0, uploads=0, uploaded=False), "impossible counts"),
    "a nonce without an upload": (changed(uploaded=False, uploads=0), "impossible counts"),
    "nothing sent": (
        changed(uploaded=False, uploads=0, nonce=bytes(16)),
        "says that it sent nothing",
    ),
    "an update that it did not send": (restated(uploads=1), "does not continue its own"),
    "an update summed twice": (alone_with_fewer, "sent 1 updates so far"),
    "a history before that is not": (changed(previous=bytes([1] * 32)), "two histories"),
    "a second first word": (restated(previous=bytes(32)), "does not continue its own"),
    "a count that goes back": (restated(invitations=1, uploads=1), "does not continue its own"),
    "outside the population": (lambda words, job: _as(words, job, 10**6), "no member"),
    "not of the cohort": (lambda words, job: _as(words, job, None), "does not include it"),
    "twice": (lambda words, job: [*words, words[0]], "appears twice"),
    "invented": (changed(key=public(5000)), "an invented agent"),
}


def test_vectors_that_were_sent_and_not_counted_are_named(run: Path) -> None:
    """A client that is said to have been lost costs the server's view nothing."""
    view = read_ledger(run / "ledger.jsonl")
    said = Said(follows=0, uploaded=True, nonce=b"n" * 16, invitations=1, uploads=1)
    found = Countersigned(concluded=4, clients={1: [3]}, said={1: {3: said}, 2: {3: said}})
    cohorts = AgainstCohorts(found, view, plan_of(view.header))
    asked, summed = np.array([3, 5]), np.array([5])
    cohorts.note(1, asked, summed, committed=True, nonces=None)
    (claim,) = countersigned_claims(found, view)
    assert claim.holds is True
    assert "1 vectors that agents sent are in no sum by private.jsonl, 1 of them by client 3" in (
        claim.rederived
    )
    cohorts.note(2, asked, asked, committed=False, nonces=None)
    assert found.uncounted.total() == 1


def _as(words: list[Word], job: bytes, client: int | None) -> list[Word]:
    """In the name of somebody who was not there."""
    present = {word.client for word in words}
    who = client if client is not None else next(k for k in range(1437) if k not in present)
    return [signed(dataclasses.replace(words[0], client=who, key=public(who)), job), *words]


@pytest.mark.parametrize("name", SPOILED)
def test_what_contradicts_the_ledger_is_refused(run: Path, words: list[Word], name: str) -> None:
    change, why = SPOILED[name]
    write(run, change(words, job_of(run)))
    assert failed(run) == {NAME}
    found = said(run).rederived
    assert why in found, found


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"null",
        b"[" * 900,
        b"x" * 2000,
        b'{"round":1,"round":1}',
        b'{"client":true}',
        b"\xff\xfe",
    ],
    ids=range(8),
)
def test_malformed_lines_are_refused(run: Path, words: list[Word], raw: bytes) -> None:
    (run / FILE).write_bytes(words[0].encode() + b"\n" + raw + b"\n")
    assert failed(run) == {NAME}


def test_spaces_are_another_form(run: Path, words: list[Word]) -> None:
    (run / FILE).write_text(json.dumps(json.loads(words[0].encode())) + "\n")
    assert failed(run) == {NAME}
    assert "canonical" in said(run).rederived


@pytest.mark.parametrize("kind", ["huge", "link", "pipe", "folder"])
def test_what_is_no_file_is_not_read(
    run: Path, words: list[Word], tmp_path: Path, kind: str
) -> None:
    path = run / FILE
    if kind == "huge":
        sparse(path, 10 << 30)
    elif kind == "link":
        write(tmp_path, words)
        path.symlink_to(tmp_path / FILE)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert failed(run) == {NAME}


def test_only_the_newest_rounds_signatures_are_verified(
    run: Path, words: list[Word], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = Word.holds

    def holds(self: Word, job: bytes) -> bool:
        calls.append(self.round)
        return real(self, job)

    monkeypatch.setattr(Word, "holds", holds)
    newest = [word for word in words if word.round > 2]
    monkeypatch.setattr("fedsys.audit.countersigned._VERIFIED", len(newest) + 1)
    write(run, words)
    claim = said(run)
    assert claim.holds is True
    assert sorted(calls) == sorted(word.round for word in newest)
    assert f"{len(words) - len(newest)} older ones not verified" in claim.rederived


def test_lines_fit_the_schema(words: list[Word]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    source = importlib.resources.files("fedsys.privacy").joinpath("countersignatures.schema.json")
    schema = json.loads(source.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    line = json.loads(words[0].encode())
    validator.validate(line)
    for change in ({"round": 0}, {"key": "x"}, {"extra": 1}, {"client": "1"}):
        assert not validator.is_valid(line | change)
