"""A task's hash covers all that its distribution brings, as it was imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsys import tasks
from fedsys.errors import PolicyRefusal
from fedsys.tasks.code import code_of

TASK = """
from ward.columns import COLUMNS
class Risk:
    name = "risk"
    def init_model(self, seed): ...
    def loss(self, outputs, targets): ...
    def metrics(self, outputs, targets): ...
    def clients(self, source): ...
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of several modules and a data file, in the current folder."""
    folder = tmp_path / "ward"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "task.py").write_text(TASK)
    (folder / "columns.py").write_text("COLUMNS = ['age']\n")
    (folder / "table.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    yield folder
    _forget()


def _forget() -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] == "ward"]:
        del sys.modules[name]


def fresh() -> str:
    """The hash in a process that has just imported it."""
    _forget()
    return code_of(tasks.load("ward.task:Risk")).sha256


def write(path: Path, text: str) -> None:
    """Change a file, and its time of change."""
    path.write_text(text)
    later = path.stat().st_mtime + 10
    os.utime(path, (later, later))


@pytest.mark.parametrize("name", ["columns.py", "table.json", "extra.py"])
def test_every_file_of_the_package_counts(package: Path, name: str) -> None:
    first = fresh()
    assert fresh() == first
    write(package / name, "COLUMNS = ['temp']\n")
    assert fresh() != first
    (package / "__pycache__").mkdir(exist_ok=True)
    second = fresh()
    (package / "__pycache__" / "x.pyc").write_bytes(b"1")
    assert fresh() == second


def test_what_was_imported_is_hashed_and_an_edit_asks_for_a_restart(package: Path) -> None:
    fresh()
    code = code_of(tasks.load("ward.task:Risk"))
    before = code.sha256
    code.require_unchanged()
    os.utime(package / "columns.py")  # touched, and the same
    code.require_unchanged()
    write(package / "table.json", "{1}")
    assert code.sha256 == before
    with pytest.raises(PolicyRefusal, match=r"table\.json\): restart it"):
        code.require_unchanged()
    with pytest.raises(PolicyRefusal, match="restart"):
        code_of(tasks.load("ward.task:Risk"))
    (package / "table.json").unlink()
    with pytest.raises(PolicyRefusal, match=r"table\.json"):
        code.require_unchanged()


def test_a_module_of_its_own_counts_with_those_that_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper_of_one.py").write_text("COLUMNS = 1\n")
    text = TASK.replace("ward.columns", "helper_of_one")
    (tmp_path / "single_task.py").write_text(text)
    task = tasks.load("single_task:Risk")
    assert sorted(code_of(task).files) == ["helper_of_one.py", "single_task.py"]
    for name in ("single_task", "helper_of_one"):
        del sys.modules[name]


def test_a_built_in_task_is_covered_with_all_of_its_siblings() -> None:
    digits = code_of(tasks.load("digits"))
    assert {"fedsys/tasks/digits.py", "fedsys/tasks/base.py"} <= digits.files.keys()
    assert digits.sha256 != code_of(tasks.load("synthetic")).sha256
    assert digits.sha256 == code_of(tasks.load("digits", {"hidden": 8})).sha256
