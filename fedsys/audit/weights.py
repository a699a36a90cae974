"""``model.pt`` against the weights that the newest commit states; importing it imports torch.

The file is untrusted: it is only read as an uncompressed archive whose directory accounts for its
contents, by torch's loader of plain tensors (``weights_only``), which calls nothing that the file
names, and its storages are mapped rather than copied.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch

from fedsys.errors import LedgerError
from fedsys.privacy.ledger.files import open_regular

__all__ = ["weights_digest"]

_MODEL_BYTES = 1 << 32
_PICKLE_BYTES = 1 << 24
_ENTRIES = 100_000
_BLOCK = 1 << 22


def weights_digest(path: Path, *, most: int) -> tuple[str, int]:
    """SHA-256 of a state_dict's weights as the ledger's commits state it, and their number.

    The hash covers all float32 tensors in their order, flattened, as little-endian float32; a
    tensor that shares its memory with an earlier one counts once.

    Args:
        path: ``model.pt``.
        most: number of weights beyond which the file is refused.

    Raises:
        LedgerError: it is not such a file.
    """
    with open_regular(path, _MODEL_BYTES) as file:
        if os.fstat(file.fileno()).st_size > 8 * most + _PICKLE_BYTES:
            raise LedgerError(f"{path.name} is larger than a model of {most} weights can be")
        _require_plain(path.name, file)
        try:
            found = torch.load(
                f"/dev/fd/{file.fileno()}", map_location="cpu", weights_only=True, mmap=True
            )
        except Exception as error:  # whatever torch raises on a malformed file
            raise LedgerError(
                f"{path.name} is not a state_dict of plain tensors: {type(error).__name__}"
            ) from None
        return _digest(path.name, found, most)


def _require_plain(name: str, file: BinaryIO) -> None:
    """Requires an archive of few uncompressed records, of which only a small one is unpickled."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise LedgerError(f"{name} is not an archive of tensors: {error}") from None
    if len(entries) > _ENTRIES or len({entry.filename for entry in entries}) != len(entries):
        raise LedgerError(f"{name} holds {len(entries)} records, or one twice")
    for entry in entries:
        stored = entry.compress_type == zipfile.ZIP_STORED
        if not stored or entry.file_size != entry.compress_size:
            raise LedgerError(f"{name} holds a compressed record, which is not opened")
        if entry.filename.endswith(".pkl") and entry.file_size > _PICKLE_BYTES:
            raise LedgerError(f"{name} holds a directory of {entry.file_size} bytes")


def _digest(name: str, found: object, most: int) -> tuple[str, int]:
    digest, count = hashlib.sha256(), 0
    for tensor in _weights(name, found):
        count += tensor.numel()
        if count > most:
            raise LedgerError(f"{name} holds more than {most} weights")
        flat = tensor.detach().reshape(-1)
        for start in range(0, flat.numel(), _BLOCK):
            block = flat[start : start + _BLOCK].contiguous().numpy()
            digest.update(block.astype("<f4", copy=False).tobytes())
    return digest.hexdigest(), count


def _weights(name: str, found: object) -> Iterator[torch.Tensor]:
    if not isinstance(found, dict):
        raise LedgerError(f"{name} is not a state_dict")
    seen: set[tuple[int, int, tuple[int, ...], tuple[int, ...]]] = set()
    for value in found.values():
        if type(value) is not torch.Tensor or value.layout != torch.strided:
            raise LedgerError(f"{name} holds something other than plain tensors")
        if value.device.type != "cpu" or not value.is_contiguous():
            raise LedgerError(f"{name} holds a tensor that is not contiguous in the file")
        if value.dtype != torch.float32:
            continue
        place = (value.data_ptr(), value.numel(), tuple(value.shape), tuple(value.stride()))
        if place not in seen or not value.numel():
            seen.add(place)
            yield value
