"""Memory that the engine's processes share: one anonymous file that each of them maps.

It takes no space in ``/dev/shm``, has no name that a crash could leave behind, and vanishes with
its last process.

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
        offset: Bytes from the arena's start.
        shape: Shape of the array.
        dtype: Name of the array's dtype.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: str


class Arena:
    """Named arrays in shared memory.

    Attributes:
        descriptor: Descriptor of the file; a child process inherits it.
        places: Where each array lies, by name.
    """

    def __init__(self, descriptor: int, places: Mapping[str, Place], size: int) -> None:
        self.descriptor, self.places = descriptor, dict(places)
        self._memory = mmap.mmap(descriptor, size)

    @classmethod
    def of(
        cls, arrays: Mapping[str, tuple[tuple[int, ...], str]], descriptor: int | None = None
    ) -> Arena:
        """A new arena of zeros.

        Args:
            arrays: Shape and dtype of each array, by name.
            descriptor: Descriptor of an empty `anonymous_file`; a new one by default.
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
        """Map an arena that another process made."""
        return cls(descriptor, places, os.fstat(descriptor).st_size)

    def array(self, name: str) -> NDArray[Any]:
        """The array of this name; what one process writes, all of them see."""
        place = self.places[name]
        return np.ndarray(place.shape, dtype=place.dtype, buffer=self._memory, offset=place.offset)

    def close(self) -> None:
        """Close the file; its memory is freed once no process has an array in it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def anonymous_file() -> int:
    """Descriptor of a new empty file without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fedsys", 0)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
