"""Inputs and targets, row by row: a tensor each, or several by name or in order."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsys.errors import DataError

__all__ = ["Examples", "Values", "parts_of", "transformed"]

Values = Any
"""A tensor, a dict of tensors by name, or a tuple of tensors."""

_SHORT = (torch.int8, torch.int16, torch.int32)


def parts_of(values: Values) -> tuple[Tensor, ...]:
    """The tensors of `values` in order; a single tensor is one of one."""
    if isinstance(values, Tensor):
        return (values,)
    return tuple(values.values() if isinstance(values, dict) else values)


def transformed(values: Values, call: Callable[[Tensor], Any]) -> Values:
    """`values` with `call` applied to each of its tensors."""
    if isinstance(values, Tensor):
        return call(values)
    if isinstance(values, dict):
        return {name: call(part) for name, part in values.items()}
    return tuple(call(part) for part in values)


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Inputs and targets, resident once.

    Attributes:
        x: (M, ...) inputs in the dtype that the model takes; bytes stay bytes (``uint8``) and the
            model converts them, so that a data set takes no more memory than its file. A dict or
            tuple of tensors, of M rows each, reaches the model as it is, as its one argument.
        y: (M, ...) targets; class indices are ``int64``. Also a dict or tuple, for ``loss`` and
            ``metrics``.

    Numpy arrays become tensors, with float64 converted to float32; targets of shorter integer
    dtypes become int64; lists become tuples. An array that is mapped from a file stays mapped.
    """

    x: Values
    y: Values

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", _values("x", self.x))
        y = _values("y", self.y)
        object.__setattr__(
            self, "y", transformed(y, lambda part: part.long() if part.dtype in _SHORT else part)
        )
        inputs, targets = _rows_of("x", self.x), _rows_of("y", self.y)
        if inputs != targets:
            raise DataError(f"{inputs} inputs but {targets} targets; give one per input")

    def __len__(self) -> int:
        return len(parts_of(self.x)[0])

    def __getitem__(self, rows: slice | Tensor) -> Examples:
        """These rows: views for a slice, a copy for indices or a mask."""
        return self.map(lambda part: part[rows])

    def take(self, rows: Tensor) -> Examples:
        """A copy of the rows at `rows` (B,) int64."""
        return self.map(lambda part: part.index_select(0, rows.to(part.device)))

    def map(self, call: Callable[[Tensor], Tensor]) -> Examples:
        """The examples with `call`, which must keep rows together, applied to every tensor."""
        made = object.__new__(Examples)  # these are checked already
        object.__setattr__(made, "x", transformed(self.x, call))
        object.__setattr__(made, "y", transformed(self.y, call))
        return made

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All tensors, those of the inputs first."""
        return (*parts_of(self.x), *parts_of(self.y))

    @property
    def plain(self) -> bool:
        """Whether inputs and targets are a single tensor each."""
        return isinstance(self.x, Tensor) and isinstance(self.y, Tensor)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return parts_of(self.x)[0].device

    @property
    def form(self) -> tuple[Any, ...]:
        """Names, dtypes and shapes of one example."""
        names = [sorted(each) if isinstance(each, dict) else None for each in (self.x, self.y)]
        return (str(names), *((str(part.dtype), tuple(part.shape[1:])) for part in self.parts))

    def zeros(self) -> Examples:
        """As many examples of the same form, all zero."""
        return self.map(torch.zeros_like)

    def finite(self) -> Tensor:
        """(M,) bool, whether every floating-point number of an example is finite."""
        good = torch.ones(len(self), dtype=torch.bool, device=self.device)
        for part in self.parts:
            if part.is_floating_point():
                good &= torch.isfinite(part).reshape(len(part), -1).all(1)
        return good

    def double(self) -> Examples:
        """The examples with floating-point numbers in float64."""
        return self.map(lambda part: part.double() if part.is_floating_point() else part)

    def to(self, device: torch.device) -> Examples:
        """The same examples on `device`; self if they are there already."""
        if all(part.device == device for part in self.parts):
            return self
        return self.map(lambda part: part.to(device))


def _values(name: str, given: object) -> Values:
    if isinstance(given, (dict, list, tuple)):
        parts = given if isinstance(given, dict) else dict(enumerate(given))
        if not parts:
            raise DataError(f"Examples.{name} is an empty {type(given).__name__}")
        made = {key: _tensor(f"{name}[{key!r}]", part) for key, part in parts.items()}
        return made if isinstance(given, dict) else tuple(made.values())
    return _tensor(name, given)


def _rows_of(name: str, values: Values) -> int:
    """The number of rows, which all tensors have.

    Raises:
        DataError: they differ.
    """
    for part in parts_of(values):
        if not part.ndim:
            raise DataError(f"Examples.{name} has a tensor of no dimension; the first is the row")
    counts = [len(part) for part in parts_of(values)]
    if len(set(counts)) > 1:
        raise DataError(f"Examples.{name} has tensors of {counts} rows; give one row per example")
    return counts[0]


def _tensor(name: str, given: object) -> Tensor:
    """A tensor unchanged; a numpy array as a tensor, in the same memory where it can be."""
    if isinstance(given, Tensor):
        return given
    if not isinstance(given, np.ndarray) or given.dtype.kind not in "biuf":
        kind = f"numpy {given.dtype}" if isinstance(given, np.ndarray) else type(given).__name__
        raise DataError(f"Examples.{name} is {kind}; it has to be a tensor of numbers")
    if given.dtype == np.float64:
        given = given.astype(np.float32)
    native = np.ascontiguousarray(given.astype(given.dtype.newbyteorder("="), copy=False))
    with warnings.catch_warnings():
        # A file that is mapped for reading gives an array that cannot be written; nothing does.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(native)
