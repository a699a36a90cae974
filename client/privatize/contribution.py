"""What a client contributes of its update: all of it, or zero by a secret coin; layers clipped.

Both steps come before the mechanism's own clipping, which bounds whatever they hand over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy import AdaptiveClipping, Entropy
from fedsys.privacy.sampling.cohorts import secret_coin

__all__ = ["contribution"]


def contribution(
    updates: NDArray[np.float32],
    *,
    participation: float,
    clipping: Mapping[str, Any] | None,
    entropy: Entropy | Sequence[Entropy],
) -> NDArray[np.float32]:
    """(K, d) updates as what the mechanism encodes: (K, d), or (K, d + G) with clipping bits.

    Args:
        updates: (K, d), one row a client.
        participation: p; with probability 1 - p a client contributes zero, and nobody else can
            tell (the noise and the timing are the same).
        clipping: `AdaptiveClipping` as JSON, or None.
        entropy: of the coins; one source for all rows, or one a row.
    """
    if participation < 1:
        updates = updates.copy()
        for row in range(len(updates)):
            source = entropy if callable(entropy) else entropy[row]
            kept = secret_coin(participation, source)
            updates[row] = np.where(kept, updates[row], np.float32(0))  # as long, either way
    if clipping is not None:
        return AdaptiveClipping.from_json(clipping).extend(updates).astype(np.float32)
    return updates
