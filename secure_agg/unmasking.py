"""The masks that are left in a sum, from the secrets that were recovered."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_agg import keys
from secure_agg.shared import Shared
from secure_agg.transcript import Dealt

__all__ = ["masks_left"]


def masks_left(
    dealt: Dealt,
    alive: Collection[int],
    seeds: Mapping[int, bytes],
    mask_keys: Mapping[int, bytes],
    shared: Shared | None,
) -> tuple[list[bytes], list[bytes]]:
    """Return the keys of the masks to add to a sum, and of those to subtract from it.

    Args:
        dealt: Stage 1's set.
        alive: Whose inputs are in the sum.
        seeds: Self-mask seeds b of the alive.
        mask_keys: Mask keys s of those that dropped after they dealt.
        shared: Work shared with a virtual cohort in this process.

    Returns:
        Keys of 32 bytes, as `secure_agg.prg.add_masks` takes them.
    """
    plus: list[bytes] = []
    minus = [keys.self_mask_key(seed, dealt.transcript) for seed in seeds.values()]
    cohort, alive = dealt.view.cohort, frozenset(alive)
    for member, secret in mask_keys.items():
        private = X25519PrivateKey.from_private_bytes(secret)
        index = cohort.index[member]
        own = cohort.masks[index]
        for other in dealt.view.neighbour_ids(index):
            if other in alive:
                public = cohort.masks[cohort.index[other]]
                agreed = functools.partial(keys.agree, private, public)
                key = keys.pair_key("mask", agreed, own, public, dealt.transcript, shared)
                # The one that is alive added it if its id is the lower, else subtracted it.
                (minus if other < member else plus).append(key)
    return plus, minus
