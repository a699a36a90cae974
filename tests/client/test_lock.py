"""A device's folder has one process at a time, and says which."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.lock import exclusive, holder
from fedsys.errors import ConfigError

HOLD = """
import pathlib, sys
from client.lock import exclusive
with exclusive(pathlib.Path(sys.argv[1]), "fedsys agent run"):
    print("held", flush=True)
    sys.stdin.read()
"""


def held_by_another(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the folder until its input ends."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    return other


def test_a_folder_has_one_process(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with exclusive(tmp_path, "fedsys agent run"):
        assert holder(tmp_path) == f"fedsys agent run (process {os.getpid()})"
        with (
            pytest.raises(ConfigError, match=r"fedsys agent run \(process \d+\) is at work in it"),
            exclusive(tmp_path, "another", patience=0.0),
        ):
            raise AssertionError("it took a folder that is taken")
    assert holder(tmp_path) is None
    with exclusive(tmp_path, "another"):
        assert holder(tmp_path) == f"another (process {os.getpid()})"


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as other:
        with (
            pytest.raises(ConfigError, match=rf"agent run \(process {other.pid}\)"),
            exclusive(tmp_path, "another", patience=0.0),
        ):
            raise AssertionError("it took a folder that is taken")
        other.kill()
    with exclusive(tmp_path, "another"):
        pass


def test_it_waits_for_who_lets_go_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held_by_another(tmp_path) as other:
        naps = []

        def nap(seconds: float) -> None:
            naps.append(seconds)
            other.communicate()

        monkeypatch.setattr(time, "sleep", nap)
        with exclusive(tmp_path, "another", patience=3600.0):
            assert len(naps) == 1


def test_a_mark_tells_whether_another_came_between(tmp_path: Path) -> None:
    with exclusive(tmp_path, "one", mark="m") as same:
        assert not same, "nothing can be remembered yet"
    for _ in range(2):
        with exclusive(tmp_path, "one", mark="m") as same:
            assert same
    with exclusive(tmp_path, "two") as same:
        assert not same
    with exclusive(tmp_path, "one", mark="m") as same:
        assert not same
    with exclusive(tmp_path, "one", mark="m") as same:
        assert same


def test_a_lock_that_says_nothing_is_held_all_the_same(tmp_path: Path) -> None:
    with exclusive(tmp_path, "one"):
        (tmp_path / "lock").write_bytes(b"\xff\n")
        assert holder(tmp_path) == "another process"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="nowhere/lock: no such file"),
        exclusive(tmp_path / "nowhere", "one"),
    ):
        raise AssertionError("it took a folder that is not there")
