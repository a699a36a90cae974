"""Weights on disk: checkpoints that a run resumes from, and the model that it releases.

A checkpoint is an ``.npz`` without pickles (weights, the strategy's state, the round); the model
is a torch ``state_dict``. The model appears under its name only once it is whole and on disk; a
checkpoint is read only if the ledger holds the commit that was written after it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.durable import flush_names, write_new
from fedsys.errors import RunFolderError

__all__ = [
    "Checkpoint",
    "committed_checkpoint",
    "model_bytes",
    "save_checkpoint",
    "sha256_of_aggregate",
    "sha256_of_weights",
]

KEEP = 2


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state after a round.

    Attributes:
        round: its number.
        weights: (d,) the model.
        strategy: the server optimizer's state.
        clipping: the next round's norms, where they adapt.
        mechanism: of a mechanism that remembers its noise; as secret as that noise.
    """

    round: int
    weights: NDArray[np.float32]
    strategy: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    clipping: dict[str, Any] | None = None
    mechanism: bytes = b""


def sha256_of_weights(weights: NDArray[np.float32]) -> str:
    """SHA-256 of the flat weights as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(weights, dtype="<f4").tobytes()).hexdigest()


def sha256_of_aggregate(total: NDArray[Any]) -> str:
    """SHA-256 of a round's noised sum mod 2^b as little-endian integers of 64 bits."""
    return hashlib.sha256(total.astype("<u8").tobytes()).hexdigest()


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``round-000042.npz`` into `folder` and drop all but the newest few.

    It is on disk, name and content, when this returns; only then may its round be committed. One
    that a crash tears is of a round without a commit, which `committed_checkpoint` removes, so
    that it needs no other name until it is whole.

    Args:
        folder: as `fedsys.durable.make_folder` made it.
        checkpoint: of a round that has none yet.
    """
    buffer = io.BytesIO()
    state = {f"strategy.{name}": value for name, value in checkpoint.strategy.items()}
    np.savez(
        buffer,
        allow_pickle=False,
        round=np.int64(checkpoint.round),
        weights=checkpoint.weights,
        clipping=np.frombuffer(json.dumps(checkpoint.clipping).encode(), dtype=np.uint8),
        mechanism=np.frombuffer(checkpoint.mechanism, dtype=np.uint8),
        **state,
    )
    path = folder / f"round-{checkpoint.round:06d}.npz"
    write_new(path, buffer.getbuffer(), mode=0o600)
    flush_names(folder)
    for old in sorted(folder.glob("round-*.npz"))[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def committed_checkpoint(folder: Path, committed: Mapping[int, str]) -> Checkpoint | None:
    """The checkpoint of the newest committed round that has one, or None.

    A checkpoint is written before its round is committed. One whose commit never followed is of
    a model that was never released; it is removed.

    Args:
        folder: of the checkpoints.
        committed: SHA-256 of its weights, by committed round.

    Raises:
        RunFolderError: a checkpoint that does not read back, or is not what was committed.
    """
    paths = {int(path.stem.removeprefix("round-")): path for path in folder.glob("round-*.npz")}
    for number in sorted(paths, reverse=True):
        if number not in committed:
            paths[number].unlink()
            continue
        checkpoint = _read(paths[number])
        if sha256_of_weights(checkpoint.weights) != committed[number]:
            raise RunFolderError(
                f"{paths[number]}: not the model that the ledger committed in round {number}; "
                f"delete it to resume from the one before"
            )
        return checkpoint
    return None


def _read(path: Path) -> Checkpoint:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            prefix = "strategy."
            return Checkpoint(
                round=int(arrays["round"]),
                weights=arrays["weights"].astype(np.float32, copy=False),
                clipping=json.loads(arrays["clipping"].tobytes()),
                mechanism=arrays["mechanism"].tobytes(),
                strategy={
                    name.removeprefix(prefix): arrays[name]
                    for name in arrays.files
                    if name.startswith(prefix)
                },
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunFolderError(
            f"{path}: checkpoint does not read back ({error}); delete it to resume from the one "
            f"before"
        ) from None


def model_bytes(state: Mapping[str, object]) -> bytes:
    """A ``state_dict`` as the bytes of ``model.pt``; equal tensors give equal bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()
