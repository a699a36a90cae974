"""``fedsys init`` writes a project whose own tests pass and whose configuration loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fedsys import config
from fedsys.cli.init import init, write_project
from fedsys.errors import RunFolderError

ROOT = Path(__file__).resolve().parents[3]
FILES = {"README.md", "config.toml", "task.py", "test_task.py"}


def _app() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(init)
    return app


def test_the_command_says_what_it_wrote_and_what_comes_next(tmp_path: Path) -> None:
    result = CliRunner().invoke(_app(), [str(tmp_path / "mine")])
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "mine").iterdir()} == FILES
    assert all(name in result.output for name in FILES)
    assert "fedsys simulate config.toml" in result.output
    spaced = CliRunner().invoke(_app(), [str(tmp_path / "my proj é")])
    assert f"cd '{tmp_path}/my proj é' && fedsys" in spaced.output.replace("\n", "")


def test_the_configuration_loads_and_carries_the_folders_name(tmp_path: Path) -> None:
    write_project(tmp_path / "my first project!")
    loaded = config.load(tmp_path / "my first project!" / "config.toml")
    assert loaded.job.name == "my-first-project"
    assert loaded.task.name == "task:Activity"
    assert loaded.privacy.mechanism == "distributed-gaussian"


@pytest.mark.parametrize("name", ["...", "_", "-x-", "9" * 300, "ümläut"])
def test_any_folder_name_gives_a_valid_job(tmp_path: Path, name: str) -> None:
    from fedsys.cli.init import _job_name

    text = f'[job]\nname = "{_job_name(name)}"\n[privacy]\nepsilon = 1.0\n'
    path = tmp_path / "config.toml"
    path.write_text(text)
    assert config.load(path).job.name == _job_name(name)


@pytest.mark.slow
def test_the_projects_own_tests_pass(tmp_path: Path) -> None:
    """In a process of its own, as the user runs them."""
    write_project(tmp_path / "mine")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."],
        cwd=tmp_path / "mine",
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "4 passed" in run.stdout


def test_the_task_is_found_by_the_name_in_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsys import tasks

    write_project(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    loaded = config.load(Path("config.toml"))
    monkeypatch.delitem(sys.modules, "task", raising=False)
    task = tasks.load(loaded.task.name, loaded.task.options)
    monkeypatch.delitem(sys.modules, "task", raising=False)
    assert task.name == "activity"
    partition = tasks.split(
        task.clients(tasks.DataSource()), loaded.population.partition, None, seed=0
    )
    assert partition.clients == 1_000
    assert len(partition.indices_of(0)) == 12


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not empty") as caught:
        write_project(tmp_path)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunFolderError, match="give a folder that can be created"):
            write_project(target)
    assert (tmp_path / "file").read_text() == "mine"
