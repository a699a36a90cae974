"""Examples that are read client by client as it trains, for data that fit nowhere at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsys.errors import DataError, FedsysError
from fedsys.tasks.examples import Examples, Values

__all__ = ["READING", "ByClient"]

Rows = NDArray[np.int64]

READING: ContextVar[bool] = ContextVar("reading", default=False)
"""Whether this thread is inside a `ByClient.load`."""

_SAMPLED = 8
_READERS = 4


@dataclass(frozen=True, kw_only=True)
class ByClient:
    """Clients' examples, each read when its client trains.

    Attributes:
        load: The examples of client k, from 0: the same at each call, in any thread. Other
            processes get it by pickle, so it is a module's function, or a method of an object that
            can be pickled. Random numbers come from a generator of its own (``torch.Generator``):
            torch's global one is at work in other threads, on training and other clients.
        sizes: (N,) the number of examples of each client.

    Raises:
        DataError: the sizes are no such numbers.
    """

    load: Callable[[int], Examples]
    sizes: Any

    def __post_init__(self) -> None:
        sizes = np.asarray(self.sizes)
        if sizes.ndim != 1 or not len(sizes) or sizes.dtype.kind not in "iu" or sizes.min() < 0:
            raise DataError(
                "ByClient.sizes has to be one whole number of examples for each client, 0 or more"
            )
        object.__setattr__(self, "sizes", sizes.astype(np.int64))
        if not sizes.sum():
            raise DataError("ByClient.sizes: no client has an example")

    @property
    def natural(self) -> Tensor:
        """(M,) the client of each example, in the order of clients."""
        return torch.from_numpy(np.repeat(np.arange(len(self.sizes)), self.sizes))

    def sample(self) -> Examples:
        """The examples of a few clients, for checks that need data of the right form."""
        held = np.flatnonzero(self.sizes)
        some = np.unique(np.linspace(0, len(held) - 1, _SAMPLED).astype(int))
        return self._joined(held[some].tolist())

    def whole(self) -> Examples:
        """All examples, for a device that holds few."""
        return self._joined(np.flatnonzero(self.sizes).tolist())

    def take(self, rows: Sequence[Rows]) -> tuple[Examples, list[Rows]]:
        """The examples of the clients that hold these rows, and where among them the rows are.

        Raises:
            DataError: a client's examples could not be read, or are not as many as its size.
        """
        ends = np.cumsum(self.sizes)
        wanted = np.concatenate([*rows, np.zeros(0, dtype=np.int64)])
        owners = np.unique(np.searchsorted(ends, wanted, side="right"))
        if not len(owners):
            return self.sample()[:0], [each[:0] for each in rows]
        begins = np.concatenate([[0], np.cumsum(self.sizes[owners])])[:-1]
        shift = np.zeros(len(ends), dtype=np.int64)
        shift[owners] = begins - (ends[owners] - self.sizes[owners])
        moved = [each + shift[np.searchsorted(ends, each, side="right")] for each in rows]
        return self._joined(owners.tolist()), moved

    def _joined(self, clients: Sequence[int]) -> Examples:
        with ThreadPoolExecutor(min(_READERS, len(clients))) as readers:
            parts = list(readers.map(self._read, clients))
        forms = {part.form for part in parts}
        if len(forms) > 1:
            one, other = sorted(map(str, forms))[:2]
            raise DataError(
                f"ByClient.load: examples of clients {clients[0]} to {clients[-1]} have different "
                f"forms, {one} and {other}; give all of them the same names, dtypes and shapes"
            )
        return Examples(x=_cat([part.x for part in parts]), y=_cat([part.y for part in parts]))

    def _read(self, client: int) -> Examples:
        entered = READING.set(True)
        try:
            found = self.load(client)
        except FedsysError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's code raises
            words = " ".join(str(error).split())[:200]
            raise DataError(
                f"ByClient.load({client}) failed: {type(error).__name__}: {words}"
            ) from error
        finally:
            READING.reset(entered)
        if not isinstance(found, Examples):
            raise DataError(
                f"ByClient.load({client}) returned {type(found).__name__}; it has to return "
                f"Examples"
            )
        if len(found) != self.sizes[client]:
            raise DataError(
                f"ByClient.load({client}) returned {len(found)} examples, but sizes[{client}] is "
                f"{self.sizes[client]}"
            )
        return found


def _cat(values: Sequence[Values]) -> Values:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    keys = first.keys() if isinstance(first, dict) else range(len(first))
    joined = {key: torch.cat([each[key] for each in values]) for key in keys}
    return joined if isinstance(first, dict) else tuple(joined.values())
