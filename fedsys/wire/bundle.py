"""A task that an operator signed for the owners of devices: a wheel or a graph, and what it is.

A zip file of three members::

    manifest.json   canonical JSON: format, task, options, sha256, kind, entry, payload and its hash
    manifest.sig    Ed25519 by the key that signs the coordinator's ledgers, which devices pinned
    PAYLOAD         the wheel or the graph

The signature says whose it is. Whether it may run is the owner's decision, by the hash.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedsys.durable import write_new
from fedsys.errors import ConfigError, ProtocolError
from fedsys.wire.canonical import decode_object, encode_object

__all__ = ["Bundle", "is_bundle", "read_bundle", "write_bundle"]

_DOMAIN = b"fedsys task bundle v1\x00"
_MANIFEST, _SIGNATURE = "manifest.json", "manifest.sig"
_MOST_MANIFEST = 1 << 20
_MOST_PAYLOAD = 256 << 20
_KEYS = frozenset(
    {"format", "task", "options", "sha256", "kind", "entry", "payload", "payload_sha256"}
)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What an operator rolls out.

    Attributes:
        task: its name in configurations.
        options: with which it is to run.
        sha256: of its code or its graph, which terms and policies state.
        kind: ``wheel`` or ``graph``.
        entry: of a wheel: the class that the hash names, ``module:Class``.
        name: the payload's file name.
        payload: its bytes.
    """

    task: str
    options: Mapping[str, Any]
    sha256: str
    kind: str
    entry: str
    name: str
    payload: bytes = field(repr=False)

    @property
    def manifest(self) -> bytes:
        """What is signed, besides its domain."""
        return encode_object(
            {
                "format": 1,
                "task": self.task,
                "options": dict(self.options),
                "sha256": self.sha256,
                "kind": self.kind,
                "entry": self.entry,
                "payload": self.name,
                "payload_sha256": hashlib.sha256(self.payload).hexdigest(),
            }
        )


def write_bundle(path: Path, bundle: Bundle, key: Ed25519PrivateKey) -> None:
    """Sign a bundle and write it.

    Raises:
        OSError: it cannot be written.
    """
    import io

    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (
            (_MANIFEST, bundle.manifest),
            (_SIGNATURE, key.sign(_DOMAIN + bundle.manifest)),
            (bundle.name, bundle.payload),
        ):
            archive.writestr(zipfile.ZipInfo(name), content)
    write_new(path, whole.getvalue())


def is_bundle(path: Path) -> bool:
    """Whether a file may be a bundle; nothing in it is checked."""
    if not path.is_file():  # an archive is read from its end, and a device has none
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return _MANIFEST in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def read_bundle(path: Path, signer: bytes) -> Bundle:
    """Read a bundle and check its signature before anything else in it.

    Args:
        path: the file.
        signer: Ed25519 public key of the coordinator that this device pinned.

    Raises:
        ConfigError: it is not a bundle, is damaged, or another key signed it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _member(archive, _MANIFEST, _MOST_MANIFEST)
            signature = _member(archive, _SIGNATURE, 64)
            try:
                key = Ed25519PublicKey.from_public_bytes(signer)
                key.verify(signature, _DOMAIN + manifest)
            except InvalidSignature:
                raise ConfigError(
                    f"{path}: not signed by this device's coordinator; have its operator make it "
                    f"with `fedsys task bundle --coordinator DIR`"
                ) from None
            body = decode_object(manifest, "a bundle's manifest", _KEYS)
            name = str(body["payload"])
            payload = _member(archive, name, _MOST_PAYLOAD)
    except (OSError, KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"{path}: not a bundle: {error}") from None
    except ProtocolError as error:
        raise ConfigError(f"{path}: {error}") from None
    good = (
        body["format"] == 1
        and body["kind"] in ("wheel", "graph")
        and isinstance(body["options"], dict)
        and all(isinstance(body[key], str) for key in ("task", "sha256", "entry"))
        and Path(name).name == name
        and hashlib.sha256(payload).hexdigest() == body["payload_sha256"]
    )
    if not good:
        raise ConfigError(f"{path}: its manifest is not valid; make it again")
    return Bundle(
        task=body["task"],
        options=body["options"],
        sha256=body["sha256"],
        kind=body["kind"],
        entry=body["entry"],
        name=name,
        payload=payload,
    )


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    size = archive.getinfo(name).file_size
    if size > most:
        raise ConfigError(f"{archive.filename}: {name} has {size} bytes: at most {most} are read")
    with archive.open(name) as content:
        return content.read(most + 1)[:most]
