"""``fedsys task``, ``fedsys predict`` and what an export says of a table, as people type them."""

from __future__ import annotations

import csv
import io
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsys.cli import main
from fedsys.config import load
from fedsys.release.model import ReleasedModel
from simulations import harness

Fedsys = Callable[..., tuple[int, str, str]]

PEOPLE = "who,age,city,joined,income\n" + "".join(
    f"{k // 5:03d},{20 + k % 50},{('Bonn', 'Köln')[k % 2]},202{k % 5}-03-0{1 + k % 9},"
    f"{('<=50K', '>50K')[k % 50 > 25]}\n"
    for k in range(200)
)
QUICK = [
    "privacy.mechanism=none",
    "aggregation.protocol=ideal",
    "rounds.count=2",
    "cohort.expected=4",
    "engine.processes=1",
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FEDSYS_DATA", raising=False)
    Path("people.csv").write_text(PEOPLE, encoding="utf-8")


@pytest.fixture
def fedsys(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fedsys:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedsys", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        out, err = capsys.readouterr()
        code = leaving.value.code
        return int(code or 0), out, err

    return run


def trained(*settings: str, config: str | None = None, out: str = "run") -> Path:
    return harness.run(load(config, [*QUICK, *settings]), out=Path(out)).folder


def options(text: str) -> list[str]:
    return ["task.name=tabular", f"task.options={{path = 'people.csv', {text}}}"]


def test_a_schema_is_written_read_and_trained_on(fedsys: Fedsys) -> None:
    code, _, said = fedsys(
        "task", "schema", "people.csv", "--label", "income", "--client", "who", "--out", "p.toml"
    )
    assert code == 0, said
    assert "200 rows of 40 clients" in said
    declared = tomllib.loads(Path("p.toml").read_text("utf-8"))["task"]["options"]
    assert declared["classes"] == ["<=50K", ">50K"]
    assert declared["ranges"]["age"] == [20, 70]
    assert declared["ranges"]["joined"] == ["2020-03-01", "2024-04-09"] or all(
        len(end) == 10 for end in declared["ranges"]["joined"]
    )
    assert declared["values"] == {"city": ["Bonn", "Köln"]}
    assert "who" not in declared["ranges"]
    code, out, _ = fedsys("task", "read", "p.toml")
    assert code == 0
    assert "label income: 2 classes, <=50K (104), >50K (96)" in out
    run = trained("population.partition=by-column", config="p.toml")
    stored = json.loads((run / "data.json").read_text("utf-8"))
    assert (stored["rows"], stored["clients"]) == (200, 40)
    assert stored["classes"] == {"<=50K": 104, ">50K": 96}
    header = json.loads((run / "ledger.jsonl").read_text("utf-8").splitlines()[0])
    assert "client-local" in json.dumps(header)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.csv", "--label", "y"), "nowhere.csv: no such file"),
        (("people.csv",), "which column is predicted? who, age, city, joined, income"),
        (("people.csv", "--label", "incom"), "has no column 'incom' (did you mean income?)"),
        (("people.csv", "--label", "income", "--option", "nonsense"), "expected KEY=VALUE"),
        (("people.csv", "--label", "income", "--option", "kind=1"), "task.options.kind: unknown"),
        (("people.csv", "--label", "income", "--out", "people.csv"), "already exists"),
        (("people.csv", "--label", "income"), "column 'who', row 1: '000' has a leading zero"),
    ],
)
def test_a_schema_that_cannot_be(fedsys: Fedsys, arguments: tuple[str, ...], message: str) -> None:
    code, _, said = fedsys("task", "schema", *arguments)
    assert (code, said.count("\n")) == (2, 1)
    assert message in said


def test_a_file_that_does_not_fit_its_declaration(fedsys: Fedsys) -> None:
    declare = ("task", "schema", "people.csv", "--label", "income", "--client", "who")
    assert fedsys(*declare, "--out", "p.toml")[0] == 0
    Path("ward").mkdir()
    Path("ward/people.csv").write_text(PEOPLE.replace("Köln", "Cologne"), encoding="utf-8")
    Path("people.csv").unlink()
    code, _, said = fedsys("task", "read", "p.toml", "--data", "ward")
    assert code == 2
    assert "column 'city', row 2: 'Cologne' is not one of task.options.values.city" in said


def scores(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_predicting_from_columns_that_were_inferred(fedsys: Fedsys) -> None:
    run = trained(*options("label = 'income', client = 'who'"), "population.partition=by-column")
    code, out, said = fedsys("predict", run, "people.csv")
    assert code == 0, said
    found = scores(out)
    assert [row["row"] for row in found] == [str(k) for k in range(1, 201)]
    assert {row["prediction"] for row in found} <= {"<=50K", ">50K"}
    assert all(abs(float(r["p(<=50K)"]) + float(r["p(>50K)"]) - 1) < 1e-5 for r in found)
    right = sum(
        row["prediction"] == line.split(",")[-1]
        for row, line in zip(found, PEOPLE.splitlines()[1:], strict=True)
    )
    assert f"accuracy {right / 200:.4g} over 200 rows" in said
    unlabelled = [",".join(line.split(",")[1:4]) for line in PEOPLE.splitlines()]
    Path("new.csv").write_text("\n".join(unlabelled) + "\n", encoding="utf-8")
    code, again, said = fedsys("predict", run, "new.csv", "--out", "scores.csv")
    assert (code, again) == (0, ""), said
    assert Path("scores.csv").read_text("utf-8") == out
    assert fedsys("publish", run, "public")[0] == 0
    (run / "data.json").unlink()
    code, _, said = fedsys("predict", run, "new.csv")
    assert code == 2
    assert "its audit fails (What is not published, as closed)" in said
    code, _, said = fedsys("predict", "public", "new.csv")
    assert code == 2
    assert "its columns were not declared, and data.json" in said


def test_predicting_from_declared_columns_needs_nothing_stored(fedsys: Fedsys) -> None:
    declared = "label = 'income', classes = ['<=50K', '>50K'], ranges = { age = [0, 100] }"
    run = trained(*options(declared), "population.partition=iid", "population.clients=20")
    first = fedsys("predict", run, "people.csv")
    assert first[0] == 0
    code, _, _ = fedsys("publish", run, "public")
    assert code == 0
    assert not (Path("public") / "data.json").exists()
    assert fedsys("predict", "public", "people.csv")[1] == first[1], "the options decide"
    body = json.loads((run / "data.json").read_text("utf-8"))
    body["preparation"]["features"][0]["scale"] = 1e-9
    (Path("public") / "data.json").write_text(json.dumps(body))
    code, _, said = fedsys("predict", "public", "people.csv")
    assert code == 2
    assert "its audit fails" in said
    lines = PEOPLE.replace("20,Bonn", "?,Bonn")
    Path("bad.csv").write_text(lines, encoding="utf-8")
    code, _, said = fedsys("predict", run, "bad.csv")
    assert code == 2
    assert "column 'age', row 1: '?' is not a number" in said


def test_predicting_a_number(fedsys: Fedsys) -> None:
    Path("houses.csv").write_text(
        "area,price\n" + "".join(f"{k},{3000 * k + 7}\n" for k in range(40, 140))
    )
    run = trained(
        "task.name=tabular",
        "task.options={path = 'houses.csv', label = 'price'}",
        "population.partition=iid",
        "population.clients=10",
        "rounds.count=20",
        "local.epochs=5",
        "local.learning_rate=0.1",
        "server.strategy=fedavg",
        "server.learning_rate=1.0",
        "server.momentum=0.0",
        "privacy.clip=10.0",
    )
    code, out, said = fedsys("predict", run, "houses.csv")
    assert code == 0, said
    found = [float(row["prediction"]) for row in scores(out)]
    error = [abs(each - 3000 * k - 7) for k, each in zip(range(40, 140), found, strict=True)]
    assert sum(error) / 100 < 40_000, "a mean guess is off by 75,000"
    assert f"mae {sum(error) / 100:.4g}"[:8] in said
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    assert metrics["mae"] < 40_000


def test_rows_that_cannot_be_scored_stay_empty(fedsys: Fedsys) -> None:
    run = trained(
        *options("label = 'income', ignore = ['who'], when_missing = 'drop'"),
        "population.partition=iid",
        "population.clients=20",
    )
    Path("gap.csv").write_text("age,city,joined\n30,Bonn,2020-01-01\n,Bonn,2020-01-01\n")
    code, out, said = fedsys("predict", run, "gap.csv")
    assert code == 0, said
    assert scores(out)[1] == {"row": "2", "prediction": "", "p(<=50K)": "", "p(>50K)": ""}
    assert "1 of 2 rows scored" in said


def test_other_tasks_score_no_tables(fedsys: Fedsys) -> None:
    run = trained()
    code, _, said = fedsys("predict", run, "people.csv")
    assert code == 2
    assert "its task is digits" in said
    assert fedsys("predict", "nowhere", "people.csv")[0] == 2
    assert fedsys("predict", run, "nowhere.csv")[0] == 2


def test_an_export_says_how_rows_become_features() -> None:
    run = trained(*options("label = 'income', client = 'who'"), "population.partition=by-column")
    stated: Any = json.loads(ReleasedModel.of(run).facts["fedsys.preparation"])
    assert stated["target"]["classes"] == ["<=50K", ">50K"]
    assert [each["name"] for each in stated["features"]] == ["age", "city", "joined"]
    assert "fedsys.preparation" not in ReleasedModel.of(trained(out="other")).facts


def test_what_was_read_is_said_before_the_first_round() -> None:
    said: list[object] = []
    table = options("label = 'income', client = 'who'")
    config = load(None, [*QUICK, *table, "population.partition=by-column"])
    harness.run(config, out=Path("run"), observer=said.append)
    assert str(said[0]).startswith("read people.csv (csv, separated by commas, utf-8): 200 rows of")
    assert "label income: 2 classes" in str(said[1])
