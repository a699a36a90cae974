"""Ranges and values from a query's answers, and one total for the query and what it is used for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedsys.audit import audit_run
from fedsys.cli.app import app
from fedsys.config import load, validate
from fedsys.errors import ConfigError
from fedsys.privacy import read_ledger
from simulations import harness
from simulations.declaring import declared_by

ASKED: list[dict[str, Any]] = [
    {"ask": "quantiles", "name": "age", "column": "age", "low": 0, "high": 200,
     "quantiles": [0.05, 0.95], "rows": 5},
    {"ask": "top", "name": "pets", "column": "pet", "values": ["cat", "dog", "owl"], "most": 2,
     "rows": 5},
]  # fmt: skip


def asking(data: Path, questions: list[dict[str, Any]], noise: float) -> Path:
    tree = {
        "job": {"kind": "query"},
        "task": {
            "name": "tabular",
            "options": {
                "path": "people.csv",
                "label": "ill",
                "classes": ["no", "yes"],
                "ranges": {"age": [0, 200]},
                "values": {"pet": ["cat", "dog", "owl"]},
                "other": ["pet"],
            },
        },
        "population": {"partition": "iid", "clients": 80},
        "privacy": {"noise_multiplier": noise},
        "aggregation": {"protocol": "ideal"},
        "query": {"questions": questions},
    }
    return harness.run(validate(tree), out=data / "asked", data=data).folder


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    lines = ["age,pet,ill"]
    for at in range(600):
        pet = ("cat", "dog", "cat", "dog", "cat", "owl")[at % 6 if at % 12 == 5 else at % 5]
        lines.append(f"{20 + at % 50},{pet},{('no', 'yes')[at % 3 == 0]}")
    (folder / "people.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def asked(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(tmp_path_factory.mktemp("home")))
        return asking(people, ASKED, 0.05)  # nearly none: what comes back is known


def test_answers_become_a_declaration_whose_total_covers_the_query(
    asked: Path, people: Path, tmp_path: Path
) -> None:
    out = tmp_path / "people.toml"
    done = CliRunner().invoke(app, ["task", "from-query", str(asked), "--out", str(out)])
    assert done.exit_code == 0, done.output
    config = load(out, [
        "privacy.epsilon=3", "aggregation.protocol=ideal", "cohort.expected=40", "rounds.count=1",
        "engine.path=loop", "engine.chunk=32", "engine.processes=1",
    ])  # fmt: skip
    low, high = config.task.options["ranges"]["age"]
    assert 10 < low < 40
    assert 55 < high < 90
    assert sorted(config.task.options["values"]["pet"]) == ["cat", "dog"]
    run = harness.run(config, out=tmp_path / "trained", data=people).folder
    header = read_ledger(run / "ledger.jsonl").header
    assert header["tuning"]["heads"] == [read_ledger(asked / "ledger.jsonl").head]
    total = json.loads((run / "summary.json").read_text())["privacy"]["total"]
    assert total["runs"] == 1
    spent = json.loads((asked / "summary.json").read_text())["privacy"]["epsilon"]["outsider"]
    assert total["before"] == pytest.approx(spent, rel=1e-3)
    assert spent < total["epsilon"] < spent + 3.0
    audit = audit_run(run)
    assert audit.passed
    held = {each.name: each for each in audit.claims}
    assert "and this one" in held["Tuning runs and the total with them"].rederived
    again = CliRunner().invoke(app, ["task", "from-query", str(asked), "--out", str(out)])
    assert "already exists" in str(again.exception)


def test_in_a_populations_folder_the_query_is_not_charged_twice(
    asked: Path, people: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "population.toml").write_text("epsilon = 2000.0\ndelta = 1e-5\n")
    tree = declared_by(asked) | {
        "privacy": {"epsilon": 2.0},
        "aggregation": {"protocol": "ideal"},
        "cohort": {"expected": 40},
        "rounds": {"count": 1},
        "engine": {"path": "loop", "chunk": 32, "processes": 1},
    }
    with pytest.raises(ConfigError, match="keep tuning runs there"):
        harness.run(validate(tree), population=folder, data=people)
    shutil.copytree(asked, folder / "query")
    run = harness.run(validate(tree), population=folder, data=people).folder
    total = json.loads((run / "summary.json").read_text())["privacy"]["total"]
    assert total["runs"] == 1


def test_what_declares_nothing_is_refused(tmp_path: Path, people: Path) -> None:
    (tmp_path / "people.csv").write_bytes((people / "people.csv").read_bytes())
    run = asking(tmp_path, [{"ask": "count", "name": "rows"}], 1.0)
    with pytest.raises(ConfigError, match="asked neither for quantiles nor"):
        declared_by(run)
    stated = json.loads((run / "summary.json").read_text())
    stated["query"]["answers"][0]["estimates"][0]["value"] += 100
    (run / "summary.json").write_text(json.dumps(stated))
    with pytest.raises(ConfigError, match="its audit does not hold"):
        declared_by(run)
