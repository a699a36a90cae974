"""A pool of examples for other processes: bytes that they share, or files that they map themselves.

A tensor that lies whole in a file's mapping, and was not written since, is not copied: each process
maps the file, and the operating system keeps one copy of its pages for all of them.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsys.errors import TrainingError
from fedsys.tasks import Examples
from fedsys.tasks.examples import transformed

__all__ = ["MappedFile", "SharedPool", "mapped_file"]

_LEAST = 1 << 20
"""Smaller tensors are copied: finding out where they lie costs more."""

_HEAD = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<allowed>\S{4}) (?P<offset>[0-9a-f]+) \S+ "
    r"(?P<inode>\d+) +(?P<path>/.*)"
)


@dataclass(frozen=True, kw_only=True)
class MappedFile:
    """Bytes of a file.

    Attributes:
        path: Where it is.
        offset: Where the bytes begin.
        length: Number of bytes.
        identity: Size and time of change of the file, in nanoseconds, which it must still have.
    """

    path: str
    offset: int
    length: int
    identity: tuple[int, int]

    def map(self) -> NDArray[np.uint8]:
        """The bytes, mapped for reading.

        Raises:
            TrainingError: the file is not here, or is another one.
        """
        try:
            if _identity(self.path) != self.identity:
                raise TrainingError(
                    f"{self.path}: has changed since the data were read; leave it as it is while "
                    f"a run trains"
                )
            return np.memmap(
                self.path, dtype=np.uint8, mode="r", offset=self.offset, shape=(self.length,)
            )
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise TrainingError(
                f"{self.path}: {reason}; every process maps the file of the examples, so every "
                f"machine needs it under the same path"
            ) from None


@dataclass(frozen=True, kw_only=True)
class _Part:
    data: NDArray[np.uint8] | MappedFile
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Part:
        here = tensor.detach().cpu().contiguous()
        data = mapped_file(here) or here.reshape(-1).view(torch.uint8).numpy()
        return cls(data=data, dtype=here.dtype, shape=tuple(here.shape))

    def tensor(self) -> Tensor:
        data = self.data.map() if isinstance(self.data, MappedFile) else self.data
        with warnings.catch_warnings():
            # What is shared cannot be written everywhere; training writes no example.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(data).view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class SharedPool:
    """Examples as plain values; pickled by protocol 5, its arrays stay out of the pickle."""

    _x: Any
    _y: Any

    @classmethod
    def of(cls, examples: Examples) -> SharedPool:
        """Those of `examples`, wherever they are."""
        return cls(transformed(examples.x, _Part.of), transformed(examples.y, _Part.of))

    def examples(self) -> Examples:
        """The examples, in the shared bytes or mapped files."""
        return Examples(x=_tensors(self._x), y=_tensors(self._y))


def _tensors(parts: Any) -> Any:
    if isinstance(parts, _Part):
        return parts.tensor()
    if isinstance(parts, dict):
        return {name: part.tensor() for name, part in parts.items()}
    return tuple(part.tensor() for part in parts)


def mapped_file(tensor: Tensor) -> MappedFile | None:
    """The file in whose mapping a contiguous CPU tensor lies; None where it lies in memory of this
    process, or in a private mapping of which a page was written."""
    length = tensor.numel() * tensor.itemsize
    if length < _LEAST or sys.platform != "linux":
        return None
    try:
        text = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    found: re.Match[str] | None = None
    for line in text.splitlines():
        head = _HEAD.fullmatch(line)
        if head is not None or line[:1] in "0123456789abcdef":
            if found is not None:
                break
            if head is not None and _within(head, tensor.data_ptr(), length):
                found = head
        elif found is not None and found["allowed"][3] == "p":
            written = line.startswith(("Anonymous:", "Swap:")) and int(line.split()[1])
            if written:
                return None
    return None if found is None else _placed(found, tensor.data_ptr(), length)


def _within(head: re.Match[str], start: int, length: int) -> bool:
    return int(head["start"], 16) <= start and start + length <= int(head["end"], 16)


def _placed(head: re.Match[str], start: int, length: int) -> MappedFile | None:
    path = head["path"]
    try:
        if os.stat(path).st_ino != int(head["inode"]):  # deleted, or replaced by another
            return None
        identity = _identity(path)
    except OSError:
        return None
    offset = start - int(head["start"], 16) + int(head["offset"], 16)
    return MappedFile(path=path, offset=offset, length=length, identity=identity)


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns
