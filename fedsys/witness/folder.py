"""A witness's folder: its key, its name, the logs that it watches, and what it cosigned last.

::

    witness.toml      name, logs (see `Settings`)
    witness.ed25519   its private key
    witness.vkey      its public key, for everybody who relies on it
    checkpoints/HEX   by SHA-256 of the origin: the last checkpoint cosigned, as a signed note
    lock              held by the running witness

Never restore it from a backup: the witness would forget what it cosigned since and could be made to
cosign another history. Create a new witness instead.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsys.bounded_toml import read_toml
from fedsys.durable import make_folder, write_atomically
from fedsys.errors import ConfigError
from fedsys.printable import printable
from fedsys.secret_files import read_secret, write_secret
from fedsys.transparency.note import (
    COSIGNATURE_V1,
    ED25519,
    NoteError,
    VerifierKey,
    require_name,
)

__all__ = ["Settings", "WitnessFolder", "checked_log", "origin_hash"]

_HEX_KEY = re.compile(r"[0-9a-f]{64}")
_MOST_CHECKPOINT_BYTES = 1 << 17


class Settings(BaseModel):
    """``witness.toml``; read when the witness starts.

    Attributes:
        name: name of its key, by convention a URL without scheme.
        logs: each a coordinator's public key (64 hex digits, as `fedsys coordinator init` prints
            it), which stands for all of its jobs' ledgers, or a log's verifier key, whose name is
            the one origin that it signs.
        most_logs: the most logs that it keeps; each takes a small file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    logs: Annotated[list[str], Field(max_length=10_000)] = []
    most_logs: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000


def checked_log(text: str) -> str:
    """Returns the key of a log that a witness can watch.

    Raises:
        ConfigError: it is neither a coordinator's key nor a log's verifier key.
    """
    if _HEX_KEY.fullmatch(text):
        return text
    try:
        if VerifierKey.parse(text).algorithm == ED25519:
            return text
    except NoteError:
        pass
    raise ConfigError(
        f"{printable(text, 80)}: not a log's key; give 64 hexadecimal digits, as `fedsys "
        f"coordinator init` prints them, or a verifier key name+hash+key of type 1"
    )


@dataclass(frozen=True)
class WitnessFolder:
    """Paths and files of one witness."""

    path: Path

    @classmethod
    def create(cls, path: Path, *, name: str, logs: Sequence[str]) -> WitnessFolder:
        """Creates the folder with a new key.

        Args:
            path: a new or empty folder.
            name: the key's name.
            logs: keys of the logs to watch.

        Raises:
            ConfigError: the folder is not empty or cannot be written, or the name or a log is
                invalid.
        """
        try:
            require_name(name)
        except NoteError as error:
            raise ConfigError(f"--name {error}") from None
        settings = Settings(name=name, logs=[checked_log(each) for each in logs])
        try:
            make_folder(path, mode=0o700)
            if any(path.iterdir()):
                raise ConfigError(f"{path}: not empty; give a new folder")
            path.chmod(0o700)
            folder = cls(path)
            make_folder(folder.checkpoints, mode=0o700)
            key = Ed25519PrivateKey.generate()
            write_secret(folder.key_file, key.private_bytes_raw())
            vkey = folder.vkey_of(name, key)
            write_atomically(path / "witness.vkey", f"{vkey}\n".encode())
            folder.write_settings(settings)  # last: it makes this a witness's folder
        except OSError as error:
            raise ConfigError(
                f"{path}: {_reason(error)}; give a folder that can be created"
            ) from None
        return folder

    @classmethod
    def open(cls, path: Path) -> WitnessFolder:
        """An existing folder.

        Raises:
            ConfigError: it is not a witness's folder.
        """
        folder = cls(path)
        if not folder.settings_file.is_file():
            raise ConfigError(
                f"{path}: no witness here; create one with `fedsys witness init {path}`"
            )
        return folder

    @property
    def settings_file(self) -> Path:
        """``witness.toml``."""
        return self.path / "witness.toml"

    @property
    def key_file(self) -> Path:
        """``witness.ed25519``."""
        return self.path / "witness.ed25519"

    @property
    def checkpoints(self) -> Path:
        """Folder of the last cosigned checkpoints."""
        return self.path / "checkpoints"

    def write_settings(self, settings: Settings) -> None:
        """Writes ``witness.toml``."""
        write_atomically(self.settings_file, tomli_w.dumps(settings.model_dump()).encode())

    def settings(self) -> Settings:
        """The settings in ``witness.toml``.

        Raises:
            ConfigError: it is invalid; the message says where.
        """
        file = self.settings_file
        try:
            found = Settings.model_validate(read_toml(file))
            require_name(found.name)
            for each in found.logs:
                checked_log(each)
        except OSError as error:
            raise ConfigError(f"{file}: {_reason(error)}") from None
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(map(str, problem["loc"]))
            raise ConfigError(f"{file}: {where}: {problem['msg'].lower()}") from None
        except (ValueError, NoteError, ConfigError) as error:
            raise ConfigError(f"{file}: {error}; correct it there") from None
        return found

    def key(self) -> Ed25519PrivateKey:
        """The witness's private key.

        Raises:
            ConfigError: it is missing, not a key, or readable by others.
        """
        try:
            return Ed25519PrivateKey.from_private_bytes(read_secret(self.key_file, most=32))
        except ValueError:
            raise ConfigError(
                f"{self.key_file}: not a key of 32 bytes; create a new witness"
            ) from None

    def vkey_of(self, name: str, key: Ed25519PrivateKey) -> VerifierKey:
        """The public key, in the form that others pin."""
        public = key.public_key().public_bytes_raw()
        return VerifierKey(name=name, algorithm=COSIGNATURE_V1, public=public)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Locks the folder against other processes: two could cosign two histories.

        Raises:
            ConfigError: another witness is running on it, or it cannot be written.
        """
        lock = self.path / "lock"
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError(f"{lock}: {_reason(error)}") from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"{self.path}: another witness is running on it; stop that one first"
                ) from None
            yield
        finally:
            os.close(handle)

    def read_checkpoint(self, name: str) -> bytes | None:
        """The signed note that was last stored under a name; None if none was.

        Raises:
            OSError: it cannot be read.
        """
        try:
            handle = os.open(
                self.checkpoints / name,
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            )
        except FileNotFoundError:
            return None
        with os.fdopen(handle, "rb") as file:
            return file.read(_MOST_CHECKPOINT_BYTES + 1)

    def write_checkpoint(self, name: str, note: bytes) -> None:
        """Replaces the stored note; it is on disk when this returns."""
        write_atomically(self.checkpoints / name, note, mode=0o600)


def origin_hash(origin: str) -> str:
    """The name under which a log's checkpoint is kept and served."""
    return hashlib.sha256(origin.encode("utf-8")).hexdigest()


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
