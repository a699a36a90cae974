"""Work that many participants of one process would do alike, done once.

A virtual cohort's members all verify the same signatures, expand the same public polynomial, and
every dealer and committee member compute the same agreed secret. `Shared` keeps results by their
*complete* inputs, so that a hit proves what a fresh computation would. Use one object for one
round, in a process that holds all members' secrets anyway: a simulation. A device has no use for
it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

__all__ = ["Large", "Shared"]

T = TypeVar("T")


class Large:
    """Many bytes in a key: compared whole, and hashed by their length and their ends alone.

    Python hashes 2 MB of a message in 1 ms, and compares them with their like in a tenth of it.
    """

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Large) and self._data == other._data

    def __hash__(self) -> int:
        return hash((len(self._data), self._data[:64], self._data[-64:]))


class Shared:
    """A memo of pure computations; failures are never kept."""

    __slots__ = ("_results",)

    def __init__(self) -> None:
        self._results: dict[Hashable, Any] = {}

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the result under ``key``, computing it on first use."""
        try:
            result: T = self._results[key]
        except KeyError:
            result = self._results[key] = compute()
        return result

    def find(self, key: Hashable) -> Any:
        """Return the result under ``key``, or None where nobody computed it."""
        return self._results.get(key)

    def clear(self) -> None:
        """Forget everything; call it between rounds."""
        self._results.clear()

    def __len__(self) -> int:
        return len(self._results)
