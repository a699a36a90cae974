"""Long lists of non-negative integers as short text: base64 of variable-length integers.

Numbers are written in LEB128: seven bits per octet, lowest first, with the eighth bit set on all
octets but the last. Increasing client numbers are written as the gaps between them, so that a
cohort of a thousandth of the population costs about three bytes per client.

>>> pack([3, 300, 0]), unpack("A6wCAA==").tolist()
('A6wCAA==', [3, 300, 0])
>>> unpack_increasing(pack_increasing([7, 8, 1000])).tolist()
[7, 8, 1000]
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import LedgerError

__all__ = ["MOST_OCTETS", "pack", "pack_increasing", "unpack", "unpack_increasing"]

MOST_OCTETS = 6
"""The most octets of one number, which is therefore below 2^42."""

Numbers = NDArray[np.int64]


def pack(numbers: Sequence[int] | Numbers) -> str:
    """Packs integers from 0 to 2^42 - 1, in their order.

    Raises:
        LedgerError: a number is outside that range.
    """
    values = np.asarray(numbers, dtype=np.int64)
    if values.size and not (values.min() >= 0 and values.max() < 1 << 7 * MOST_OCTETS):
        raise LedgerError(f"packed numbers must be from 0 to 2^{7 * MOST_OCTETS} - 1")
    shifted = values[:, None] >> np.arange(0, 7 * MOST_OCTETS, 7)
    more = shifted[:, 1:] > 0  # whether further octets follow
    octets = (shifted & 0x7F).astype(np.uint8)
    octets[:, :-1] |= more.astype(np.uint8) << 7
    used = np.concatenate([np.ones((len(values), 1), dtype=bool), more], axis=1)
    return base64.b64encode(octets[used].tobytes()).decode("ascii")


def pack_increasing(ids: Sequence[int] | Numbers) -> str:
    """Packs strictly increasing numbers as gaps: how many numbers are skipped before each.

    Raises:
        LedgerError: they do not increase, or a gap is outside the range of `pack`.
    """
    values = np.concatenate([[-1], np.asarray(ids, dtype=np.int64)])
    return pack(values[1:] - values[:-1] - 1)


def unpack(text: str) -> Numbers:
    """The numbers in a text that `pack` wrote.

    Raises:
        LedgerError: `pack` cannot have written the text.
    """
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError:
        raise LedgerError("packed numbers are not base64") from None
    if base64.b64encode(raw).decode("ascii") != text:
        raise LedgerError("packed numbers are not in canonical base64")
    octets = np.frombuffer(raw, dtype=np.uint8)
    if not octets.size:
        return np.zeros(0, dtype=np.int64)
    ends = np.flatnonzero(octets < 0x80)
    if not ends.size or ends[-1] != octets.size - 1:
        raise LedgerError("packed numbers end in the middle of a number")
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > MOST_OCTETS or (octets[ends][lengths > 1] == 0).any():
        raise LedgerError(
            f"a packed number is not below 2^{7 * MOST_OCTETS}, or not in its shortest form"
        )
    starts = ends - lengths + 1
    values = np.zeros(ends.size, dtype=np.int64)
    for place in range(int(lengths.max())):
        has = lengths > place
        values[has] |= (octets[starts[has] + place].astype(np.int64) & 0x7F) << (7 * place)
    return values


def unpack_increasing(text: str) -> Numbers:
    """The strictly increasing numbers in a text that `pack_increasing` wrote.

    Raises:
        LedgerError: `pack_increasing` cannot have written the text.
    """
    return np.cumsum(unpack(text) + 1) - 1
