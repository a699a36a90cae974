"""Disks that keep, over a crash, what was flushed and anything or nothing of the rest.

The parties run their own, unchanged code on real files below one folder. Only ``os.fsync`` is
watched: flushing a file makes its content durable, flushing a folder makes its entries durable,
and nothing else does (POSIX; a file system may promise more). A process that is killed loses
nothing of what it wrote; when a machine loses power, each file keeps what was flushed and a prefix
of what was appended since, the rest possibly as zeros, or some sectors of what was written over it;
and each name that was made, moved or removed since its folder was flushed is there or is not. What
lies below the folder `TMPFS` is in memory: it outlives a process, and no loss of power.

Every flush is also where a party may die (before it, when all is written and nothing durable; or
after it) or be told that the disk failed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from simulations.deterministic.dice import Dice

__all__ = ["TMPFS", "Crashed", "Disk", "FlushFate", "Storage"]

TMPFS = "tmpfs"
_FLUSH = os.fsync
_SECTOR = 512


class Crashed(BaseException):
    """A party died; no code of its own may catch this and go on."""

    def __init__(self, disk: Disk, *, power_lost: bool) -> None:
        super().__init__(f"{disk.name} died")
        self.disk = disk
        self.power_lost = power_lost


@dataclass(frozen=True, kw_only=True)
class FlushFate:
    """What becomes of one flush.

    Attributes:
        fails: the disk reports an error; nothing becomes durable now.
        dies: ``before`` or ``after`` the flush, or not at all.
        power_lost: whether the machine dies with its process.
    """

    fails: bool = False
    dies: str | None = None
    power_lost: bool = False


Fates = Callable[["Disk"], FlushFate]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A file as it is, or was: its inode and content; a folder has no content."""

    inode: int
    content: bytes | None


@dataclass
class Disk:
    """One machine's files.

    Attributes:
        name: of the machine.
        root: real folder that holds them.
    """

    name: str
    root: Path
    dice: Dice
    _durable: dict[str, _Entry] = field(default_factory=dict)
    _flushed: dict[int, bytes] = field(default_factory=dict)
    _image: dict[str, bytes | None] | None = None
    _power_lost: bool = False

    @property
    def dead(self) -> bool:
        """Whether its process died and no other has started: nothing that it does counts."""
        return self._image is not None

    @property
    def without_power(self) -> bool:
        """Whether the machine died with its process, the last time it did."""
        return self._power_lost

    def durable(self, path: Path) -> bytes | None:
        """What a loss of power now would certainly leave of a file; None: maybe not even it."""
        name = path.relative_to(self.root).as_posix()
        parts = name.split("/")
        for end in range(1, len(parts)):
            if "/".join(parts[:end]) not in self._durable:
                return None
        entry = self._durable.get(name)
        return None if entry is None else entry.content

    def settle(self) -> None:
        """Everything that is on the disk now is durable."""
        self._durable = self._tree()
        self._flushed = {
            entry.inode: entry.content
            for entry in self._durable.values()
            if entry.content is not None
        }

    def flush(self, inode: int) -> bool:
        """A file's content, or a folder's entries, are now durable; False: none of this disk's."""
        found = self._scan()
        if inode == self.root.stat().st_ino:
            self._flush_folder("", found)
            return True
        for name, entry in found.items():
            if entry.inode() != inode:
                continue
            if entry.is_dir(follow_symlinks=False):
                self._flush_folder(name + "/", found)
                return True
            self._flushed[inode] = content = _read(entry)
            known = self._durable.get(name)
            if known is not None and known.inode == inode:
                self._durable[name] = _Entry(inode=inode, content=content)
            return True
        return False

    def holds(self, status: os.stat_result) -> bool:
        """Whether an open file is one of this disk's."""
        root = self.root.stat()
        if status.st_dev != root.st_dev:
            return False
        inode = status.st_ino
        return inode == root.st_ino or any(e.inode() == inode for e in self._scan().values())

    def _flush_folder(self, prefix: str, found: Mapping[str, os.DirEntry[str]]) -> None:
        def inside(name: str) -> bool:
            return name.startswith(prefix) and "/" not in name[len(prefix) :]

        for name in [name for name in self._durable if inside(name) and name not in found]:
            del self._durable[name]
        for name, entry in found.items():
            if inside(name):
                inode, folder = entry.inode(), entry.is_dir(follow_symlinks=False)
                content = None if folder else self._flushed.get(inode, b"")
                self._durable[name] = _Entry(inode=inode, content=content)
        live = {entry.inode() for entry in found.values()}
        self._flushed = {i: data for i, data in self._flushed.items() if i in live}

    def die(self, *, power_lost: bool) -> None:
        """Fix what a restart will find; what the dying code still writes is lost."""
        if self._image is not None:
            return
        tree = self._tree()
        self._power_lost = power_lost
        if power_lost:
            self._image = self._after_power_loss(tree)
        else:
            self._image = {name: entry.content for name, entry in tree.items()}

    def restart(self) -> None:
        """Put the files as the crash left them."""
        image, tree = self._image, self._tree()
        if image is None:
            return
        self._image = None
        inodes = {entry.inode for entry in tree.values()}
        for descriptor in _open_files(self.root.stat().st_dev, inodes):
            os.close(descriptor)
        for name in sorted(tree.keys() - image.keys(), reverse=True):
            path = self.root / name
            path.rmdir() if path.is_dir() else path.unlink()
        for name, content in sorted(image.items()):
            path, now = self.root / name, tree.get(name)
            if content is None:
                path.mkdir(exist_ok=True)
            elif now is None or now.content != content:
                path.touch(mode=0o600)
                path.write_bytes(content)
        if self._power_lost:
            self.settle()

    def certain(self) -> dict[str, bytes | None]:
        """Name to content of all that a loss of power cannot take; folders have None."""
        return {name: entry.content for name, entry in sorted(self._durable.items())}

    def _scan(self) -> dict[str, os.DirEntry[str]]:
        found: dict[str, os.DirEntry[str]] = {}
        todo = [("", str(self.root))]
        while todo:
            prefix, folder = todo.pop()
            with os.scandir(folder) as entries:
                for entry in entries:
                    found[prefix + entry.name] = entry
                    if entry.is_dir(follow_symlinks=False):
                        todo.append((prefix + entry.name + "/", entry.path))
        return found

    def _tree(self) -> dict[str, _Entry]:
        return {
            name: _Entry(
                inode=entry.inode(),
                content=None if entry.is_dir(follow_symlinks=False) else _read(entry),
            )
            for name, entry in self._scan().items()
        }

    def _after_power_loss(self, tree: Mapping[str, _Entry]) -> dict[str, bytes | None]:
        keeps = self.dice.one_of((0.0, 0.5, 1.0))
        image: dict[str, bytes | None] = {}
        gone: list[str] = []
        for name in sorted(tree.keys() | self._durable.keys()):
            if name == TMPFS or name.startswith(TMPFS + "/"):
                continue
            now, then = tree.get(name), self._durable.get(name)
            if any(name.startswith(folder) for folder in gone):
                continue
            newer = self.dice.chance(keeps)
            if now is not None and then is not None and now.inode == then.inode:
                image[name] = self._torn(then.content, now.content, keeps)
            elif now is not None and (newer or then is None):
                if then is None and not newer:
                    gone.append(name + "/")
                    continue
                image[name] = self._torn(self._flushed.get(now.inode, b""), now.content, keeps)
            elif then is not None and (now is not None or not newer):
                image[name] = then.content
        return image

    def _torn(self, flushed: bytes | None, now: bytes | None, keeps: float) -> bytes | None:
        if flushed is None or now is None or flushed == now:
            return now
        if not now.startswith(flushed):
            return self._mixed(flushed, now, keeps)
        if keeps in (0.0, 1.0):
            return now if keeps else flushed
        kept = len(flushed) + self.dice.below(len(now) - len(flushed) + 1)
        zeros = len(now) - kept if self.dice.chance(0.25) else 0
        return now[:kept] + bytes(zeros)

    def _mixed(self, flushed: bytes, now: bytes, keeps: float) -> bytes:
        """Of content that was written over: each sector as it was or as it is."""
        if keeps in (0.0, 1.0) or not flushed:
            return now if keeps else flushed
        length = len(now if self.dice.chance(keeps) else flushed)
        sectors = []
        for at in range(0, length, _SECTOR):
            end = min(at + _SECTOR, length)
            newer = now if self.dice.chance(keeps) else flushed
            sectors.append(newer[at:end].ljust(end - at, b"\0"))
        return b"".join(sectors)


class Storage:
    """All machines' disks below one real folder.

    Args:
        root: real folder; a fast one, since nothing needs to reach a medium.
        seed: of the schedule.
        fates: asked at every flush.

    Attributes:
        acting: whose code runs now.
    """

    def __init__(self, root: Path, seed: int, fates: Fates) -> None:
        self.acting: Disk | None = None
        self._root = root
        self._seed = seed
        self._fates = fates

    def disk(self, name: str) -> Disk:
        """A machine's empty disk."""
        root = self._root / name
        root.mkdir()
        return Disk(name=name, root=root, dice=Dice(self._seed, f"disk {name}"))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While this lasts, flushes of the acting machine's files are ours; others are real."""
        with mock.patch.object(os, "fsync", self._fsync):
            yield

    def _fsync(self, descriptor: int) -> None:
        disk, status = self.acting, os.fstat(descriptor)
        if disk is None or not disk.holds(status):
            _FLUSH(descriptor)
            return
        if disk.dead:
            return
        fate = self._fates(disk)
        if fate.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if fate.dies != "before":
            disk.flush(status.st_ino)
        if fate.dies is not None:
            disk.die(power_lost=fate.power_lost)
            raise Crashed(disk, power_lost=fate.power_lost)


def _read(entry: os.DirEntry[str]) -> bytes:
    with open(entry.path, "rb") as file:
        return file.read()


def _open_files(device: int, inodes: set[int]) -> list[int]:
    """Descriptors of this process that a dead party left open on its files."""
    found = []
    for name in os.listdir("/dev/fd"):
        with suppress(OSError, ValueError):
            status = os.fstat(int(name))
            here = status.st_dev == device and status.st_ino in inodes
            if here and stat.S_ISREG(status.st_mode):
                found.append(int(name))
    return found
