"""Weights on disk: checkpoints that a run resumes from, and the model that it releases.

A checkpoint is an ``.npz`` without pickles (weights, the strategy's state, the round); the model
is a torch ``state_dict``. The model appears under its name only once it is whole and on disk; a
checkpoint is read only if the ledger holds the commit that was written after it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.bounded_npz import open_arrays
from fedsys.durable import flush_names, make_folder, overwrite
from fedsys.errors import LedgerError, RunFolderError
from fedsys.privacy.ledger.files import open_regular

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "model_bytes",
    "sha256_of_aggregate",
    "sha256_of_weights",
]


_MOST_BYTES = 1 << 38
"""Largest checkpoint that is read: many times the size of a model with a billion weights."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state after a round.

    Attributes:
        round: The round's number.
        weights: (d,) float32, the model.
        strategy: State of the server optimizer.
        clipping: The next round's clipping norms, where they adapt.
        mechanism: State of a mechanism that remembers its noise; as secret as that noise.
        answer: (d,) what devices answered in this round, if it lies between rounds of training;
            kept in ``answers.jsonl``, not with the weights.
    """

    round: int
    weights: NDArray[np.float32]
    strategy: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    clipping: dict[str, Any] | None = None
    mechanism: bytes = field(default=b"", repr=False)
    answer: NDArray[np.float32] | None = None


def sha256_of_weights(weights: NDArray[np.float32]) -> str:
    """SHA-256 of the flat weights as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(weights, dtype="<f4").data).hexdigest()


def sha256_of_aggregate(total: NDArray[Any]) -> str:
    """SHA-256 of a round's noised sum mod 2^b, as little-endian words of its ring."""
    words = np.ascontiguousarray(total, dtype=total.dtype.newbyteorder("<"))
    return hashlib.sha256(words.data).hexdigest()


class Checkpoints:
    """A job's newest two checkpoints: two files, overwritten in turn.

    While one file is written, the other holds the newest committed round, whatever happens to the
    first. So no file has to be created, renamed or removed in a round, each of which would be one
    more wait for the disk.

    Args:
        folder: Where the files are kept; created durably if it does not exist.
        disk: Writes them in the background; with None, `save` writes and waits.
    """

    def __init__(self, folder: Path, disk: Executor | None = None) -> None:
        make_folder(folder)
        flush_names(folder)  # the process that created a file may have died before its flush
        self._files = [folder / "a.npz", folder / "b.npz"]
        self._start = folder / "start.npz"
        self._disk = disk

    def save(self, checkpoint: Checkpoint) -> Callable[[], None]:
        """Overwrite the older checkpoint with this one.

        Returns:
            A function that waits until the checkpoint is on disk, and raises OSError if it could
            not be written. Until it returns, the arrays must not change and the round must not be
            committed; `save` may be called again only after that commit.
        """
        if self._disk is not None:
            return self._disk.submit(self._over_older, checkpoint).result
        self._over_older(checkpoint)
        return lambda: None

    def _over_older(self, checkpoint: Checkpoint) -> None:
        _write(checkpoint, self._files[0])
        self._files.reverse()  # only now: had it failed, the other would still be the newest

    def begin(self, checkpoint: Checkpoint) -> None:
        """Keep what a job begins with for as long as its folder, where that is not the task's own
        initial model."""
        _write(checkpoint, self._start)

    def start(self, weights_sha256: str) -> Checkpoint:
        """What `begin` kept.

        Raises:
            RunFolderError: it is missing, does not read back, or holds other weights.
        """
        try:
            found = _read(self._start)
        except FileNotFoundError:
            raise RunFolderError(
                f"{self._start}: missing, and the run started from that model; restore the file"
            ) from None
        if sha256_of_weights(found.weights) != weights_sha256:
            raise RunFolderError(
                f"{self._start}: not the model that the ledger's header says the run started from"
            )
        return found

    def newest(self, committed: Mapping[int, str]) -> Checkpoint | None:
        """The checkpoint of the newest committed round; None where no round was committed.

        A checkpoint is written before its round is committed. So one without a commit holds a
        model that was never released, and is ignored. One that does not read back was torn while
        it was written, and is ignored as long as the other is of the newest committed round.

        Args:
            committed: SHA-256 of the weights of each committed round, by its number.

        Raises:
            RunFolderError: A checkpoint does not read back, or is not what was committed.
        """
        found: list[tuple[Checkpoint, Path]] = []
        damaged: list[RunFolderError] = []
        for path in self._files:
            try:
                checkpoint = _read(path)
            except FileNotFoundError:
                continue
            except RunFolderError as error:
                damaged.append(error)
                continue
            if checkpoint.round in committed:
                found.append((checkpoint, path))
        newest, path = max(found, key=lambda it: it[0].round, default=(None, self._files[1]))
        if damaged and (newest.round if newest else 0) < max(committed, default=0):
            raise damaged[0]
        if newest and sha256_of_weights(newest.weights) != committed[newest.round]:
            raise RunFolderError(
                f"{path}: not the model that the ledger committed in round {newest.round}; "
                f"delete it to resume from the one before"
            )
        if path is self._files[0]:
            self._files.reverse()
        return newest


def _write(checkpoint: Checkpoint, path: Path) -> None:
    buffer = io.BytesIO()
    state = {f"strategy.{name}": value for name, value in checkpoint.strategy.items()}
    if checkpoint.mechanism:
        state["mechanism"] = np.frombuffer(checkpoint.mechanism, dtype=np.uint8)
    facts = json.dumps({"round": checkpoint.round, "clipping": checkpoint.clipping})
    np.savez(
        buffer,
        allow_pickle=False,
        facts=np.frombuffer(facts.encode(), dtype=np.uint8),
        weights=checkpoint.weights,
        **state,
    )
    overwrite(path, buffer.getbuffer(), mode=0o600)


def _read(path: Path) -> Checkpoint:
    try:
        if not os.path.lexists(path):
            raise FileNotFoundError(path)
        with open_regular(path, _MOST_BYTES) as file, open_arrays(file, most=_MOST_BYTES) as arrays:
            prefix, facts = "strategy.", json.loads(arrays.read("facts").tobytes())
            round, clipping = facts["round"], facts["clipping"]
            weights = arrays.read("weights")
            strategies = [name for name in arrays.names if name.startswith(prefix)]
            if type(round) is not int or not (clipping is None or isinstance(clipping, dict)):
                raise ValueError("facts of the wrong type")
            if weights.ndim != 1 or weights.dtype != np.float32:
                raise ValueError("weights that are no vector of float32")
            return Checkpoint(
                round=round,
                weights=weights.astype(np.float32, copy=False),
                clipping=clipping,
                mechanism=(
                    arrays.read("mechanism").tobytes() if "mechanism" in arrays.names else b""
                ),
                strategy={name.removeprefix(prefix): arrays.read(name) for name in strategies},
            )
    except FileNotFoundError:
        raise
    except (LedgerError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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
