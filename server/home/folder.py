"""A coordinator's folder: authority, keys, database, settings, jobs.

::

    coordinator.toml      settings (see `Settings`)
    ca.key ca.pem         certificate authority
    server.key server.pem what the devices' port presents
    coordinator.ed25519   signs the ledgers
    roster.ed25519        signs the roster, unless its authority is somebody else
    roster.pub            the authority's public key, as hex
    state.sqlite          nodes, tokens, rosters, jobs
    operator.sock         where the operator's commands go; on this machine only
    lock                  held by the coordinator that runs
    jobs/ID/              a run's folder each
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedsys.durable import make_folder, write_atomically
from fedsys.errors import ConfigError
from fedsys.privacy import Signer
from fedsys.privacy.ledger.signer import KEY_NAME
from fedsys.secret_files import read_secret, write_secret
from fedsys.wire.services import OPERATOR_SOCKET
from server.home.enrollment import Registry
from server.home.pki import Authority, ServerIdentity, alternative_names
from server.home.state import State

__all__ = ["Home", "Settings"]

_RENEW = dt.timedelta(days=30)
_LOST = "restore it from a backup of this folder"

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(BaseModel):
    """``coordinator.toml``; nothing in it is part of a job, so it may change between two starts.

    Attributes:
        hosts: Names and addresses under which devices reach this coordinator; the server
            certificate holds them.
        epsilon: Privacy budget of the population over all jobs. Left out, there is none.
        patience: Seconds that a job waits for enough agents before it is given up.
        reconnect: Seconds that a stage waits for an agent that lost its connection.
        stage: Seconds until a stage without training closes.
        training: Seconds until the stage closes in which agents train and upload.
        metrics: ``HOST:PORT`` of the Prometheus page; empty for none.
        colluders: Number of devices, out of all that enrol, that may collude with this coordinator.
            It goes into the rosters that are signed or proposed from now on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hosts: Annotated[list[str], Field(min_length=1)]
    epsilon: Annotated[float, Field(gt=0)] | None = None
    patience: Seconds = 600.0
    reconnect: Seconds = 20.0
    stage: Seconds = 30.0
    training: Seconds = 600.0
    metrics: str = ""
    colluders: Annotated[int, Field(ge=0, le=1_000_000)] = 0

    @field_validator("hosts")
    @classmethod
    def _names(cls, hosts: list[str]) -> list[str]:
        try:
            alternative_names(hosts)
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("--host ")) from None
        return hosts


@dataclass(frozen=True)
class Home:
    """Paths and keys of one coordinator."""

    path: Path

    @property
    def socket(self) -> Path:
        """Where the operator's commands go."""
        return self.path / OPERATOR_SOCKET

    @property
    def jobs(self) -> Path:
        """Folder of the runs' folders."""
        return self.path / "jobs"

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        hosts: Sequence[str],
        roster_key: bytes | None = None,
        epsilon: float | None = None,
        colluders: int = 0,
    ) -> Home:
        """Make the folder with all keys.

        Args:
            path: new, or empty.
            hosts: for the server certificate.
            roster_key: public key of an authority that the operator is not; None makes a key here.
            epsilon: budget of the population.
            colluders: devices that may collude with this coordinator, out of all that enrol.

        Raises:
            ConfigError: something is there already, or the folder cannot be written.
        """
        alternative_names(hosts)  # before anything is made
        try:
            make_folder(path, mode=0o700)
            if any(path.iterdir()):
                raise ConfigError(f"{path}: not empty; give a new folder")
            path.chmod(0o700)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"{path}: {reason}; give a folder that can be made here") from None
        home = cls(path)
        authority = Authority.create(path)
        home._store_server(authority.issue_server(hosts))
        Signer.load_or_create(path)
        if roster_key is None:
            private = Ed25519PrivateKey.generate()
            write_secret(path / "roster.ed25519", private.private_bytes_raw())
            roster_key = private.public_key().public_bytes_raw()
        write_atomically(path / "roster.pub", roster_key.hex().encode() + b"\n")
        make_folder(home.jobs)
        State.create(path).close()
        settings = Settings(hosts=list(hosts), epsilon=epsilon, colluders=colluders)
        table = tomli_w.dumps(settings.model_dump(exclude_none=True))
        write_atomically(home.settings_file, table.encode())  # now it is one
        return home

    @classmethod
    def open(cls, path: Path) -> Home:
        """An existing folder.

        Raises:
            ConfigError: there is no coordinator.
        """
        home = cls(path)
        if not home.settings_file.is_file():
            raise ConfigError(
                f"{path}: no coordinator here; make one with `fedsys coordinator init {path}`"
            )
        return home

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder against another coordinator, whatever its host.

        Raises:
            ConfigError: one is running on it, or it cannot be written.
        """
        try:
            handle = os.open(
                self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(
                f"{self.path / 'lock'}: {reason}; the coordinator must own its folder"
            ) from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"{self.path}: another coordinator is running on it; stop that one first"
                ) from None
            yield
        finally:
            os.close(handle)

    @property
    def settings_file(self) -> Path:
        """``coordinator.toml``."""
        return self.path / "coordinator.toml"

    def settings(self) -> Settings:
        """What ``coordinator.toml`` says.

        Raises:
            ConfigError: it does not read; the line says where.
        """
        file = self.settings_file
        try:
            return Settings.model_validate(tomllib.loads(file.read_text("utf-8")))
        except OSError as error:
            raise ConfigError(f"{file}: {(error.strerror or str(error)).lower()}") from None
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                known = ", ".join(Settings.model_fields)
                raise ConfigError(f"{file}: {where}: no such setting; there are {known}") from None
            if problem["type"] == "missing":
                raise ConfigError(f"{file}: {where} is missing; put it back") from None
            why = problem["msg"].removeprefix("Value error, ")
            why = why[:1].lower() + why[1:]
            raise ConfigError(f"{file}: {where} = {problem['input']!r}: {why}") from None
        except ValueError as error:  # of TOML, or of UTF-8
            raise ConfigError(f"{file}: not TOML: {error}; mend it there") from None

    @property
    def authority(self) -> Authority:
        """Issues certificates."""
        return Authority.load(self.path)

    @property
    def signer(self) -> Signer:
        """Signs ledgers.

        Raises:
            ConfigError: the key is gone; another one could go on with no job.
        """
        path = self.path / KEY_NAME
        if not path.exists():
            raise ConfigError(
                f"{path}: missing; it signs the ledgers, and devices have pinned it: {_LOST}"
            )
        return Signer.load_or_create(self.path)

    @property
    def roster_key(self) -> bytes:
        """Public key of the roster's authority."""
        try:
            key = bytes.fromhex((self.path / "roster.pub").read_text("ascii").strip())
            if len(key) == 32:
                return key
        except (OSError, ValueError):
            pass
        raise ConfigError(
            f"{self.path / 'roster.pub'}: not a public key of 64 hexadecimal digits; {_LOST}"
        )

    @property
    def operator_signs_roster(self) -> bool:
        """Whether the roster's private key lies here."""
        return (self.path / "roster.ed25519").exists()

    def registry(self, state: State) -> Registry:
        """The list of nodes, able to sign where this operator is the roster's authority."""
        private = None
        if self.operator_signs_roster:
            path = self.path / "roster.ed25519"
            try:
                private = Ed25519PrivateKey.from_private_bytes(read_secret(path))
            except ValueError:
                raise ConfigError(f"{path}: not a key of 32 bytes; {_LOST}") from None
        return Registry(
            state=state,
            authority=self.authority,
            roster_key=self.roster_key,
            roster_signer=private,
            colluders=self.settings().colluders,
        )

    def server_identity(self, *, now: dt.datetime | None = None) -> ServerIdentity:
        """Key and certificate of the devices' port; issued anew a month before they expire.

        Raises:
            ConfigError: the key is not the certificate's.
        """
        present = now or dt.datetime.now(dt.UTC)
        try:
            certificate = (self.path / "server.pem").read_bytes()
            expires = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
        except (OSError, ValueError):
            expires = present
        if expires - present < _RENEW:
            self.rotate_server()
            certificate = (self.path / "server.pem").read_bytes()
        path = self.path / "server.key"
        identity = ServerIdentity(
            private_key=read_secret(path) if path.exists() else b"", certificate=certificate
        )
        if not identity.fits:
            raise ConfigError(
                f"{path}: not the key of server.pem; make both anew with `fedsys coordinator "
                f"rotate {self.path}`"
            )
        return identity

    def rotate_server(self) -> None:
        """A new key and certificate for the devices' port, under the settings' host names."""
        self._store_server(self.authority.issue_server(self.settings().hosts))

    def _store_server(self, identity: ServerIdentity) -> None:
        write_secret(self.path / "server.key", identity.private_key)
        write_atomically(self.path / "server.pem", identity.certificate)
