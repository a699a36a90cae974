"""What a device may lose but never have twice: on tmpfs, for one boot and one folder."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from client import volatile
from client.volatile import VolatileStore, volatile_folder
from secure_agg.errors import StateError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    found = tmp_path / "tmpfs"
    found.mkdir(mode=0o700)
    return found


@pytest.fixture
def device(tmp_path: Path) -> Path:
    found = tmp_path / "device"
    found.mkdir()
    return found


def test_a_restarted_process_finds_what_was_kept(place: Path, device: Path) -> None:
    first = VolatileStore(device, place)
    assert first.load() is None
    first.save(b"one")
    first.save(b"two")
    assert VolatileStore(device, place).load() == b"two"
    (only,) = place.iterdir()
    assert stat.S_IMODE(only.stat().st_mode) == 0o600
    first.forget()
    assert not list(place.iterdir())
    assert first.load() is None


def test_another_boot_finds_nothing(
    place: Path, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    VolatileStore(device, place).save(b"secret")
    boot = tmp_path / "boot"
    boot.write_text("another boot\n")
    monkeypatch.setattr(volatile, "_BOOT", boot)
    assert VolatileStore(device, place).load() is None


@pytest.mark.parametrize("how", ["copied", "moved", "restored"])
def test_a_folder_that_was_copied_or_restored_finds_nothing(
    place: Path, device: Path, tmp_path: Path, how: str
) -> None:
    VolatileStore(device, place).save(b"secret")
    other = tmp_path / "backup"
    if how == "moved":
        device.rename(other)
    else:
        shutil.copytree(device, other)
    if how == "restored":
        device.rename(tmp_path / "lost")  # its inode stays in use, as that of a mounted disk would
        other = other.rename(device)
    assert VolatileStore(other, place).load() is None


def test_without_tmpfs_the_process_remembers_alone(device: Path) -> None:
    store = VolatileStore(device, None)
    store.save(b"kept")
    assert store.load() == b"kept"
    assert VolatileStore(device, None).load() is None
    store.forget()
    assert store.load() is None


def test_a_full_tmpfs_leaves_nothing_stale(
    place: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = VolatileStore(device, place)
    store.save(b"old")

    def full(*_args: object, **_more: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", full)
        store.save(b"new")
    assert store.load() == b"new"
    assert VolatileStore(device, place).load() is None


def test_a_link_or_a_foreign_file_is_not_read(place: Path, device: Path, tmp_path: Path) -> None:
    store = VolatileStore(device, place)
    assert store.path is not None
    target = tmp_path / "target"
    target.write_bytes(b"planted")
    store.path.symlink_to(target)
    with pytest.raises(StateError, match="cannot be read"):
        store.load()
    store.save(b"own")  # replaces the link, and leaves what it pointed to alone
    assert store.load() == b"own"
    assert target.read_bytes() == b"planted"
    store.path.unlink()
    store.path.mkdir()
    with pytest.raises(StateError):
        store.load()


def mounts(tmp_path: Path, kind: str) -> Path:
    """The kernel's table, in which this test's folder lies on a file system of that kind."""
    device = os.stat(tmp_path).st_dev
    row = f"36 25 {os.major(device)}:{os.minor(device)} / /x rw - {kind} {kind} rw\n"
    table = tmp_path / f"mountinfo-{kind}"
    table.write_text("1 0 0:999 / / rw shared:1 - proc proc rw\n" + row)
    return table


@pytest.mark.parametrize(("kind", "taken"), [("tmpfs", True), ("ramfs", True), ("ext4", False)])
def test_only_what_really_is_in_memory_is_taken(tmp_path: Path, kind: str, taken: bool) -> None:
    found = volatile_folder(
        candidates=("", "relative", str(tmp_path)), mounts=mounts(tmp_path, kind)
    )
    assert (found is not None) is taken
    if found is not None:
        assert stat.S_IMODE(found.stat().st_mode) == 0o700
        assert volatile_folder(candidates=(str(tmp_path),), mounts=mounts(tmp_path, kind)) == found


@pytest.mark.parametrize("how", ["open", "link", "file"])
def test_a_folder_that_is_not_ours_alone_is_not_taken(tmp_path: Path, how: str) -> None:
    folder = tmp_path / f"fedsys-{os.getuid()}"
    if how == "open":
        folder.mkdir()
        folder.chmod(0o755)
    elif how == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.touch()
    assert volatile_folder(candidates=(str(tmp_path),), mounts=mounts(tmp_path, "tmpfs")) is None


def test_a_machine_without_a_table_of_mounts_keeps_keys_in_memory(tmp_path: Path) -> None:
    assert volatile_folder(candidates=(str(tmp_path),), mounts=tmp_path / "none") is None
    assert volatile_folder(candidates=(str(tmp_path / "none"),)) is None
