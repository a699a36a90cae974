"""Memory that the engine's processes share: one anonymous file, mapped by each of them.

It needs no room in ``/dev/shm``, has no name that a crash could leave behind, and vanishes with its
last process.

>>> arena = Arena.of({"weights": ((3,), "float32"), "total": ((2, 2), "int64")})
>>> arena.array("total")[1] = 7
>>> Arena.attached(arena.descriptor, arena.places).array("total")
array([[0, 0],
       [7, 7]])
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arena", "Place", "anonymous_file"]

_ALIGNMENT = 4096


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an array lies.

    Attributes:
        offset: bytes from the arena's start.
        shape: of the array.
        dtype: its name.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: str


class Arena:
    """Named arrays in shared memory.

    Attributes:
        descriptor: of the file; a child process inherits it.
        places: of the arrays.
    """

    def __init__(self, descriptor: int, places: Mapping[str, Place], size: int) -> None:
        self.descriptor, self.places = descriptor, dict(places)
        self._memory = mmap.mmap(descriptor, size)

    @classmethod
    def of(
        cls, arrays: Mapping[str, tuple[tuple[int, ...], str]], descriptor: int | None = None
    ) -> Arena:
        """A new arena of zeros: shape and dtype by name.

        Args:
            arrays: what it holds.
            descriptor: of an empty `anonymous_file`; a new one by default.
        """
        places, size = {}, 0
        for name, (shape, dtype) in arrays.items():
            places[name] = Place(offset=size, shape=tuple(shape), dtype=dtype)
            used = math.prod(shape) * np.dtype(dtype).itemsize
            size += -(-max(used, 1) // _ALIGNMENT) * _ALIGNMENT
        if descriptor is None:
            descriptor = anonymous_file()
        os.ftruncate(descriptor, size)
        return cls(descriptor, places, size)

    @classmethod
    def attached(cls, descriptor: int, places: Mapping[str, Place]) -> Arena:
        """The arena that another process made."""
        return cls(descriptor, places, os.fstat(descriptor).st_size)

    def array(self, name: str) -> NDArray[Any]:
        """The array of this name; what one process writes, all of them read."""
        place = self.places[name]
        return np.ndarray(place.shape, dtype=place.dtype, buffer=self._memory, offset=place.offset)

    def close(self) -> None:
        """Closes the file; the memory goes once no array of any process uses it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def anonymous_file() -> int:
    """Descriptor of an empty file without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fedsys", 0)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
