"""Files that are written fit the published schemas, and others do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsys.audit import audit_canaries, audit_run, compose
from fedsys.audit.document import write
from tests.verifier.runs import Make, copy
from tests.verifier.schemas import check, documents, validator


@pytest.fixture(scope="module")
def run(run_of: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With canaries, and audited."""
    folder = copy(run_of("canaries"), tmp_path_factory.mktemp("audited") / "run")
    write(folder, audit_canaries(folder))
    return folder


def test_all_files_of_a_run_with_canaries(run: Path) -> None:
    assert check(run) == {"ledger", "private", "metrics", "canaries", "summary", "audit"}


@pytest.mark.parametrize("kind", ["none", "tuned", "resumed"])
def test_audits_of_other_runs(kind: str, run_of: Make, tmp_path: Path) -> None:
    folder = copy(run_of(kind), tmp_path / "run")
    write(folder, audit_run(folder))
    check(folder)


def test_an_audit_of_several_runs_and_of_a_damaged_one(run_of: Make, tmp_path: Path) -> None:
    folder = copy(run_of("none"), tmp_path / "run")
    write(folder, compose([run_of("tuned"), run_of("resumed")]))
    check(folder)
    (folder / "ledger.jsonl").write_text("{}\n")
    write(folder, audit_run(folder))
    validator("audit").validate(dict(documents(folder))["audit"])


BAD: dict[str, list[dict[str, Any]]] = {
    "summary": [
        {"extra": 1},
        {"version": 2},
        {"status": "done"},
        {"ledger_head": "00"},
        {"privacy": {}},
        {"rounds": -1},
        {"metrics": {"loss": "low"}},
    ],
    "metrics": [{"round": 0}, {"loss": "low"}, {"more": [1]}],
    "private": [
        {"round": 0},
        {"salt": "00"},
        {"sampled": [1.5]},
        {"sampled": [-1]},
        {"survivors": [3, 3]},
        {"participations": [0]},
        {"sampled": "?"},
        {"clipped_fraction": 2},
    ],
    "canaries": [{"extra": 1}, {"version": 1}, {"seed": "00"}, {"slack": -1.0}, {"protocol": {}}],
    "audit": [
        {"extra": 1},
        {"version": 2},
        {"passed": None},
        {"claims": [{"name": "x"}]},
        {"curve": [{"round": 1}]},
        {"epsilon": {"outsider": -1}},
        {"neighbours": {"anybody": "x"}},
    ],
}


@pytest.mark.parametrize("name", BAD)
def test_other_documents_do_not_fit(name: str, run: Path) -> None:
    document = next(each for schema, each in documents(run) if schema == name)
    assert validator(name).is_valid(document)
    for change in BAD[name]:
        assert not validator(name).is_valid(document | change), change
    for missing in validator(name).schema.get("required", ()):
        without = {key: value for key, value in document.items() if key != missing}
        assert not validator(name).is_valid(without), missing


def test_diagnostics_are_open(run: Path) -> None:
    line = next(each for schema, each in documents(run) if schema == "private")
    assert validator("private").is_valid(line | {"anything": {"of": "a host"}})
