"""Runs are found below a folder; links are not followed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedsys.errors import RunFolderError
from fedsys.runs.listing import run_folders


def run_at(folder: Path, at: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("")
    os.utime(folder / "config.toml", (at, at))
    return folder


def test_the_newest_run_comes_first_however_deep(tmp_path: Path) -> None:
    old = run_at(tmp_path / "old", 100)
    deep = run_at(tmp_path / "a" / "b" / "deep", 300)
    within = run_at(tmp_path / "tuned", 200)
    run_at(within / "trial", 400)
    run_at(tmp_path / "a" / "b" / "c" / "too-deep", 500)
    run_at(tmp_path / ".hidden", 600)
    run_at(tmp_path / "a" / "elsewhere", 700).rename(tmp_path.parent / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path.parent / "elsewhere")
    (tmp_path / "empty").mkdir()
    assert run_folders(tmp_path) == [deep, within, old]
    assert run_folders(tmp_path, most=2) == [deep, within]
    assert run_folders(old) == [old]


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no such folder"):
        run_folders(tmp_path / "none")
    assert run_folders(tmp_path) == []
