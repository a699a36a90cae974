"""Agents' signatures on the ledger: checked, never trusted further than they reach."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsys.audit import audit_run
from fedsys.privacy import read_ledger
from fedsys.privacy.ledger import read_private
from fedsys.records import Claim
from fedsys.release.publication import publish_run
from fedsys.wire.countersign import FILE, Countersignature, message
from tests.fedsys.audit.conftest import failed
from tests.fedsys.audit.forge import sparse

NAME = "Countersignatures"
Word = Countersignature


def key_of(client: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(client.to_bytes(32, "big"))


def signed(word: Word, job: bytes) -> Word:
    text = message(
        job=job,
        round=word.round,
        ledger_head=word.ledger_head,
        participations=word.participations,
    )
    return dataclasses.replace(word, signature=key_of(word.client).sign(text))


@pytest.fixture
def words(run: Path) -> list[Word]:
    """Of three agents in each round."""
    view = read_ledger(run / "ledger.jsonl")
    private, _ = read_private(run / "private.jsonl")
    return [
        signed(
            Word(
                round=record.round,
                client=client,
                key=key_of(client).public_key().public_bytes_raw(),
                ledger_head=bytes.fromhex(record.hash),
                participations=1,
                signature=b"",
            ),
            job_of(run),
        )
        for record in view.rounds
        for client in private[record.round]["sampled"][:3]
    ]


def job_of(run: Path) -> bytes:
    return bytes.fromhex(read_ledger(run / "ledger.jsonl").header["job"])


def write(run: Path, words: list[Word]) -> None:
    (run / FILE).write_bytes(b"".join(word.encode() + b"\n" for word in words))


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
    assert "on 4 of 4 committed rounds, 3 to 3 per round; the newest is round 4" in claim.rederived
    covered = [c for c in result.claims if "countersigned by 3 agents" in c.rests_on]
    assert {"Ledger chain and signatures", "Cohort limits"} <= {c.name for c in covered}
    assert any("cannot be rewritten" in note for note in result.notes)
    published = publish_run(run, tmp_path / "out").path
    assert not (published / FILE).exists()


def test_without_agents_nothing_is_claimed(run: Path) -> None:
    assert NAME not in {claim.name for claim in audit_run(run).claims}
    write(run, [])
    assert said(run).holds is None


def changed(**fields: object) -> Callable[[list[Word], bytes], list[Word]]:
    """The first word, saying something else, signed by the agent itself."""

    def change(words: list[Word], job: bytes) -> list[Word]:
        other = dataclasses.replace(words[0], **fields)  # type: ignore[arg-type]
        return [signed(other, job), *words[1:]]

    return change


def by_another(words: list[Word], job: bytes) -> list[Word]:
    """One agent's word under the key of another, who did sign it."""
    stranger = dataclasses.replace(words[0], key=words[1].key)
    return [*words[1:], stranger]


SPOILED: dict[str, tuple[Callable[[list[Word], bytes], list[Word]], str]] = {
    "forged": (
        lambda words, job: [dataclasses.replace(words[0], signature=bytes(64)), *words[1:]],
        "is forged",
    ),
    "of another job": (lambda words, job: [signed(words[0], bytes(32))], "is forged"),
    "another history": (changed(ledger_head=bytes(32)), "two histories"),
    "a round that is not": (changed(round=9), "which the ledger does not commit|does not commit"),
    "a count that cannot be": (changed(participations=2), "states an impossible"),
    "no count": (changed(participations=0), "states an impossible"),
    "outside the population": (lambda words, job: _as(words, job, 10**6), "states an impossible"),
    "not of the cohort": (lambda words, job: _as(words, job, None), "does not include it"),
    "twice": (lambda words, job: [*words, words[0]], "appears twice"),
    "another's key": (by_another, "different key|another client"),
}


def _as(words: list[Word], job: bytes, client: int | None) -> list[Word]:
    """In the name of somebody who was not there."""
    present = {word.client for word in words}
    who = client if client is not None else next(k for k in range(1437) if k not in present)
    key = key_of(who).public_key().public_bytes_raw()
    return [signed(dataclasses.replace(words[0], client=who, key=key), job), *words]


@pytest.mark.parametrize("name", SPOILED)
def test_what_contradicts_the_ledger_is_refused(run: Path, words: list[Word], name: str) -> None:
    change, why = SPOILED[name]
    write(run, change(words, job_of(run)))
    assert failed(run) == {NAME}
    assert any(part in said(run).rederived for part in why.split("|"))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"null",
        b"[" * 900,
        b"x" * 2000,
        b'{"round":1,"round":1}',
        b'{"client":true,"key":"","ledger_head":"","participations":1,"round":1,"signature":""}',
        b'{"client":1,"key":3,"ledger_head":"","participations":1,"round":1,"signature":""}',
        b'{"client":1e400,"key":"","ledger_head":"","participations":1,"round":1,"signature":""}',
        b"\xff\xfe",
    ],
    ids=range(10),
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
    monkeypatch.setattr("fedsys.audit.countersigned._VERIFIED", 7)
    write(run, words)
    claim = said(run)
    assert claim.holds is True
    assert sorted(calls) == [3, 3, 3, 4, 4, 4]
    assert "6 older ones not verified" in claim.rederived


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
