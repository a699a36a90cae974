"""Messages between the agent and its training process: a JSON header, then raw bytes."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["mapped", "read_header", "read_whole", "write"]

_MOST_HEADER = 1 << 16


def write(stream: IO[bytes], header: Mapping[str, Any], parts: Sequence[Any] = ()) -> None:
    """Write a message: the length of its header (8 bytes, big endian), the header, the parts."""
    text = json.dumps(dict(header)).encode()
    stream.write(len(text).to_bytes(8, "big") + text)
    for part in parts:
        stream.write(part)
    stream.flush()


def read_whole(stream: IO[bytes], size: int) -> bytes:
    """Read exactly `size` bytes.

    Raises:
        EOFError: the stream ended before.
    """
    data = stream.read(size)
    if len(data) != size:
        raise EOFError(f"{len(data)} bytes of {size}")
    return data


def read_header(stream: IO[bytes]) -> dict[str, Any]:
    """Read the header of the next message.

    Raises:
        EOFError: the stream ended before.
        ValueError: it is too long or not a JSON object.
    """
    length = int.from_bytes(read_whole(stream, 8), "big")
    if length > _MOST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    found = json.loads(read_whole(stream, length))
    if not isinstance(found, dict):
        raise ValueError("a header that is not an object")
    return found


def mapped(
    descriptor: int, places: Mapping[str, Mapping[str, Any]]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The arrays x and y of `SharedExamples`, read-only; all processes share their pages.

    Args:
        descriptor: the memory's file descriptor; the arrays outlive it.
        places: dtype, shape and offset of each array.
    """
    memory = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    x, y = (
        np.ndarray(tuple(each["shape"]), np.dtype(each["dtype"]), memory, each["offset"])
        for each in (places["x"], places["y"])
    )
    return x, y
