"""The virtual population: which examples each client holds, and which key it signs with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from client.training import Choice, ClippedSum, Trainer
from client.training.procedure.visit import Visit
from fedsys.errors import TrainingError
from fedsys.tasks import ByClient, Examples, Origin, Partition
from fedsys.tasks.partition import Compressed, Resampled
from fedsys.wire.assignment import batch_seed
from secure_agg import Identity, Roster

__all__ = ["Population"]

_PROBED, _READ = 64, 8

_Held = tuple[Examples, list[NDArray[np.int64]]]


@dataclass
class Population:
    """N virtual clients over one resident data set; memory does not grow with N.

    Identities exist only once `roster` is read, that is, under protocol ``secure``.

    Attributes:
        train_set: The pool of training examples; with `by_client`, those of a few clients.
        partition: Which of the examples each client holds.
        trainer: Trains the job's model.
        seed: Seed of the clients' batch orders.
        by_client: Examples that are read when their client trains.
        origin: Where other processes load the task from; None if its name in the configuration is
            enough.
        keys: The same clients in another role, whose keys they sign with; None for keys of its own.
    """

    train_set: Examples
    partition: Partition
    trainer: Trainer
    seed: int
    by_client: ByClient | None = None
    origin: Origin | None = field(default=None, repr=False)
    keys: Population | None = field(default=None, repr=False)
    _identities: dict[int, Identity] = field(default_factory=dict, repr=False)
    _roster: Roster | None = field(default=None, repr=False)
    _next: tuple[int, ...] = field(default=(), repr=False)
    _ahead: tuple[tuple[int, ...], Future[_Held]] | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Number of clients, N."""
        return self.partition.clients

    @property
    def roster(self) -> Roster:
        """The pinned public keys of all N clients; keys are drawn on first use."""
        if self.keys is not None:
            return self.keys.roster
        if self._roster is None:
            self._identities = {id: Identity.generate(os.urandom) for id in range(self.size)}
            self._roster = Roster({id: it.public_bytes for id, it in self._identities.items()})
        return self._roster

    def identity(self, client: int) -> Identity:
        """The signing key of one client."""
        if self.keys is not None:
            return self.keys.identity(client)
        if self._roster is None:
            self._roster = self.roster
        return self._identities[client]

    def choose(self, clip: float | None) -> Choice:
        """Path and chunk of local training, measured on some of the clients and then kept.

        Args:
            clip: the norm, where clipped sums are asked for instead of updates.
        """
        most = _PROBED if self.by_client is None else _READ
        pool, probe = self._held(range(min(self.size, most)))
        return self.trainer.choose(self.trainer.initial_weights(), pool, probe, clip=clip)

    def expect(self, clients: Sequence[int]) -> None:
        """Say who trains after the next: their examples, if they have to be read, are read while
        the others train."""
        self._next = tuple(clients)

    def _held(self, clients: Sequence[int]) -> _Held:
        """A pool of examples, and each client's rows of it."""
        if self.by_client is None:
            return self.train_set, [self.partition.indices_of(client) for client in clients]
        ahead, self._ahead = self._ahead, None
        known = ahead is not None and ahead[0] == tuple(clients)
        held = ahead[1].result() if ahead is not None and known else self._read(clients)
        if self._next:
            reader = ThreadPoolExecutor(1)
            self._ahead = (self._next, reader.submit(self._read, self._next))
            reader.shutdown(wait=False)
            self._next = ()
        return held

    def _read(self, clients: Sequence[int]) -> _Held:
        if self.by_client is None:
            raise TrainingError("examples that are in memory are not read again")
        pool, rows = self.by_client.take([self.partition.indices_of(id) for id in clients])
        return self.trainer.conformed(pool), rows

    def train(
        self,
        weights: NDArray[np.float32],
        clients: Sequence[int],
        *,
        round: int,
        visit: Visit | None = None,
    ) -> NDArray[np.float32]:
        """(K, width) float32 updates of these clients, all trained from `weights` (d,), with the
        blocks of a local procedure that sends any.

        A client's batch order depends only on the job's seed, the round and the client.
        """
        pool, rows = self._held(clients)
        return self.trainer.train(
            weights,
            pool,
            rows,
            [batch_seed(self.seed, round, client) for client in clients],
            names=list(clients),
            visit=visit,
        )

    def clipped_sum(
        self,
        weights: NDArray[np.float32],
        clients: Sequence[int],
        *,
        round: int,
        clip: float,
        visit: Visit | None = None,
    ) -> ClippedSum:
        """The same updates, each clipped to norm `clip`, summed in floating point."""
        pool, rows = self._held(clients)
        return self.trainer.clipped_sum(
            weights,
            pool,
            rows,
            [batch_seed(self.seed, round, client) for client in clients],
            clip=clip,
            names=list(clients),
            visit=visit,
        )

    def chunks(
        self, clients: Sequence[int], most: int, *, processes: int = 1
    ) -> list[tuple[int, ...]]:
        """Clients in chunks of about equal work, those with most examples first.

        Args:
            clients: Clients to train.
            most: Largest number of clients in a chunk.
            processes: The number of chunks is a multiple of this, so that all processes finish
                together. Only a chunk with more than `most` clients, of few examples each, is cut
                further.
        """
        sizes = self.examples(clients)
        order = np.argsort(-sizes, kind="stable")
        ordered = [clients[at] for at in order.tolist()]
        parts = -(-len(ordered) // (most * processes)) * processes
        # One more than its examples, because a client without an example still costs something.
        done = np.concatenate([[0], np.cumsum(sizes[order] + 1)])
        # Equal shares of the work: each client goes where the middle of its own work falls.
        middles = (done[1:] + done[:-1]) / 2
        bounds = np.searchsorted(middles, np.linspace(0, done[-1], parts + 1)).tolist()
        cut = []
        for start, end in pairwise(bounds):
            pieces = -(-(end - start) // most)
            cuts = np.linspace(start, end, pieces + 1).round().astype(int).tolist()
            cut += [tuple(ordered[a:b]) for a, b in pairwise(cuts)]
        return [chunk for chunk in cut if chunk]

    def examples(self, clients: Sequence[int]) -> NDArray[np.int64]:
        """(K,) number of examples that each client holds."""
        if isinstance(self.partition, Compressed):
            which = np.asarray(clients, dtype=np.int64)
            return self.partition.offsets[which + 1] - self.partition.offsets[which]
        if isinstance(self.partition, Resampled):
            return np.full(len(clients), self.partition.size, dtype=np.int64)
        sizes = [len(self.partition.indices_of(client)) for client in clients]
        return np.array(sizes, dtype=np.int64)
