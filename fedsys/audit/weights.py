"""``model.pt`` against what the ledger states of it; importing it imports torch.

The file is untrusted: it is only read as an uncompressed archive whose directory accounts for its
contents, by torch's loader of plain tensors (``weights_only``), which calls nothing that the file
names, and its storages are mapped rather than copied.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch

from fedsys.bounded_npz import check_directory
from fedsys.errors import LedgerError
from fedsys.model_state import StateDigest, StateError, digest_of
from fedsys.privacy.ledger.files import open_regular

__all__ = ["weights_digest"]

_MODEL_BYTES = 1 << 32
_PICKLE_BYTES = 1 << 24
_DIRECTORY_BYTES = 1 << 22
"""Tens of thousands of tensors, each of which takes about a hundred bytes in the directory."""


def weights_digest(path: Path, dimension: int) -> StateDigest:
    """The digests of a model's file, as the ledger states them.

    Args:
        path: ``model.pt``.
        dimension: d, the number of trained weights.

    Raises:
        LedgerError: it is not such a file.
    """
    with open_regular(path, _MODEL_BYTES) as file:
        size = os.fstat(file.fileno()).st_size
        _require_plain(path.name, file, size)
        try:
            found = torch.load(
                f"/dev/fd/{file.fileno()}", map_location="cpu", weights_only=True, mmap=True
            )
        except Exception as error:  # whatever torch raises on a malformed file
            raise LedgerError(
                f"{path.name} is not a state_dict of plain tensors: {type(error).__name__}"
            ) from None
        if not isinstance(found, dict):
            raise LedgerError(f"{path.name} is not a state_dict")
        try:
            return digest_of(found, dimension, most_bytes=size)
        except StateError as error:
            raise LedgerError(f"{path.name} {error}") from None


def _require_plain(name: str, file: BinaryIO, size: int) -> None:
    """Requires an archive of few uncompressed records, of which only a small one is unpickled."""
    try:
        check_directory(file, size, most=_DIRECTORY_BYTES)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise LedgerError(f"{name} is not an archive of tensors: {error}") from None
    if len({entry.filename for entry in entries}) != len(entries):
        raise LedgerError(f"{name} holds a record twice")
    for entry in entries:
        stored = entry.compress_type == zipfile.ZIP_STORED
        if not stored or entry.file_size != entry.compress_size:
            raise LedgerError(f"{name} holds a compressed record, which is not opened")
        if entry.filename.endswith(".pkl") and entry.file_size > _PICKLE_BYTES:
            raise LedgerError(f"{name} holds a directory of {entry.file_size} bytes")
