"""Which client holds which training examples. A population is an index, never N objects.

>>> import torch
>>> from fedsys.tasks import Examples, FederatedData
>>> ten = Examples(x=torch.zeros(10, 4), y=torch.arange(10) % 2)
>>> partition = split(FederatedData(train=ten, test=ten), "iid", clients=3, seed=0)
>>> partition.clients, sorted(len(partition.indices_of(k)) for k in range(3))
(3, [3, 3, 4])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import ConfigError, DataError
from fedsys.tasks.base import FederatedData
from fedsys.tasks.examples import parts_of
from fedsys.tasks.named import attribute_of
from fedsys.tasks.options import nearest

__all__ = ["Compressed", "Partition", "Resampled", "split"]

Indices = NDArray[np.int64]


class Partition(Protocol):
    """Maps a client to the rows of the training examples that it holds."""

    @property
    def clients(self) -> int:
        """N, the number of clients; they are numbered from 0."""
        ...

    def indices_of(self, client: int) -> Indices:
        """The rows of the training examples that `client` holds."""
        ...


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A partition in which each example has at most one client, as compressed sparse rows.

    Attributes:
        offsets: (N + 1,) client k's rows are ``indices[offsets[k]:offsets[k + 1]]``.
        indices: (M,) rows of the training examples.
    """

    offsets: Indices
    indices: Indices

    @property
    def clients(self) -> int:
        """N, the number of clients."""
        return len(self.offsets) - 1

    def indices_of(self, client: int) -> Indices:
        """The client's rows, as a view."""
        _check_client(client, self.clients)
        return self.indices[self.offsets[client] : self.offsets[client + 1]]


@dataclass(frozen=True, kw_only=True)
class Resampled:
    """A virtual population of any size: each client holds `size` rows drawn from the pool.

    Rows are a pure function of (seed, client), so a population of a million takes no memory.
    Clients overlap: use it to measure systems, not to claim accuracy over a real population.
    """

    clients: int
    size: int
    pool: int
    seed: int

    def indices_of(self, client: int) -> Indices:
        """(size,) rows, drawn with replacement."""
        _check_client(client, self.clients)
        return np.random.default_rng((self.seed, client)).integers(0, self.pool, size=self.size)


def split(
    data: FederatedData,
    how: str,
    clients: int | None,
    seed: int,
    *,
    alpha: float = 0.5,
    shards: int = 2,
    examples: int = 10,
) -> Partition:
    """Distributes the training examples among clients.

    Args:
        data: The task's data; ``dirichlet`` and ``shards`` need one class per example.
        how: ``one-each`` | ``iid`` | ``dirichlet`` (Hsu, Qi, Brown 2019, arXiv:1909.06335: equal
            sizes, each client's class mix drawn from Dirichlet(alpha times the overall mix)) |
            ``shards`` (McMahan et al. 2017, section 3: sorted by label, cut, `shards` pieces
            each) | ``by-column`` (the data's own clients) | ``resampled`` (virtual: `examples`
            rows each, drawn with replacement).
        clients: N, or None for the partition's own number (``one-each``: M, ``by-column``: all).
        seed: Used for the partition alone.
        alpha: Concentration of ``dirichlet``.
        shards: Pieces per client of ``shards``.
        examples: Rows per client of ``resampled``.

    Raises:
        ConfigError: `how` is unknown, or needs a number of clients.
        DataError: there are fewer examples than the clients need.
    """
    count = len(data.train)
    natural = None if data.natural is None else data.natural.numpy()
    if data.by_client is not None:
        if how != "by-column":
            raise ConfigError(
                f"population.partition = {how!r}: this task's examples are read client by client; "
                f"use by-column"
            )
        natural = data.by_client.natural.numpy()
    dealers: dict[str, Callable[[], Partition]] = {
        "one-each": lambda: _one_each(count, clients, seed),
        "iid": lambda: _iid(count, _needed(how, clients), seed),
        "dirichlet": lambda: _dirichlet(_classes(how, data), _needed(how, clients), seed, alpha),
        "shards": lambda: _shards(_classes(how, data), _needed(how, clients), seed, shards),
        "by-column": lambda: _by_column(natural, clients, seed),
        "resampled": lambda: Resampled(
            clients=_needed(how, clients), size=examples, pool=count, seed=seed
        ),
    }
    if ":" in how:
        return _own(how, data, clients, seed)
    if how not in dealers:
        raise ConfigError(
            f"population.partition = {how!r}: allowed are {', '.join(dealers)}"
            f'{nearest(how, dealers)}; your own is written "package.module:Attr"'
        )
    return dealers[how]()


def _own(how: str, data: FederatedData, clients: int | None, seed: int) -> Compressed:
    """A partition by the user's own function, whose rows are checked."""
    called = f"population.partition = {how!r}"
    rows = [
        np.asarray(each) for each in attribute_of(how, "population.partition")(data, clients, seed)
    ]
    if any(len(each) and each.dtype.kind not in "iu" for each in rows):
        raise ConfigError(f"{called} has to return each client's rows, as integers")
    rows = [each.astype(np.int64).ravel() for each in rows]
    if not rows:
        raise ConfigError(f"{called} returned no client")
    if clients is not None and len(rows) != clients:
        raise ConfigError(f"{called} returned {len(rows)} clients; population.clients = {clients}")
    indices = np.concatenate(rows)
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(data.train):
        raise DataError(
            f"{called} returned rows {indices.min()} to {indices.max()} of {len(data.train)} "
            f"training examples"
        )
    if len(np.unique(indices)) != len(indices):
        raise DataError(f"{called} gave an example to two clients, or twice to one")
    return Compressed(offsets=_offsets(np.array([len(each) for each in rows])), indices=indices)


def _check_client(client: int, clients: int) -> None:
    if not 0 <= client < clients:
        raise DataError(f"client {client} does not exist; there are {clients}, numbered from 0")


def _needed(how: str, clients: int | None) -> int:
    if clients is None:
        raise ConfigError(f"population.partition = {how!r} needs population.clients")
    if clients < 1:
        raise ConfigError(f"population.clients = {clients}: at least one is needed")
    return clients


def _enough(examples: int, clients: int, each: int = 1) -> None:
    if clients <= examples < clients * each:
        raise DataError(
            f"population.shards = {each}: the data has only {examples} training examples, enough "
            f"for {examples // clients} per client of population.clients = {clients}; ask for at "
            f"most that many"
        )
    if examples < clients:
        raise DataError(
            f"population.clients = {clients}: the data has only {examples} training examples, "
            f"enough for as many clients; ask for at most that many"
        )


def _classes(how: str, data: FederatedData) -> Indices:
    if len(parts_of(data.train.y)) != 1:
        raise DataError(
            f"population.partition = {how!r} needs one class per example, and this task has "
            f"targets of several tensors; use iid or by-column"
        )
    targets: NDArray[Any] = parts_of(data.train.y)[0].numpy()
    if targets.ndim != 1:
        raise DataError(
            f"population.partition = {how!r} needs one class per example, and this task has "
            f"targets of shape {targets.shape[1:]}; use iid or by-column"
        )
    if not np.issubdtype(targets.dtype, np.integer):
        raise DataError(
            f"population.partition = {how!r} needs classes, and this task's targets are "
            f"{targets.dtype}; use iid or by-column"
        )
    return targets.astype(np.int64, copy=False)


def _sizes(examples: int, clients: int) -> Indices:
    """Nearly equal sizes that add up to `examples`."""
    cuts = np.linspace(0, examples, clients + 1).astype(np.int64)
    return cuts[1:] - cuts[:-1]


def _offsets(sizes: Indices) -> Indices:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def _one_each(examples: int, clients: int | None, seed: int) -> Compressed:
    clients = examples if clients is None else _needed("one-each", clients)
    _enough(examples, clients)
    if clients == examples:
        chosen = np.arange(examples, dtype=np.int64)
    else:
        chosen = np.random.default_rng(seed).permutation(examples)[:clients]
    return Compressed(offsets=np.arange(clients + 1, dtype=np.int64), indices=chosen)


def _iid(examples: int, clients: int, seed: int) -> Compressed:
    _enough(examples, clients)
    return Compressed(
        offsets=_offsets(_sizes(examples, clients)),
        indices=np.random.default_rng(seed).permutation(examples),
    )


def _shards(classes: Indices, clients: int, seed: int, shards: int) -> Compressed:
    if shards < 1:
        raise ConfigError(f"population.shards = {shards}: at least one is needed")
    _enough(len(classes), clients, shards)
    by_class = np.argsort(classes, kind="stable").astype(np.int64)
    pieces = clients * shards
    cuts = _offsets(_sizes(len(classes), pieces))
    dealt = np.random.default_rng(seed).permutation(pieces)
    sizes = (cuts[1:] - cuts[:-1])[dealt].reshape(clients, shards).sum(axis=1)
    indices = np.concatenate([by_class[cuts[piece] : cuts[piece + 1]] for piece in dealt])
    return Compressed(offsets=_offsets(sizes), indices=indices)


def _dirichlet(classes: Indices, clients: int, seed: int, alpha: float) -> Compressed:
    if not (alpha > 0 and np.isfinite(alpha)):
        raise ConfigError(f"population.alpha = {alpha}: must be a positive number")
    _enough(len(classes), clients)
    rng = np.random.default_rng(seed)
    labels, counts = np.unique(classes, return_counts=True)
    pools = [rng.permutation(np.flatnonzero(classes == label)) for label in labels]
    left = counts.astype(np.int64)
    prior = counts / counts.sum()
    sizes = _sizes(len(classes), clients)
    taken: list[Indices] = []
    for size in sizes.tolist():
        odds = _mix(rng, alpha * prior) / prior
        want = size
        while want:
            # In proportion to what is left, so that the last client is treated like the first.
            weights = odds * left
            if weights.sum() <= 0:
                weights = left.astype(np.float64)
            drawn = np.minimum(rng.multinomial(want, weights / weights.sum()), left)
            taken.extend(
                pools[label][left[label] - drawn[label] : left[label]]
                for label in np.flatnonzero(drawn)
            )
            left -= drawn
            want -= int(drawn.sum())
    return Compressed(
        offsets=_offsets(sizes), indices=np.concatenate(taken).astype(np.int64, copy=False)
    )


def _mix(rng: np.random.Generator, alpha: NDArray[np.float64]) -> NDArray[np.float64]:
    """One Dirichlet(alpha) draw that stays a distribution as alpha goes to 0.

    If X is Gamma(a + 1) and U is uniform, X U^(1/a) is Gamma(a) (Marsaglia and Tsang 2000, section
    6). In logarithms, log X + log(U) / a, it does not underflow where a plain Gamma draw is 0 for
    every class; normalising the draws gives the Dirichlet.
    """
    logs = np.log(rng.standard_gamma(alpha + 1.0)) + np.log(1.0 - rng.random(len(alpha))) / alpha
    weights: NDArray[np.float64] = np.exp(logs - logs.max())
    total = weights.sum()
    weights /= total
    return weights


def _by_column(natural: NDArray[np.int64] | None, clients: int | None, seed: int) -> Compressed:
    if natural is None:
        raise ConfigError(
            "population.partition = 'by-column' needs data that names its clients, and this "
            "task's does not; use iid, dirichlet or one-each"
        )
    order = np.argsort(natural, kind="stable").astype(np.int64)
    _, sizes = np.unique(natural, return_counts=True)
    there = len(sizes)
    whole = Compressed(offsets=_offsets(sizes.astype(np.int64)), indices=order)
    if clients is None or clients == there:
        return whole
    if _needed("by-column", clients) > there:
        raise DataError(
            f"population.clients = {clients}: the data has {there} natural clients; ask for at "
            f"most that many, or leave population.clients out"
        )
    kept = np.sort(np.random.default_rng(seed).permutation(there)[:clients])
    rows = [whole.indices_of(int(client)) for client in kept]
    return Compressed(
        offsets=_offsets(np.array([len(each) for each in rows], dtype=np.int64)),
        indices=np.concatenate(rows),
    )
