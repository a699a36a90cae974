"""Rows of one or many devices as columns of numbers.

>>> rows = Rows.of({"x": np.array([1.0, 2.0, 3.0])}, device=np.array([0, 0, 1]), devices=2)
>>> rows.weights(1), rows.per_device
(array([0.5, 0.5, 1. ]), array([2, 1]))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import DataError

__all__ = ["Column", "Rows"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        values: (M,) float64 numbers, or indices into `texts`; NaN where there is no value.
        texts: the values of a column of texts; None for numbers.
    """

    values: Floats
    texts: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Rows:
    """M rows of K devices.

    Attributes:
        columns: by name, each of length M.
        device: (M,) int64 position of each row's device, from 0 to K - 1.
        devices: K.
    """

    columns: Mapping[str, Column]
    device: NDArray[np.int64]
    devices: int

    @classmethod
    def of(
        cls,
        columns: Mapping[str, Column | NDArray[np.float64]],
        *,
        device: NDArray[np.int64],
        devices: int,
    ) -> Rows:
        """Rows from arrays of numbers."""
        made = {
            name: each
            if isinstance(each, Column)
            else Column(values=np.asarray(each, dtype=np.float64))
            for name, each in columns.items()
        }
        return cls(columns=made, device=np.asarray(device, dtype=np.int64), devices=devices)

    @cached_property
    def per_device(self) -> NDArray[np.int64]:
        """(K,) number of rows of each device."""
        found: NDArray[np.int64] = np.bincount(self.device, minlength=self.devices)
        return found

    def weights(self, most: int) -> Floats:
        """(M,) weight of each row: those of a device with more than `most` rows add up to that."""
        shares = np.minimum(1.0, most / np.maximum(self.per_device, 1))
        found: Floats = shares[self.device]
        return found

    def column(self, name: str) -> Column:
        """A column.

        Raises:
            DataError: there is none of that name.
        """
        found = self.columns.get(name)
        if found is None:
            known = ", ".join(list(self.columns)[:12])
            raise DataError(f"column {name!r}: there is none; the rows have {known}")
        return found

    def scaled(self, name: str, low: float, high: float) -> tuple[Floats, Floats]:
        """A column clipped to [low, high] and mapped to [-1, 1], and 1 where there is a value.

        Returns:
            (M,) numbers, 0 where there is none; (M,) 1 or 0.

        Raises:
            DataError: there is no such column, or it holds texts.
        """
        column = self.column(name)
        if column.texts is not None:
            raise DataError(f"column {name!r} holds texts; ask for a histogram with values")
        there = ~np.isnan(column.values)
        middle, half = (low + high) / 2, (high - low) / 2
        values = (np.clip(np.where(there, column.values, middle), low, high) - middle) / half
        return np.clip(values, -1.0, 1.0), there.astype(np.float64)

    def sums(self, values: Floats) -> Floats:
        """(K,) sums of a value (M,) over each device's rows."""
        found = np.bincount(self.device, weights=values, minlength=self.devices)
        return found.astype(np.float64)

    def counts(self, bins: NDArray[np.int64], many: int, weights: Floats) -> Floats:
        """(K, many) weighted number of each device's rows by bin (M,); a bin below 0 counts
        nowhere."""
        known = bins >= 0
        flat = self.device[known] * many + bins[known]
        found = np.bincount(flat, weights=weights[known], minlength=self.devices * many)
        return found.astype(np.float64).reshape(self.devices, many)
