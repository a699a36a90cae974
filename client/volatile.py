"""State that must not outlive this boot or leave this machine with a copy of the folder.

Private sealing keys and the secrets of a round in progress are kept in memory and, so that the
agent's process can be restarted, in a file on tmpfs. Its name is derived from the boot, the device
folder's path and its inode: a folder that was copied, or restored elsewhere or after a reboot,
finds no state and sits out the rounds of its original.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path

from secure_agg.errors import StateError

__all__ = ["VolatileStore", "volatile_folder"]

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MOUNTS = Path("/proc/self/mountinfo")
_NOFOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC


def volatile_folder(
    *, candidates: tuple[str, ...] | None = None, mounts: Path = _MOUNTS
) -> Path | None:
    """This user's own folder on tmpfs, created if necessary; None if there is no such place.

    Args:
        candidates: places to try; by default ``$RUNTIME_DIRECTORY``, which systemd creates for a
            unit, ``$XDG_RUNTIME_DIR`` and ``/dev/shm``.
        mounts: the kernel's table of mounts.
    """
    if candidates is None:
        named = (os.environ.get(name, "") for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"))
        candidates = (*named, "/dev/shm")
    for place in candidates:
        if place and os.path.isabs(place) and _in_memory(place, mounts):
            folder = Path(place) / f"fedsys-{os.getuid()}"
            if _own(folder):
                return folder
    return None


def _in_memory(place: str, mounts: Path) -> bool:
    """Whether a folder lies on tmpfs or ramfs, by the kernel's own table."""
    try:
        device = os.stat(place).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        lines = mounts.read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [wanted]:
            return after.split()[:1] in (["tmpfs"], ["ramfs"])
    return False


def _own(folder: Path) -> bool:
    """Whether a folder is this user's alone; it is created if nothing has that name."""
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and stat.S_IMODE(found.st_mode) & 0o077 == 0
    )


class VolatileStore:
    """A `secure_agg.Store` for state that a device may lose, but that must never exist twice.

    Without a tmpfs, or if it is full, only the process's own memory keeps the state; a process that
    is restarted then sits out its round.

    Args:
        device: the device's folder.
        place: a folder on tmpfs, or None; see `volatile_folder`.
    """

    def __init__(self, device: Path, place: Path | None) -> None:
        self._memory: bytes | None = None
        self.path: Path | None = None
        if place is not None:
            self.path = place / _name_of(device)

    def __str__(self) -> str:
        return "sealing keys in memory" if self.path is None else str(self.path)

    @classmethod
    def of(cls, device: Path) -> VolatileStore:
        """The store of a device's folder on this machine, for this boot."""
        return cls(device, volatile_folder())

    def load(self) -> bytes | None:
        """The state, or None if this boot has none for this folder.

        Raises:
            StateError: the file is not this user's, or cannot be read.
        """
        if self.path is None:
            return self._memory
        try:
            handle = os.open(self.path, os.O_RDONLY | _NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{self.path}: cannot be read: {error.strerror}") from None
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
            os.close(handle)
            raise StateError(f"{self.path}: not a file of this user; remove it")
        with os.fdopen(handle, "rb") as file:
            return file.read()

    def save(self, data: bytes) -> None:
        """Replace the state. If the file cannot be written, the state moves to memory."""
        if self.path is None:
            self._memory = data
            return
        fresh = self.path.with_name(self.path.name + ".new")
        try:
            with suppress(FileNotFoundError):
                fresh.unlink()
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            fresh.replace(self.path)
        except OSError:
            self.forget()  # a stale file would be worse than none
            self.path, self._memory = None, data

    def forget(self) -> None:
        """Remove the state, from memory and from the file."""
        self._memory = None
        if self.path is not None:
            for path in (self.path, self.path.with_name(self.path.name + ".new")):
                with suppress(OSError):
                    path.unlink(missing_ok=True)


def _name_of(device: Path) -> str:
    """A name that changes with the boot, with the path, and if the folder was replaced."""
    resolved = device.resolve()
    found = resolved.stat()
    try:
        boot = _BOOT.read_text("ascii").strip()
    except OSError:
        boot = ""
    digest = hashlib.sha256(b"fedsys volatile v1\x00")
    for part in (boot, str(resolved), str(found.st_dev), str(found.st_ino)):
        digest.update(len(part.encode()).to_bytes(4, "big") + part.encode())
    return digest.hexdigest()[:40]
