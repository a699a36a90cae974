"""A client's contribution: its update or, by a secret coin, zero; with adaptive clipping's bits, or
with a procedure's blocks and the client's weight.

All steps come before the mechanism's own clipping, which bounds whatever they return.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy import AdaptiveClipping, Entropy
from fedsys.privacy.encoding.parts import Parts
from fedsys.privacy.sampling.cohorts import secret_coin

__all__ = ["contribution"]


def contribution(
    updates: NDArray[np.float32],
    *,
    participation: float,
    clipping: Mapping[str, Any] | None,
    entropy: Entropy | Sequence[Entropy],
    parts: Parts | None = None,
    clip: float = 0.0,
    examples: Sequence[int] = (),
) -> NDArray[np.float32]:
    """(K, d) updates as what the mechanism encodes: (K, d), or (K, d + G) with clipping bits.

    With `parts`, rows are (K, width) and come back as (K, length).

    Args:
        updates: (K, d) float32, one row per client.
        participation: p; with probability 1 - p a client contributes zero, which nobody else can
            observe (the noise and the timing are the same).
        clipping: `AdaptiveClipping` as JSON, or None.
        entropy: source of the coins: one for all rows, or one per row.
        parts: what lies where in a row; None where it is the update alone.
        clip: C, with `parts`.
        examples: (K,) numbers of examples, where clients are weighted by them.
    """
    if parts is not None and not parts.plain:
        updates = parts.assemble(updates, clip=clip, examples=examples)
    if participation < 1:
        updates = updates.copy()
        for row in range(len(updates)):
            source = entropy if callable(entropy) else entropy[row]
            kept = secret_coin(participation, source)
            # Takes the same time either way.
            updates[row] = np.where(kept, updates[row], np.float32(0))
    if clipping is not None:
        return AdaptiveClipping.from_json(clipping).extend(updates).astype(np.float32)
    return updates
