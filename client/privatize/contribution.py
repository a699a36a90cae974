"""A client's contribution: its update, with adaptive clipping's bits, or with a procedure's blocks
and the client's weight; or, by a secret coin, zeros in all of these places.

A client that does not take part sends nothing but zeros, since that is what its data are compared
with: the accountants charge the difference between a client's vector, whose norm is at most C, and
zeros, and a bit or a weight that is sent regardless would be neither amplified nor paid for.

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
    taking_part: Sequence[bool] | None = None,
) -> NDArray[np.float32]:
    """(K, d) updates as what the mechanism encodes: (K, d), or (K, d + G) with clipping bits.

    With `parts`, rows are (K, width) and come back as (K, length).

    Args:
        updates: (K, d) float32, one row per client.
        participation: p; with probability 1 - p a client contributes a row of zeros, which nobody
            else can observe (the noise and the timing are the same).
        clipping: `AdaptiveClipping` as JSON, or None.
        entropy: source of the coins: one for all rows, or one per row.
        parts: what lies where in a row; None where it is the update alone.
        clip: C, with `parts`.
        examples: (K,) numbers of examples, where clients are weighted by them.
        taking_part: (K,) False for clients that have contributed as often as they may: their rows
            are zeros; None if there are none.
    """
    if parts is not None and not parts.plain:
        updates = parts.assemble(updates, clip=clip, examples=examples)
    if clipping is not None:
        updates = AdaptiveClipping.from_json(clipping).extend(updates).astype(np.float32)
    kept = np.ones(len(updates), dtype=np.bool_) if taking_part is None else np.array(taking_part)
    if participation < 1:
        sources = [entropy] * len(updates) if callable(entropy) else entropy
        kept &= np.array([secret_coin(participation, source) for source in sources])
    elif kept.all():
        return updates
    # Takes the same time either way.
    return np.where(kept[:, None], updates, np.float32(0))
