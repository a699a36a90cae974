"""From local updates to what may be summed: clip in the integers, add the noise share, mod 2^b.

This is the last place where a single client's update exists in the clear; a device calls it for
itself (K = 1), a simulation for K virtual clients at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy import Entropy, Mechanism, add_noise

__all__ = ["Privatized", "privatize"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Privatized:
    """K vectors ready for secure aggregation.

    Attributes:
        vectors: (K, length) integers mod 2^b, clipped, encoded and noised.
        clipped: (K,) whether the clipping norm cut the update.
        finite: (K,) whether the update was finite; otherwise zeros were encoded in its place.
    """

    vectors: NDArray[Any]
    clipped: NDArray[np.bool_]
    finite: NDArray[np.bool_]


def privatize(
    mechanism: Mechanism,
    updates: NDArray[np.float32],
    *,
    seed: bytes,
    entropy: Entropy | Sequence[Entropy],
) -> Privatized:
    """Clip, encode and noise K updates.

    Args:
        mechanism: what the round's assignment prescribes.
        updates: (K, d), one row a client. A row that is not finite becomes zeros plus noise:
            refusing would tell.
        seed: public, equal for all clients of a round.
        entropy: of rounding at random, then of the noise; one source for all rows, or one a row.
    """
    encoded = mechanism.encode(updates, seed=seed, entropy=entropy)
    vectors = encoded.values
    if mechanism.adds_shares:
        noise = mechanism.noise_shares(len(updates), entropy)
        vectors = add_noise(vectors, noise, bits=mechanism.modulus_bits)
    return Privatized(vectors=vectors, clipped=encoded.clipped, finite=encoded.finite)
