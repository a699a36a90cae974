"""The one comparison: as a page, in the terminal, as JSON; the same figures in each."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedsys
from fedsys import Run
from fedsys.cli.app import app
from fedsys.report.comparison import build_comparison
from fedsys.report.terminal import print_comparison
from fedsys.runs.side_by_side import MOST_LINES, page_of, shown
from tests.fedsys.api.conftest import SMALL


@pytest.fixture
def two(finished: Run, tmp_path: Path) -> list[Path]:
    """Two runs that differ in their noise; the name of one is markup."""
    shutil.copytree(finished.folder, tmp_path / "low<u>")
    settings = {**SMALL, "privacy.noise_multiplier": 1.5}
    other = fedsys.simulate("quickstart", settings, out=tmp_path / "high", progress=False)
    return [tmp_path / "low<u>", other.folder]


def test_page_terminal_json_and_notebook_say_the_same(two: list[Path], tmp_path: Path) -> None:
    table = fedsys.compare(two)
    page = page_of(table, command="fedsys compare")
    results, settings = page.tables
    assert [name for name, _ in results.rows] == ["low<u>", "high"]
    assert settings.rows == [("privacy.noise_multiplier", [("0.7", ""), ("1.5", "")])]
    out = io.StringIO()
    print_comparison(page, file=out)
    done = CliRunner().invoke(app, ["compare", *map(str, two), "--html", str(tmp_path / "c.html")])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(out.getvalue())
    for row in table:
        for column in ("accuracy", "epsilon_outsider", "epsilon_server"):
            assert shown(column, row[column]) in out.getvalue()
            assert shown(column, row[column]) in (tmp_path / "c.html").read_text("utf-8")
    assert "<u>" not in (tmp_path / "c.html").read_text("utf-8")
    lines = CliRunner().invoke(app, ["compare", *map(str, two), "--json"]).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [dict(row) for row in table]
    assert page.chart is not None
    assert [each.label for each in page.chart.series] == ["low<u>", "high"]
    words = [word for _, word, _ in page.findings]
    assert words == ["highest accuracy", "least ε (outsider)"]
    assert page.findings[1][2].startswith("high: ")


def test_more_runs_than_lines_and_runs_without_an_evaluation(finished: Run, tmp_path: Path) -> None:
    many = fedsys.compare({f"r{number}": finished for number in range(MOST_LINES + 2)})
    chart = page_of(many, command="").chart
    assert chart is not None
    assert len(chart.series) == MOST_LINES
    assert chart.note == f"test data; the first {MOST_LINES} runs of {MOST_LINES + 2}"
    shutil.copytree(finished.folder, tmp_path / "bare")
    (tmp_path / "bare" / "metrics.jsonl").unlink()
    page = page_of(fedsys.compare([tmp_path / "bare"]), command="")
    assert page.chart is None
    assert page.findings == []
    text = build_comparison(tmp_path / "page.html", page).read_text("utf-8")
    assert "One run; give more" in text
    assert "<figure" not in text


def test_cells() -> None:
    assert shown("accuracy", None) == "–"
    assert shown("epsilon_server", math.inf) == "∞"
    assert shown("epsilon_server", math.nan) == "–"
    assert shown("x", math.inf) == "∞"
    assert shown("status", "a\nb") == shown("status", "a\nb").replace("\n", "")


def test_folders_that_are_no_runs_are_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "none")])
    assert isinstance(done.exception, fedsys.errors.RunFolderError)
    assert "none" in str(done.exception)
