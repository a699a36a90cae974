"""Runs a chunk of clients on a path; halves it when memory runs out; errors name the client."""

from __future__ import annotations

import copy
import logging
import traceback
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.privatize.floats import clipped_sum_of
from client.training.dual.progress import Room
from client.training.local import LocalConfig
from client.training.schedule import Schedule, build
from client.training.selfcheck import LocalPath, PathFactory, SummingPath
from fedsys.errors import FedsysError, TrainingError
from fedsys.tasks import Examples, Task

__all__ = ["ChunkRunner", "Clients"]

Rows = NDArray[np.int64]
_log = logging.getLogger(__name__)


class Clients:
    """Some clients of a cohort: their rows, seeds and names, all in the same order."""

    def __init__(self, rows: Sequence[Rows], seeds: Sequence[int], names: Sequence[object]) -> None:
        if not len(rows) == len(seeds) == len(names):
            raise TrainingError(
                f"rows of {len(rows)} clients, {len(seeds)} seeds and {len(names)} names: there "
                f"must be the same number of each"
            )
        self.rows, self.seeds, self.names = rows, seeds, names

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: Sequence[int]) -> Clients:
        """The clients at the positions `which`, in that order."""
        return Clients(
            [self.rows[k] for k in which],
            [self.seeds[k] for k in which],
            [self.names[k] for k in which],
        )

    def halves(self) -> tuple[Clients, Clients]:
        """The first half and the rest."""
        middle = len(self) // 2
        return self.take(range(middle)), self.take(range(middle, len(self)))


class ChunkRunner:
    """Trains chunks of clients; builds each path when it is first used.

    Args:
        task: Provides the loss.
        model: Copied for each path.
        local: Hyper-parameters.
        paths: Path factories by name, including ``"loop"``.
    """

    def __init__(
        self, task: Task, model: nn.Module, local: LocalConfig, paths: Mapping[str, PathFactory]
    ) -> None:
        self._task, self._model, self._local, self._factories = task, model, local, paths
        self._paths: dict[str, LocalPath] = {}
        self._room = Room()
        self._most: dict[str, int] = {}

    def updates(
        self,
        path: str,
        start: Tensor,
        pool: Examples,
        clients: Clients,
        out: Tensor | None = None,
    ) -> Tensor:
        """(K, d) the updates of a chunk, in `out` or in a buffer that the next call reuses.

        The clients must be sorted by number of steps, longest first.

        Raises:
            TrainingError: training failed; the message names the client, the cause and the remedy.
        """
        if out is None:
            out = self._room.take("updates", (len(clients), len(start)), start)
        try:
            self._check_fits(path, clients)
            schedule = self._schedule(clients, pool)
            self._path(path).updates(start, pool, schedule, clients.seeds, out)
        except (Exception, SystemExit) as error:
            halves = self._halves(path, error, start, pool, clients)
            middle = len(halves[0])
            for part, into in zip(halves, (out[:middle], out[middle:]), strict=True):
                self.updates(path, start, pool, part, into)
        return out

    def clipped_sum(
        self, path: str, start: Tensor, pool: Examples, clients: Clients, clip: float
    ) -> tuple[Tensor, Tensor]:
        """(d,) the sum of a chunk's updates, each scaled down to norm `clip`, and (K,) the norms.

        A client whose update is not finite adds zeros and has the norm NaN. Order of clients and
        errors are as in `updates`.
        """
        try:
            self._check_fits(path, clients)
            local = self._path(path)
            if isinstance(local, SummingPath):
                schedule = self._schedule(clients, pool)
                return local.clipped_sum(start, pool, schedule, clients.seeds, clip)
        except (Exception, SystemExit) as error:
            halves = self._halves(path, error, start, pool, clients)
            parts = [self.clipped_sum(path, start, pool, part, clip) for part in halves]
            return parts[0][0] + parts[1][0], torch.cat([norms for _, norms in parts])
        return clipped_sum_of(self.updates(path, start, pool, clients), clip)

    def _check_fits(self, path: str, clients: Clients) -> None:
        """Split at once a chunk of a size for which memory ran out before."""
        if len(clients) > self._most.get(path, len(clients)):
            raise _TooManyError

    def _halves(
        self, path: str, error: BaseException, start: Tensor, pool: Examples, clients: Clients
    ) -> tuple[Clients, Clients]:
        """The halves to train instead if memory ran out, which is logged once per size.

        Raises:
            TrainingError: for any other error; names the client concerned.
        """
        if isinstance(error, _TooManyError):
            return clients.halves()
        if not _out_of_memory(error) or len(clients) == 1:
            raise self._blame(error, start, pool, clients) from error
        # The frames that failed still hold the tensors that did not fit.
        traceback.clear_frames(error.__traceback__)
        self._most[path] = len(clients) // 2
        _log.warning(
            "out of memory with %d clients at once: going on with half; set engine.chunk to at "
            "most %d to avoid this",
            len(clients),
            len(clients) // 2,
        )
        return clients.halves()

    def _schedule(self, clients: Clients, pool: Examples) -> Schedule:
        rows = np.concatenate(clients.rows)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(pool):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(pool)} examples")
        return build(clients.rows, clients.seeds, self._local)

    def _path(self, name: str) -> LocalPath:
        if name not in self._paths:
            factory = self._factories[name]
            self._paths[name] = factory(self._task, copy.deepcopy(self._model), self._local)
        return self._paths[name]

    def _blame(
        self, error: BaseException, start: Tensor, pool: Examples, clients: Clients
    ) -> FedsysError:
        """The error to raise: trains the clients one by one to find whose data fails."""
        if isinstance(error, FedsysError):
            return error
        for client in range(len(clients)):
            alone = clients.take([client])
            try:
                self._path("loop").updates(
                    start,
                    pool,
                    self._schedule(alone, pool),
                    alone.seeds,
                    start.new_empty((1, len(start))),
                )
            except (Exception, SystemExit) as own:
                if _out_of_memory(own):
                    return TrainingError(
                        f"client {alone.names[0]}: out of memory with this client alone, which has "
                        f"{len(alone.rows[0])} examples; use a smaller local.batch_size or model, "
                        f"fewer engine.processes, or a machine with more memory"
                    )
                return TrainingError(
                    f"client {alone.names[0]}: training on its {len(alone.rows[0])} examples "
                    f"failed: {type(own).__name__}: {_one_line(own)}; check its data and the "
                    f"task's model and loss"
                )
        return TrainingError(
            f"clients {clients.names[0]} to {clients.names[-1]}: training {len(clients)} at once "
            f"failed though each alone succeeds: {type(error).__name__}: {_one_line(error)}; set "
            f"engine.path = 'loop' or a smaller engine.chunk"
        )


class _TooManyError(Exception):
    """More clients than fit into memory, by an earlier failure."""


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "not enough memory" in text or "can't allocate memory" in text
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
