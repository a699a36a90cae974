"""A coordinator's folder: authority, keys, database, settings, jobs.

::

    coordinator.toml      settings (see `Settings`)
    ca.key ca.pem         certificate authority
    server.key server.pem what the devices' port presents
    coordinator.ed25519   signs the ledgers
    roster.ed25519        signs the roster, unless its authority is somebody else
    roster.pub            the authority's public key, as hex
    state.sqlite          nodes, tokens, rosters, jobs
    operator.sock         takes the operator's commands, on this machine only
    lock                  held by the running coordinator
    jobs/ID/              one run's folder
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedsys.bounded_toml import read_toml
from fedsys.durable import make_folder, write_atomically
from fedsys.errors import ConfigError
from fedsys.privacy import Signer
from fedsys.privacy.ledger.signer import KEY_NAME
from fedsys.secret_files import read_secret, write_secret
from fedsys.transparency import NoteError, VerifierKey
from fedsys.transparency.cosignature import require_witness
from fedsys.web.address import WebAddress
from fedsys.wire.services import OPERATOR_SOCKET
from server.home.enrollment import Registry
from server.home.pki import Authority, ServerIdentity, alternative_names
from server.home.state import State

__all__ = ["MOVED", "Home", "Settings", "WitnessAddress"]

MOVED = "moved"
"""A file that says where this coordinator went; one that has it is not run."""

_RENEW = dt.timedelta(days=30)
_LOST = "restore it from a backup of this folder"

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class WitnessAddress(BaseModel):
    """A witness that is asked to cosign the jobs' ledgers.

    Attributes:
        url: Its submission prefix; ``/add-checkpoint`` is added.
        key: Its verifier key, as ``fedsys witness init`` prints it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$", max_length=1000)]
    key: str

    @field_validator("key")
    @classmethod
    def _cosigns(cls, key: str) -> str:
        try:
            require_witness(VerifierKey.parse(key))
        except NoteError as error:
            raise ValueError(str(error)) from None
        return key

    @property
    def vkey(self) -> VerifierKey:
        """The parsed verifier key."""
        return VerifierKey.parse(self.key)


class Settings(BaseModel):
    """``coordinator.toml``; nothing in it is part of a job, so it may change between two starts.

    Attributes:
        hosts: Names and addresses under which devices reach this coordinator; the server
            certificate holds them.
        epsilon: Privacy budget of the population over all jobs. Left out, there is none.
        patience: Seconds that a job waits for enough agents before it is paused.
        reconnect: Seconds that a stage waits for an agent that lost its connection.
        stage: Seconds until a stage without training closes, and in buffered rounds until an
            upload that was asked for is given up.
        training: Seconds until the stage closes in which agents train and upload. In buffered
            rounds, what one agent's training may take.
        metrics: ``HOST:PORT`` of the Prometheus page; empty for none.
        web: Address of the operator's page, on this machine alone: ``localhost:7480``, or
            ``unix:/PATH`` for a Unix socket; empty for none.
        jobs_at_once: Number of jobs that may run at a time, on devices that do not overlap.
        colluders: Number of devices, out of all that enrol, that may collude with this coordinator.
            It goes into the rosters that are signed or proposed from now on.
        witnesses: Witnesses that cosign each job's ledger after every reservation and commit.
        witness_threshold: Number of them that must have cosigned a round's reservation before its
            cohort is invited. With 0, a witness that fails is reported and nothing more.
        witness_wait: Longest time a round waits for them, in seconds, before its job fails.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hosts: Annotated[list[str], Field(min_length=1)]
    epsilon: Annotated[float, Field(gt=0)] | None = None
    patience: Seconds = 600.0
    reconnect: Seconds = 20.0
    stage: Seconds = 30.0
    training: Seconds = 600.0
    metrics: str = ""
    web: str = ""
    jobs_at_once: Annotated[int, Field(ge=1, le=1000)] = 4
    colluders: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    witness_threshold: Annotated[int, Field(ge=0)] = 0
    witness_wait: Seconds = 600.0
    witnesses: Annotated[list[WitnessAddress], Field(max_length=16)] = []

    @model_validator(mode="after")
    def _enough(self) -> Settings:
        keys = [each.vkey for each in self.witnesses]
        if len({key.public for key in keys}) < len(keys) or len({k.name for k in keys}) < len(keys):
            raise ValueError("two witnesses have one key or one name")
        if self.witness_threshold > len(keys):
            raise ValueError(
                f"witness_threshold = {self.witness_threshold}, and there are {len(keys)} witnesses"
            )
        return self

    @field_validator("web")
    @classmethod
    def _here(cls, web: str) -> str:
        if web:
            try:
                WebAddress.parse(web)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return web

    @field_validator("hosts")
    @classmethod
    def _names(cls, hosts: list[str]) -> list[str]:
        try:
            alternative_names(hosts)
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("--host ")) from None
        return hosts


_HEADER = """\
# Settings of this coordinator; read at its start. docs/configuration.md explains every key.
# hosts:      names and addresses of this machine; after a change: fedsys coordinator rotate
# epsilon:    privacy budget of the population over all jobs; left out: none
# patience:   seconds that a job waits for enough devices before it is paused
# reconnect:  seconds that a stage waits for a device that lost its connection
# stage, training:  seconds until a stage without, or with, training closes
# metrics:    "localhost:9464" serves a page for Prometheus
# web:        "localhost:7480" serves a page for the operator; fedsys coordinator web prints its URL
# jobs_at_once:  jobs that may run at a time, on devices that do not overlap
# colluders:  devices, of all, that may collude with this coordinator
# witnesses:  tables [[witnesses]] with url and key at the end of this file
"""


@dataclass(frozen=True)
class Home:
    """Paths and keys of one coordinator."""

    path: Path

    @property
    def socket(self) -> Path:
        """The Unix socket for the operator's commands."""
        return self.path / OPERATOR_SOCKET

    @property
    def web_token(self) -> Path:
        """The token of the operator's page."""
        return self.path / "web.token"

    @property
    def jobs(self) -> Path:
        """The folder that holds the runs' folders."""
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
        """Create the folder with all its keys.

        Args:
            path: A folder that does not exist yet, or is empty.
            hosts: Names and addresses for the server certificate.
            roster_key: Public key of a roster authority other than the operator; None creates a
                key pair here.
            epsilon: Privacy budget of the population.
            colluders: Number of devices, out of all that enrol, that may collude with this
                coordinator.

        Raises:
            ConfigError: The folder is not empty, or cannot be written.
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
        # Witnesses are added by hand as tables, and TOML would reject those after an empty list.
        table = tomli_w.dumps(settings.model_dump(exclude_none=True, exclude={"witnesses"}))
        text = _HEADER + table
        write_atomically(home.settings_file, text.encode())  # last: `open` looks for this file
        return home

    @classmethod
    def open(cls, path: Path) -> Home:
        """Open an existing folder.

        Raises:
            ConfigError: It is not a coordinator's folder.
        """
        home = cls(path)
        if not home.settings_file.is_file():
            raise ConfigError(
                f"{path}: no coordinator here; make one with `fedsys coordinator init {path}`"
            )
        return home

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the folder, so that no other coordinator runs on it, whatever its host.

        Raises:
            ConfigError: Another one is running on it, it was moved, or the lock cannot be opened.
        """
        if (self.path / MOVED).exists():
            text = (self.path / MOVED).read_text("utf-8", "replace").strip()
            raise ConfigError(
                f"{self.path}: this coordinator was {text}, and two would spend the same budget; "
                f"run it there, or, if that one never ran, delete {self.path / MOVED}"
            )
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
        """Read ``coordinator.toml``.

        Raises:
            ConfigError: It cannot be read or is not valid; the message says where.
        """
        file = self.settings_file
        try:
            return Settings.model_validate(read_toml(file))
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
            if not where:  # several settings do not fit together
                raise ConfigError(f"{file}: {why}; mend it there") from None
            why = why[:1].lower() + why[1:]
            raise ConfigError(f"{file}: {where} = {problem['input']!r}: {why}") from None
        except ValueError as error:  # not TOML, or not UTF-8
            raise ConfigError(f"{file}: not TOML: {error}; mend it there") from None

    @property
    def authority(self) -> Authority:
        """The certificate authority."""
        return Authority.load(self.path)

    @property
    def signer(self) -> Signer:
        """The key that signs ledgers.

        Raises:
            ConfigError: The key is missing; a new one could not resume any job.
        """
        path = self.path / KEY_NAME
        if not path.exists():
            raise ConfigError(
                f"{path}: missing; it signs the ledgers, and devices have pinned it: {_LOST}"
            )
        return Signer.load_or_create(self.path)

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """The private key of `signer`, for signatures other than a ledger's."""
        _ = self.signer  # it exists, and is readable by its owner only
        return Ed25519PrivateKey.from_private_bytes(read_secret(self.path / KEY_NAME))

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
        """Whether the roster's private key is in this folder."""
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
        """Key and certificate of the devices' port; reissued a month before they expire.

        Raises:
            ConfigError: The key does not match the certificate.
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
                f"{path}: not the key of server.pem; make both again with `fedsys coordinator "
                f"rotate {self.path}`"
            )
        return identity

    def rotate_server(self) -> None:
        """Issue a new key and certificate for the devices' port, under the settings' host names."""
        self._store_server(self.authority.issue_server(self.settings().hosts))

    def _store_server(self, identity: ServerIdentity) -> None:
        write_secret(self.path / "server.key", identity.private_key)
        write_atomically(self.path / "server.pem", identity.certificate)
