"""What a notebook asks of a run that has ended."""

from __future__ import annotations

import dataclasses
import doctest
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import fedsys
from fedsys import Run, tasks
from fedsys.errors import ConfigError, FedsysError, RunFolderError
from fedsys.runs import rows
from fedsys.tasks.digits import Digits
from tests.fedsys.api.conftest import SMALL


class Named(Digits):
    """A task of one's own."""

    def __init__(self) -> None:
        super().__init__({})


def test_history_has_a_row_a_round(finished: Run) -> None:
    history = finished.history
    assert history.column("round") == [1, 2, 3]
    assert history.column("outcome") == ["commit"] * 3
    assert history[-1]["accuracy"] == finished.metrics["accuracy"]
    for row in history:
        assert 0 < row["survivors"] <= row["sampled"]
        assert 0 <= row["clipped_fraction"] <= 1
        assert 0 < row["epsilon_outsider"] <= row["epsilon_participant"] <= row["epsilon_server"]
    assert history[-1]["epsilon_outsider"] == pytest.approx(finished.epsilon.outsider)
    spent = history.column("epsilon_outsider")
    assert spent == sorted(spent)
    with pytest.raises(KeyError, match="no column 'acuracy'; there are round, outcome"):
        history.column("acuracy")


def test_rounds_without_evaluation_and_rounds_that_failed_have_rows(tmp_path: Path) -> None:
    settings = {**SMALL, "rounds.count": 4, "evaluation.every": 2}
    settings |= {
        "privacy.mechanism": "none",
        "cohort.min_survivors": 90,
        "faults.dropout": 0.9,
    }
    run = fedsys.simulate("quickstart", settings, out=tmp_path / "run", progress=False)
    assert set(run.history.column("outcome")) == {"abort"}
    assert [row["accuracy"] is None for row in run.history] == [True, False, True, False]


def test_history_becomes_a_data_frame(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_records(rows: list[dict[str, Any]], columns: list[str]) -> tuple[Any, ...]:
        return rows, columns

    frame = SimpleNamespace(from_records=from_records)
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=frame))
    rows, columns = finished.history.to_pandas()
    assert columns == list(finished.history.columns)
    assert rows == list(finished.history)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(FedsysError, match="needs pandas, which is not installed"):
        finished.history.to_pandas()


def test_the_model_is_the_tasks_own_module_with_the_released_weights(finished: Run) -> None:
    model = finished.model()
    assert type(model) is type(tasks.load("digits").init_model(0))
    assert not model.training
    released = torch.load(finished.folder / "model.pt", weights_only=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, released[name])
    test = tasks.load("digits").clients(tasks.DataSource()).test
    with torch.inference_mode():
        right = (model(test.x).argmax(1) == test.y).float().mean().item()
    assert right == pytest.approx(finished.metrics["accuracy"])


def test_a_run_that_is_opened_again_imports_no_code_unasked(tmp_path: Path) -> None:
    run = fedsys.simulate("quickstart", SMALL, task=Named, out=tmp_path / "run", progress=False)
    assert run.model().training is False
    again = Run.open(run.folder)
    assert again == dataclasses.replace(run, task=None)
    with pytest.raises(ConfigError, match=r"test_run:Named is custom code; if you trust it"):
        again.model()
    weights = Run.open(run.folder, task=Named).model().state_dict()
    assert all(torch.equal(weights[key], value) for key, value in run.model().state_dict().items())


def test_a_changed_model_is_not_handed_out(tmp_path: Path) -> None:
    run = fedsys.simulate("quickstart", SMALL, out=tmp_path / "run", progress=False)
    content = bytearray((run.folder / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (run.folder / "model.pt").write_bytes(content)
    with pytest.raises(RunFolderError, match="its audit fails"):
        run.model()
    assert not run.audit().passed


def test_the_audit_takes_a_key(finished: Run) -> None:
    audit = finished.audit()
    assert audit.passed
    assert finished.audit(key=audit.signer).passed
    assert not finished.audit(key="0" * 64).passed


def test_plots_show_the_metric_and_the_epsilons(finished: Run) -> None:
    figure = finished.plot()
    left, right = figure.axes
    assert left.get_ylabel() == "accuracy"
    drawn = np.asarray(left.lines[0].get_ydata())
    np.testing.assert_array_equal(drawn, finished.history.column("accuracy"))
    labels = [line.get_label() for line in right.lines]
    assert [str(label).partition(":")[0] for label in labels][:3] == [
        "outsider",
        "participant",
        "server",
    ]
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    assert finished.plot("loss").axes[0].get_ylabel() == "loss"
    with pytest.raises(FedsysError, match="no metric 'acc' to draw; there are accuracy, loss"):
        finished.plot("acc")


def test_a_run_without_privacy_or_evaluation_still_answers(tmp_path: Path) -> None:
    settings = {**SMALL, "privacy.mechanism": "none"}
    run = fedsys.simulate("quickstart", settings, out=tmp_path / "a", progress=False)
    assert run.history.column("epsilon_outsider") == [math.inf] * 3
    assert len(run.plot().axes) == 1
    assert "∞" in run._repr_html_()
    settings = {**SMALL, "evaluation.data": "none"}
    run = fedsys.simulate("quickstart", settings, out=tmp_path / "b", progress=False)
    assert len(run.history) == 3
    with pytest.raises(FedsysError, match=r"nothing to draw: no evaluation yet; see evaluation"):
        run.plot()


def test_what_a_notebook_shows_is_escaped(finished: Run) -> None:
    hostile = dataclasses.replace(finished, metrics={"<script>": 1.0})
    assert "<script>" not in hostile._repr_html_()
    assert "&lt;script&gt;" in hostile._repr_html_()
    assert finished.history._repr_html_().count("<tr>") == 4
    assert repr(finished.history).startswith("<3 rows of round, outcome, loss, accuracy")
    assert "summary" not in repr(finished)


def test_folders_that_are_no_runs_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no finished or interrupted run: no summary\.json"):
        Run.open(tmp_path)
    for text in ("[]", "{", '{"privacy": 3}'):
        (tmp_path / "summary.json").write_text(text, encoding="utf-8")
        with pytest.raises(RunFolderError, match=r"summary\.json is (damaged|not|nested)"):
            Run.open(tmp_path)


def test_comparison_shows_results_costs_and_what_differs(finished: Run, tmp_path: Path) -> None:
    settings = {**SMALL, "privacy.noise_multiplier": 1.5}
    other = fedsys.simulate("quickstart", settings, out=tmp_path / "other", progress=False)
    table = fedsys.compare([finished, other.folder])
    assert table.column("run") == ["finished", "other"]
    assert table.column("privacy.noise_multiplier") == [0.7, 1.5]
    assert "local.learning_rate" not in table.columns
    assert table.column("epsilon_outsider") == [finished.epsilon.outsider, other.epsilon.outsider]
    assert [axes.get_xlabel() for axes in table.plot().axes] == [
        "round",
        "epsilon spent (outsider)",
    ]
    together = table.together().curve[-1].spent.outsider
    apart = [finished.epsilon.outsider, other.epsilon.outsider]
    assert together is not None
    assert max(apart) < together < sum(apart) * 1.01
    assert fedsys.compare({"a": finished, "b": other}).column("run") == ["a", "b"]
    with pytest.raises(FedsysError, match="compare: no run was given"):
        fedsys.compare([])


def test_runs_of_one_folder_name_are_told_apart(finished: Run, tmp_path: Path) -> None:
    other = tmp_path / "finished"
    fedsys.simulate("quickstart", SMALL, out=other, progress=False)
    names = fedsys.compare([finished, other]).column("run")
    assert names == [str(finished.folder), str(other)]


def test_the_page_is_made_once(finished: Run) -> None:
    page = finished.report
    assert page.is_file()
    before = page.stat().st_mtime_ns
    assert finished.report.stat().st_mtime_ns == before
    assert json.loads((finished.folder / "summary.json").read_text())["rounds"] == 3


def test_the_example_of_rows_runs() -> None:
    assert doctest.testmod(rows) == (0, 3)
