"""Epsilons are withheld where the data were prepared by looking at other clients' rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsys.audit import audit_run
from fedsys.config import load
from fedsys.errors import RunFolderError
from fedsys.privacy import Signer, read_ledger
from fedsys.records import AuditResult, Claim
from fedsys.release.model import ReleasedModel
from fedsys.tasks.digits import Digits
from simulations import harness
from tests.fedsys.audit.conftest import failures
from tests.fedsys.audit.forge import edit_json, entries, sign_again

NAME = "Preparation of the data"
WITHHELD = {NAME, *(f"Epsilon, {view} view" for view in ("outsider", "participant", "server"))}
DECLARED = [
    'task.options.classes=["no","yes"]',
    "task.options.ranges={age=[0,100]}",
    'task.options.values={city=["Bonn","Oslo"]}',
]


class Silent(Digits):
    """A task of somebody's own that says nothing."""

    name = "silent"
    preprocessing: Any = None

    def __init__(self) -> None:
        super().__init__({})


class Outspoken(Silent):
    """One whose author declares something."""

    name = "outspoken"
    preprocessing = "row-local"


def simulated(folder: Path, *settings: str, observer: harness.Observer | None = None) -> Path:
    usual = [
        "rounds.count=2", "cohort.expected=40", "aggregation.protocol=ideal",
        "engine.path=batched", "engine.chunk=64", "engine.processes=1", "privacy.clip=1.0",
    ]  # fmt: skip
    config = load("quickstart", [*usual, *settings])
    return harness.run(config, out=folder / "run", observer=observer).folder


def table(folder: Path) -> list[str]:
    rng = np.random.default_rng(1)
    lines = [
        f"{rng.integers(100)},{rng.choice(['Bonn', 'Oslo'])},{rng.choice(['no', 'yes'])}\n"
        for _ in range(400)
    ]
    (folder / "t.csv").write_text("age,city,sick\n" + "".join(lines))
    return [
        "task.name=tabular", f'task.options.path="{folder / "t.csv"}"', "task.options.label=sick"
    ]  # fmt: skip


def named(result: AuditResult, name: str = NAME) -> Claim:
    return next(claim for claim in result.claims if claim.name == name)


def test_statistics_over_all_rows_void_every_claim(tmp_path: Path) -> None:
    said: list[object] = []
    run = simulated(tmp_path, *table(tmp_path), observer=said.append)
    words = [event for event in said if isinstance(event, str)]
    assert said[: len(words)] == words, "before the first round"
    warning = "NO PRIVACY CLAIM: the data is prepared from all clients"
    assert sum(word.startswith(warning) for word in words) == 1
    reports = [event for event in said if isinstance(event, harness.RoundReport)]
    assert [report.epsilon for report in reports] == [None, None]
    header = read_ledger(run / "ledger.jsonl").header
    assert header["preprocessing"] == "data-dependent"
    assert "no epsilon covers" in header["withheld"]
    result = audit_run(run)
    assert failures(result) == WITHHELD
    assert named(result, "Epsilon, outsider view").rederived.startswith("withheld: ")
    with pytest.raises(RunFolderError, match="its audit fails"):
        ReleasedModel.of(run)


def test_declared_columns_make_the_claim_valid(tmp_path: Path) -> None:
    said: list[object] = []
    run = simulated(tmp_path, *table(tmp_path), *DECLARED, observer=said.append)
    assert not any("NO PRIVACY" in event for event in said if isinstance(event, str))
    result = audit_run(run)
    assert failures(result) == set()
    assert named(result).holds is True
    assert read_ledger(run / "ledger.jsonl").header["withheld"] is None


def test_without_privacy_nothing_is_withheld(tmp_path: Path) -> None:
    run = simulated(tmp_path, *table(tmp_path), "privacy.mechanism=none")
    result = audit_run(run)
    assert failures(result) == set()
    assert "no privacy is claimed" in named(result).rederived


@pytest.mark.parametrize(
    "change",
    [
        {"preprocessing": "fixed", "withheld": None},
        {"preprocessing": "undeclared", "withheld": None},
        {"preprocessing": None, "withheld": None},
        {"withheld": None},
    ],
)
def test_a_header_that_says_otherwise_is_caught(
    tmp_path: Path, change: dict[str, Any], signer: Signer
) -> None:
    run = simulated(tmp_path, *table(tmp_path))
    (kind, header), *rest = entries(run)
    head = sign_again(run, [(kind, {**header, **change}), *rest], signer)
    edit_json(run, lambda body: body.update(ledger_head=head))
    assert failures(audit_run(run)) >= WITHHELD


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("task", "said"),
    [("Silent", "the task declares nothing"), ("Outspoken", "row-local")],
)
def test_a_task_of_one_s_own_rests_on_its_author_s_word(
    tmp_path: Path, task: str, said: str
) -> None:
    run = simulated(tmp_path, f'task.name="tests.fedsys.audit.test_preparation:{task}"')
    result = audit_run(run)
    assert failures(result) == set()
    claim = named(result)
    assert claim.holds is None
    assert claim.rederived == said
    assert claim.rests_on.startswith("the task author's word")


def test_examples_are_not_covered_where_a_client_is_prepared_as_a_whole(
    run: Path, signer: Signer
) -> None:
    """One statement of the header, two units: shakespeare cuts a client's text as a whole."""
    (kind, header), *rest = entries(run)
    head = sign_again(run, [(kind, {**header, "preprocessing": "client-local"}), *rest], signer)
    edit_json(run, lambda body: body.update(ledger_head=head))
    assert failures(audit_run(run)) == {NAME}, "the task is digits, and clients would be covered"
    assert json.loads((run / "summary.json").read_text())["privacy"]["unit"] == "client"
