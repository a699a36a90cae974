"""``fedsys task export`` and ``fedsys agent inspect``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsys.cli.app import app
from fedsys.errors import ConfigError, FedsysError

_ROOT = Path(__file__).parents[3]


def _run(*arguments: str) -> str:
    found = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


def test_a_graph_is_written_checked_and_inspected(tmp_path: Path) -> None:
    file = str(tmp_path / "digits.graph")
    said = _run("task", "export", "digits", "--batch-size", "8", "-o", file)
    sha256 = said.strip().rpartition("sha256 ")[2]
    assert len(sha256) == 64
    assert "650 weights, batches of 8" in said
    assert "MB and" in said
    assert "MFLOP" in said
    again = _run("task", "export", "digits", "--batch-size", "8", "--check", file)
    assert f"sha256 {sha256}" in again
    shown = _run("agent", "inspect", file, "--nodes")
    assert f"sha256    {sha256}" in shown
    assert "task      digits" in shown
    assert "gradient and loss of batches of 8" in shown
    assert "LogSoftmax" in shown
    with pytest.raises(ConfigError, match=r"differs from what this task exports to here \(sha256"):
        _run("task", "export", "digits", "--batch-size", "9", "--check", file)
    with pytest.raises(ConfigError, match="already exists"):
        _run("task", "export", "digits", "--batch-size", "8", "-o", file)


def test_options_are_part_of_the_graph(tmp_path: Path) -> None:
    file = str(tmp_path / "digits.graph")
    _run("task", "export", "digits", "--batch-size", "2", "-o", file, "--option", "hidden=5")
    assert "options   {'hidden': 5}" in _run("agent", "inspect", file)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--batch-size", "8"], "give a new file"),
        (["--batch-size", "8", "-o", "none/x"], "there is no folder none"),
        (["--batch-size", "0", "-o", "x"], "--batch-size 0"),
        (["--batch-size", "8", "-o", "x", "--option", "y"], "expected KEY=VALUE"),
        (["--batch-size", "8", "--check", "none"], "--check none: no such file"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedsysError, match=why):
        _run("task", "export", "digits", *arguments)


def test_inspecting_needs_no_torch_and_refuses_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "digits.graph"
    _run("task", "export", "digits", "--batch-size", "8", "-o", str(file))
    bad = tmp_path / "bad.graph"
    bad.write_bytes(file.read_bytes()[:-1] + b"\xff")
    for path, status in ((file, 0), (bad, 2), (tmp_path / "none", 2)):
        code = (
            "import sys\n"
            "for name in ('torch', 'scipy', 'onnx'): sys.modules[name] = None\n"
            "from fedsys.cli import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "agent", "inspect", str(path)],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert done.stderr.count("\n") == (0 if status == 0 else 1)
