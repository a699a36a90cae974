"""Devices' statements: framed as LEDGER.md says, and held by the second verifier too."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsys.privacy import Signer
from fedsys.wire import countersign
from tests.fedsys.audit.deployed import Word, deploy, public, signed, terms_of, words_of, write
from tests.verifier import agents
from tests.verifier.chain import Refused
from tests.verifier.runs import Make, copy
from tests.verifier.schemas import validator
from tests.verifier.verify import verify


@pytest.fixture(scope="module")
def enrolled(
    run_of: Make, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Word]]:
    run = copy(run_of("none"), tmp_path_factory.mktemp("enrolled") / "run")
    deploy(run, Signer.load_or_create(home))
    return run, words_of(run)


Change = Callable[[list[Word], bytes], list[Word]]


def first(**fields: object) -> Change:
    """The first word, saying something else."""

    def change(words: list[Word], job: bytes) -> list[Word]:
        other = dataclasses.replace(words[0], **fields)  # type: ignore[arg-type]
        return [signed(other, job), *words[1:]]

    return change


def again(**fields: object) -> Change:
    """The same of somebody who spoke before."""

    def change(words: list[Word], job: bytes) -> list[Word]:
        at = next(at for at, word in enumerate(words) if any(word.previous))
        other = dataclasses.replace(words[at], **fields)  # type: ignore[arg-type]
        return [*words[:at], signed(other, job), *words[at + 1 :]]

    return change


SPOILED: dict[str, tuple[Change, str]] = {
    "forged": (
        lambda words, _: [dataclasses.replace(words[0], signature=bytes(64)), *words[1:]],
        "signature does not hold",
    ),
    "invented": (first(key=public(5000)), "invented"),
    "terms": (first(terms=bytes(32)), "other terms"),
    "head": (first(ledger_head=bytes(32)), "two histories"),
    "previous": (first(previous=bytes([1] * 32)), "two histories before"),
    "model": (first(weights=bytes(32)), "another model"),
    "counts": (first(uploads=2), "impossible counts"),
    "nothing sent": (first(uploaded=False, uploads=0, nonce=bytes(16)), "sent nothing"),
    "twice": (lambda words, _: [*words, words[0]], "appears twice"),
    "forgotten": (again(previous=bytes(32)), "does not continue"),
}


def test_what_devices_say_is_held_and_framed(enrolled: tuple[Path, list[Word]]) -> None:
    run, words = enrolled
    write(run, words)
    verify(run)
    job = terms_of(run).job
    for word in words:
        line = json.loads(word.encode())
        assert agents.message(job, line) == countersign.message(job, word)
        validator("countersignatures").validate(line)
    validator("members").validate(json.loads((run / "members.json").read_text()))


@pytest.mark.parametrize("name", SPOILED)
def test_other_statements_are_refused(name: str, enrolled: tuple[Path, list[Word]]) -> None:
    run, words = enrolled
    change, why = SPOILED[name]
    write(run, change(list(words), terms_of(run).job))
    with pytest.raises(Refused, match=why):
        verify(run)
