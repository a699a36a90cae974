"""Turns local updates into vectors for the sum: clip in the integers, add noise shares, mod 2^b.

This is the last place where a single client's update exists in the clear; a device calls it for
itself (K = 1), a simulation for K virtual clients at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy import Encoded, Entropy, Mechanism

__all__ = ["privatize"]


def privatize(
    mechanism: Mechanism,
    updates: NDArray[np.float32],
    *,
    seed: bytes,
    entropy: Entropy | Sequence[Entropy],
) -> Encoded:
    """Clip, encode and noise K updates.

    Args:
        mechanism: what the round's assignment prescribes.
        updates: (K, d) float32, one row per client. A row that is not finite becomes zeros plus
            noise: a refusal would leak information.
        seed: public seed, equal for all clients of a round.
        entropy: source of random rounding, then of the noise: one for all rows, or one per row.

    Returns:
        (K, length) vectors mod 2^b, ready for secure aggregation.
    """
    encoded = mechanism.encode(updates, seed=seed, entropy=entropy)
    mechanism.add_shares(encoded.values, entropy)
    return encoded
