"""Secrets on disk against names, links and modes that somebody else prepared."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsys.durable import append_lines, overwrite
from fedsys.errors import ConfigError
from fedsys.secret_files import read_secret, write_secret


def link(at: Path) -> None:
    (at.parent / "theirs").write_bytes(b"")
    at.symlink_to(at.parent / "theirs")


def open_file(at: Path) -> None:
    at.write_bytes(b"planted")
    at.chmod(0o666)


@pytest.mark.parametrize("plant", [link, open_file])
@pytest.mark.parametrize("name", ["key", "key.partial"])
def test_a_secret_is_written_through_nothing_that_was_planted(
    tmp_path: Path, name: str, plant: Callable[[Path], None]
) -> None:
    plant(tmp_path / name)
    planted = (tmp_path / name).open("rb")
    write_secret(tmp_path / "key", b"secret")
    with planted:
        assert b"secret" not in planted.read()
    assert not (tmp_path / "key").is_symlink()
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert read_secret(tmp_path / "key") == b"secret"


def test_a_link_that_takes_the_name_between_two_steps_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    link(tmp_path / "key.partial")
    with pytest.raises(FileExistsError):
        write_secret(tmp_path / "key", b"secret")
    assert (tmp_path / "theirs").read_bytes() == b""


@pytest.mark.parametrize("write", [overwrite, append_lines])
def test_a_file_that_was_prepared_for_others_is_closed_to_them_first(
    tmp_path: Path, write: Callable[..., None]
) -> None:
    path = tmp_path / "cohorts"
    open_file(path)
    write(path, b"secret\n", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    link(path)
    with pytest.raises(OSError, match="symbolic"):
        write(path, b"secret\n", mode=0o600)


def pipe(at: Path) -> None:
    os.mkfifo(at)


def big(at: Path) -> None:
    at.write_bytes(bytes(2 << 20))
    at.chmod(0o600)


def folder(at: Path) -> None:
    at.mkdir(mode=0o700)


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (link, "symbolic"),
        (open_file, "mode 0666 lets others read it"),
        (pipe, "not a regular file"),
        (folder, "not a regular file"),
        (big, "at most 1048576 are read"),
        (lambda at: None, "no such file"),
    ],
)
def test_a_secret_is_read_from_its_own_file_alone(
    tmp_path: Path, plant: Callable[[Path], None], reason: str
) -> None:
    plant(tmp_path / "key")
    with pytest.raises(ConfigError, match=reason):
        read_secret(tmp_path / "key")


def test_a_secret_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_secret(tmp_path / "key", b"secret")
    found = os.stat(tmp_path / "key")
    theirs = os.stat_result((*found[:4], 4711, *found[5:]))  # only root could give it away
    monkeypatch.setattr(os, "fstat", lambda handle: theirs)
    with pytest.raises(ConfigError, match="belongs to user"):
        read_secret(tmp_path / "key")
