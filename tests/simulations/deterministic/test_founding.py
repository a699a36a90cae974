"""What founds a party is on its disk when the command returns: keys, folders, lists, counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsys.privacy import Signer
from server.home.folder import Home
from simulations.deterministic.storage import Disk, FlushFate, Storage
from tests.e2e.deployment import running_port


@contextmanager
def machine(root: Path) -> Iterator[Disk]:
    """A disk whose flushes are noted; SQLite flushes its files itself."""
    storage = Storage(root, 0, lambda _disk: FlushFate())
    disk = storage.acting = storage.disk("machine")
    with storage.watched():
        yield disk


def uncertain(disk: Disk) -> list[str]:
    """Files, with their contents, and folders that a loss of power could take."""
    found, certain = [], disk.certain()
    for path in sorted(disk.root.rglob("*")):
        name = path.relative_to(disk.root).as_posix()
        content = None if path.is_dir() else path.read_bytes()
        if not path.name.startswith("state.sqlite") and certain.get(name, b"none") != content:
            found.append(name)
    return found


def test_a_coordinator_that_was_made(tmp_path: Path) -> None:
    with machine(tmp_path) as disk:
        home = Home.create(disk.root / "new" / "hub", hosts=["localhost"])
        assert home.settings_file.exists()
    assert not uncertain(disk)


def test_a_device_that_joined(tmp_path: Path) -> None:
    with running_port(tmp_path / "hub") as port, machine(tmp_path) as disk:
        joined = port.enroll("ward", disk.root / "new" / "ward")
        assert (joined.folder / "journal.json").exists()
    assert not uncertain(disk)


def test_a_signing_key(tmp_path: Path) -> None:
    with machine(tmp_path) as disk:
        Signer.load_or_create(disk.root / "home")
    assert not uncertain(disk)


def test_a_signing_key_in_a_folder_whose_maker_died(tmp_path: Path) -> None:
    """The folder was made and its name not flushed; then the key, by a second process."""
    with machine(tmp_path) as disk:
        home = disk.root / "home"
        home.mkdir()
        Signer.load_or_create(home)
    assert not uncertain(disk)
