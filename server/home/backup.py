"""A copy of a coordinator's folder that a crash could have left: made while it runs, put back once.

The database is copied first, by SQLite itself, and each job's ledger before what belongs to it: the
copy is what the disk would hold had the process been killed in between, from which it can go on.
What it cannot hold is what happens later. A folder that is restored therefore holds its jobs until
its operator has compared it with the devices (`server.home.continuity`), unless nothing could
happen later because the folder was moved.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import re
import sqlite3
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import tomli_w

from fedsys.durable import flush_names, write_atomically
from fedsys.errors import ConfigError
from server.home.folder import MOVED, Home
from server.home.state import State

__all__ = ["back_up", "move", "restore"]

_DATABASE = "state.sqlite"
_ABOUT = "backup.json"
_LEFT = ("operator.sock", "lock", MOVED)
_FIRST = ("ledger.jsonl", "private.jsonl")
_HOSTS = re.compile(r"^hosts\s*=\s*\[.*?\]", re.MULTILINE | re.DOTALL)


def back_up(home: Home, file: Path, *, moved: bool = False) -> None:
    """Write a backup, while the coordinator runs or not; it holds all of its keys.

    Args:
        home: the coordinator's folder.
        file: the archive, which must not exist; mode 0600.
        moved: nothing will happen in this folder any more.

    Raises:
        ConfigError: it exists, or cannot be written.
    """
    if file.exists():
        raise ConfigError(f"FILE {file}: exists already; give another name")
    partial = file.with_name(file.name + ".partial")
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as out:
            with tarfile.open(fileobj=out, mode="w") as archive:
                about = {"format": 1, "made": time.time(), "moved": moved}
                _add(archive, _ABOUT, json.dumps(about).encode())
                _add_database(archive, home.path / _DATABASE)
                for path in _files(home.path, {file.resolve(), partial.resolve()}):
                    _add_file(archive, str(path.relative_to(home.path)), path)
            out.flush()
            os.fsync(out.fileno())
        partial.rename(file)
        flush_names(file.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"FILE {file}: {reason}; give a place with enough room") from None


def move(home: Home, file: Path) -> None:
    """Pack a stopped coordinator for another machine; this folder cannot be run any more.

    Raises:
        ConfigError: it is running, or the archive cannot be written.
    """
    with home.alone():
        back_up(home, file, moved=True)
        text = f"moved to {file.name} on {dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC\n"
        write_atomically(home.path / MOVED, text.encode())


def restore(file: Path, folder: Path, *, hosts: Sequence[str] = ()) -> str:
    """Unpack a backup into a new folder.

    Args:
        file: what `back_up` or `move` wrote.
        folder: where to; it must not exist, or be empty.
        hosts: names and addresses of the new machine, for a new server certificate; none to keep
            those before.

    Returns:
        why the folder holds its jobs; empty if it was moved and goes on where it stopped.

    Raises:
        ConfigError: it is not a backup, the folder is not empty, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"DIR {folder}: not empty; give a new folder")
    try:
        with tarfile.open(file, "r:") as archive:
            first = archive.next()
            body = archive.extractfile(first) if first and first.name == _ABOUT else None
            about = json.loads(body.read(10_000)) if body is not None else {}
            if about.get("format") != 1:
                raise ValueError("no backup")
            made = dt.datetime.fromtimestamp(float(about["made"]), dt.UTC)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            archive.extractall(folder, filter="data")
    except (
        tarfile.TarError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ):
        raise ConfigError(
            f"FILE {file}: not a backup, or a damaged one; give a file that `fedsys coordinator "
            f"backup` wrote"
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{error.filename or folder}: {reason}; free it first") from None
    (folder / _ABOUT).unlink(missing_ok=True)
    home = Home.open(folder)
    home.jobs.mkdir(exist_ok=True)
    if hosts:
        _rename(home, hosts)
    if about["moved"] is True:
        return ""
    why = f"restored on {dt.datetime.now(dt.UTC):%Y-%m-%d} from a backup of {made:%Y-%m-%d %H:%M}"
    state = State.open(folder)
    try:
        home.registry(state).continuity.hold(f"{why} UTC: what happened later is not in it")
    finally:
        state.close()
    return why


def _rename(home: Home, hosts: Sequence[str]) -> None:
    """Change ``hosts`` in the settings, leave all else as the operator wrote it, and issue a server
    certificate."""
    before = home.settings_file.read_text("utf-8")
    line = tomli_w.dumps({"hosts": list(hosts)}).strip()
    after = _HOSTS.sub(lambda _found: line, before, count=1)
    if tomllib.loads(after) != {**tomllib.loads(before), "hosts": list(hosts)}:
        raise ConfigError(f"{home.settings_file}: set hosts = {list(hosts)} there by hand")
    write_atomically(home.settings_file, after.encode())
    home.rotate_server()


def _files(root: Path, without: set[Path]) -> Iterator[Path]:
    """Everything but the database, ledgers before the other files of their job."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names, key=lambda each: (each not in _FIRST, each)):
            path = Path(folder, name)
            left = name.startswith(_DATABASE) or name in _LEFT or name.endswith(".partial")
            if not left and path.is_file() and path.resolve() not in without:
                yield path


def _add_database(archive: tarfile.TarFile, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # mode 0700
        copy = Path(folder, _DATABASE)
        try:
            with (
                closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
                closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
        except sqlite3.Error as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from None
        _add_file(archive, _DATABASE, copy)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
    archive.addfile(entry, io.BytesIO(content))


def _add_file(archive: tarfile.TarFile, name: str, path: Path) -> None:
    """A file as long as it is now; one that is gone by now was replaced by a newer one."""
    try:
        with path.open("rb") as content:
            found = os.fstat(content.fileno())
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = found.st_size, 0o600, int(found.st_mtime)
            archive.addfile(entry, content)
    except FileNotFoundError:
        return
