"""Columns of a Hugging Face dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsys.cli import main
from fedsys.config import load as configured
from fedsys.errors import ConfigError, DataError
from fedsys.tasks import DataSource, FederatedData, check_contract, load, preprocessing_of
from simulations import harness
from tests.fedsys.tasks.hf.conftest import CLASSES, Save

DECLARED = {"label": "kind", "classes": CLASSES, "ranges": {"age": [0, 100]}}


def read(folder: Path, **options: Any) -> FederatedData:
    task = load("hf", {"path": str(folder), **options})
    data = task.clients(DataSource())
    check_contract(task, data, 0)
    return data


def test_declared_columns_are_read_as_a_table_s_are(save: Save) -> None:
    folder = save()
    data = read(folder, **DECLARED, client="who", test_split="test")
    assert (len(data.train), len(data.test)) == (60, 7)
    assert data.client_names == ("000", "001", "002", "003", "004")
    assert data.natural is not None
    # the first row on disk is the last that was made: class 59 % 3, age 59, client 59 % 5
    assert int(data.train.y[0]) == CLASSES.index("owl") == 59 % 3
    assert float(data.train.x[0, 0]) == pytest.approx((59 - 50) / 50)
    assert int(data.natural[0]) == 4
    part = read(save(splits=False), **DECLARED, client="who", test_fraction=0.3)
    assert len(part.train) + len(part.test) == 60
    assert 8 < len(part.test) < 30


def test_columns_are_inferred_with_evidence(save: Save) -> None:
    data = read(save(who=[f"{row}" for row in range(60)]), label="kind", ignore=["image", "who"])
    assert data.reading is not None
    said = "\n".join(data.reading.lines())
    assert "a Hugging Face dataset" in said
    for name in (*CLASSES, "age"):
        assert name in said
    bad = save(age=["?" if row == 43 else str(row) for row in range(60)])
    with pytest.raises(DataError, match=r"column 'age', row 17: '\?' is no.* number"):
        read(bad, label="kind", ignore=["image", "who"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label": "sort", "ignore": ["image"]}, r"has no column .sort.; it has image, kind"),
        ({"label": "kind"}, r"column 'image' holds pictures; say image = 'image' to train on them"),
        ({"label": "kind", "ignore": ["image"], "split": "tests"},
         r"no split 'tests' \(did you mean test\?\); it has train, test: see task.options.split"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_one_line(save: Save, options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(save(), **options)


def test_a_folder_that_is_no_dataset_is_one_line(save: Save, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is one dataset without splits; leave task.options.split"):
        read(save(splits=False), **DECLARED, split="train")
    (tmp_path / "other").mkdir(exist_ok=True)
    with pytest.raises(
        DataError, match=r"other: cannot be read as a dataset .*save_to_disk wrote$"
    ):
        read(tmp_path / "other", **DECLARED)
    with pytest.raises(DataError, match="nowhere: no such folder in the current folder"):
        read(Path("nowhere"), **DECLARED)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"delimiter": ";"}, "task.options.delimiter: unknown to task hf"),
        ({"test_path": "x"}, "task.options.test_path: unknown to task hf"),
        ({"test_split": "test", "test_fraction": 0.1}, "test_fraction with test_split"),
        ({"partitioner": "Iid", "client": "who"}, "client with partitioner = 'Iid'"),
        ({"partitioner_options": {"a": 1}}, "partitioner_options without partitioner"),
        ({"partitioner": "Iid", "partitioner_options": 1}, "must be a table of arguments"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load("hf", {"path": "x", **DECLARED, **options})


def test_what_is_declared_is_said() -> None:
    assert preprocessing_of(load("hf", {"path": "x", "label": "kind"})) == "data-dependent"
    assert preprocessing_of(load("hf", {"path": "x", **DECLARED})) == "row-local"
    divided = {"path": "x", **DECLARED, "partitioner": "IidPartitioner"}
    assert preprocessing_of(load("hf", divided)) == "client-local"
    assert preprocessing_of(load("hf", {**divided, "test_split": "test"})) == "row-local"


def test_without_the_library_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsys.tasks.hf.dataset.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs the package datasets; .* requirements-hf.lock"):
        read(tmp_path, **DECLARED)


def test_a_run_learns_from_it_and_passes_its_audit(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "keys"))
    config = configured(
        "quickstart",
        [
            "task.name=hf",
            "population.partition=by-column",
            "cohort.expected=5",
            "rounds.count=2",
            "privacy.mechanism=none",
            "aggregation.protocol=ideal",
        ],
        {"task.options": {"path": str(save()), **DECLARED, "client": "who"}},
    )
    run = harness.run(config, out=tmp_path / "run")
    assert run.rounds == 2
    assert (run.folder / "data.json").exists()


@pytest.mark.parametrize("inferred", [False, True])
def test_a_run_scores_a_raw_table(
    inferred: bool,
    save: Save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    columns = {"label": "kind", "ignore": ["image"]} if inferred else DECLARED
    options = {"path": str(save()), "client": "who", **columns}
    settings = ["privacy.mechanism=none", "aggregation.protocol=ideal", "rounds.count=1"]
    settings += ["population.partition=by-column", "cohort.expected=4", "engine.processes=1"]
    job = configured(None, ["task.name=hf", *settings], {"task.options": options})
    run = harness.run(job, out=tmp_path / "run").folder
    (tmp_path / "new.csv").write_text("age,kind\n" + f"7,{CLASSES[1]}\n8,{CLASSES[2]}\n" * 3)
    monkeypatch.setattr("sys.argv", ["fedsys", "predict", str(run), str(tmp_path / "new.csv")])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert ended.value.code in (0, None), shown.err
    assert shown.out.splitlines()[0] == "row,prediction," + ",".join(f"p({c})" for c in CLASSES)
    assert len(shown.out.splitlines()) == 7
    assert "accuracy" in shown.err
    assert "over 6 rows" in shown.err
