"""What this device keeps for a local procedure from round to round: files of its owner's folder.

A file holds the states after the newest two rounds of one job, so that a round that is trained
again, after a crash or a lost connection, starts from where it started before. Nothing of it is
ever sent.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsys.durable import make_folder, write_atomically
from fedsys.errors import TrainingError

__all__ = ["DeviceStates"]

_MOST_JOBS = 16


class DeviceStates:
    """A device's states, of all jobs that it served lately.

    Args:
        folder: Where they are kept; created with the first of them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, job: bytes) -> JobStates:
        """Those of one job."""
        return JobStates(self._folder, job)


class JobStates:
    """One job's states; see `client.training.procedure.visit.States`.

    Args:
        folder: Of all jobs.
        job: The job's 32 bytes.
    """

    def __init__(self, folder: Path, job: bytes) -> None:
        self._folder, self._path = folder, folder / f"{job.hex()}.pt"

    def load(self, client: Any, round: int) -> dict[str, Tensor]:
        """The device's own: `client` is always this device."""
        earlier = {number: kept for number, kept in self._read().items() if number < round}
        return earlier[max(earlier)] if earlier else {}

    def save(self, client: Any, round: int, state: Mapping[str, Tensor]) -> None:
        """Durable when it returns, which is before anything of the round is sent."""
        kept = {number: each for number, each in self._read().items() if number < round}
        newest = {max(kept): kept[max(kept)]} if kept else {}
        buffer = io.BytesIO()
        torch.save({**newest, round: dict(state)}, buffer)
        make_folder(self._folder, mode=0o700)
        write_atomically(self._path, buffer.getvalue(), mode=0o600)
        others = sorted(self._folder.glob("*.pt"), key=lambda path: path.stat().st_mtime)
        for path in others[:-_MOST_JOBS]:
            path.unlink()

    def _read(self) -> dict[int, dict[str, Tensor]]:
        try:
            found = torch.load(io.BytesIO(self._path.read_bytes()), weights_only=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # torch raises many types for a damaged file
            raise TrainingError(
                f"{self._path}: what this device keeps cannot be read ({type(error).__name__}); "
                f"delete the file to begin again without it"
            ) from None
        return dict(found)
