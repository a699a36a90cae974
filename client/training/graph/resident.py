"""A pool of examples on its device and the graphs that train from it, chunk after chunk, without
the host waiting for the device."""

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
        path: the model's graph path.
        local: the path's hyper-parameters.
        pool: the examples, on the path's device.
        dimension: d, the number of weights.
    """

    def __init__(self, path: GraphPath, local: LocalConfig, pool: Examples, dimension: int) -> None:
        self._path, self._local, self._pool = path, local, pool
        device = pool.device
        self.start = torch.zeros(dimension, dtype=path.dtype, device=device)
        self.staging = Staging(device)

    def begin(self, weights: NDArray[np.float32]) -> None:
        """Start the chunks that follow from `weights` (d,)."""
        self.staging.copy(self.start, weights)

    def plan(self, rows: Sequence[NDArray[np.int64]], seeds: Sequence[int]) -> Schedule:
        """The schedule of clients that are sorted by number of steps, longest first. Runs on the
        host alone.

        Raises:
            TrainingError: a client has a row that the pool does not have.
        """
        for each in rows:
            if len(each) and not 0 <= int(each.min()) <= int(each.max()) < len(self._pool):
                raise TrainingError(
                    f"a client has the rows {each.min()} to {each.max()} of "
                    f"{len(self._pool)} examples; check the partition"
                )
        return build(rows, seeds, self._local)

    def train(self, schedule: Schedule, seeds: Sequence[int], finish: Finish) -> Epoch:
        """Train a schedule of at least one step; the device may still be training on return."""
        return self._path.run(self.start, self._pool, schedule, seeds, finish)

    def release(self) -> None:
        """Free the graphs and their memory; the examples stay."""
        self._path.release()
