"""A pool of examples on its device and the graphs that train from it: chunk after chunk, without
a wait of the host for the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from client.training.graph.path import Epoch, Finish, GraphPath
from client.training.graph.staging import Staging
from client.training.local import LocalConfig
from client.training.schedule import Schedule, build
from fedsys.errors import TrainingError
from fedsys.tasks import Examples

__all__ = ["Resident"]


class Resident:
    """Trains chunks of clients by `GraphPath`.

    Args:
        path: of the model.
        local: its hyper-parameters.
        pool: the examples, on the path's device.
        dimension: d.
    """

    def __init__(self, path: GraphPath, local: LocalConfig, pool: Examples, dimension: int) -> None:
        self._path, self._local, self._pool = path, local, pool
        device = pool.x.device
        self.start = torch.zeros(dimension, dtype=torch.float32, device=device)
        self.staging = Staging(device)

    def begin(self, weights: NDArray[np.float32]) -> None:
        """The chunks that follow start from `weights` (d,)."""
        self.staging.copy(self.start, weights)

    def plan(self, rows: Sequence[NDArray[np.int64]], seeds: Sequence[int]) -> Schedule:
        """The schedule of clients, sorted by number of steps, longest first. On the host alone.

        Raises:
            TrainingError: a row that the pool does not have.
        """
        for each in rows:
            if len(each) and not 0 <= int(each.min()) <= int(each.max()) < len(self._pool):
                raise TrainingError(
                    f"a client has the rows {each.min()} to {each.max()} of "
                    f"{len(self._pool)} examples; check the partition"
                )
        return build(rows, seeds, self._local)

    def train(self, schedule: Schedule, seeds: Sequence[int], finish: Finish) -> Epoch:
        """Trains a schedule of at least one step; the device may still be at it on return."""
        return self._path.run(self.start, self._pool, schedule, seeds, finish)

    def release(self) -> None:
        """Lets go of the graphs and their memory; the examples stay."""
        self._path.release()
