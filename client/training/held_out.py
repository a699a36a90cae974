"""Which of its rows a client trains on, and which it keeps for evaluations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.training.splitmix import words

__all__ = ["is_held_out", "kept_for"]

Rows = NDArray[np.int64]


def is_held_out(rows: Rows, fraction: float) -> NDArray[np.bool_]:
    """(M,) whether each row is kept for evaluations: a function of its place in the data alone.

    The place is hashed with SplitMix64, so that the rows that are held out are spread evenly.
    """
    z = words(rows.astype(np.uint64), 1)[:, 0]
    found: NDArray[np.bool_] = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53 < fraction
    return found


def kept_for(kind: str, rows: Rows, fraction: float) -> Rows:
    """The rows of a client that a round of a kind looks at: a query at all of them, training at
    those that are not held out, an evaluation at those that are (at all where none are).

    Args:
        kind: ``train``, ``query`` or ``evaluate``.
        rows: (M,) the client's rows.
        fraction: of them that are held out.
    """
    if fraction == 0 or kind == "query":
        return rows
    found: Rows = rows[is_held_out(rows, fraction) == (kind == "evaluate")]
    return found
