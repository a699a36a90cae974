"""Sketches of sums: equal alone and together, linear, and different where a vector differs."""

from __future__ import annotations

import numpy as np
import pytest

from fedsys.privacy import AesCtrStream, to_ring
from fedsys.privacy.ledger.openings import difference, sketch, sketches

KEY = bytes(range(32))


@pytest.mark.parametrize("bits", [16, 20, 32, 40])
@pytest.mark.parametrize("length", [1, 1000, 70_000])  # the last takes two blocks
def test_sketches_are_linear_and_do_not_depend_on_each_other(bits: int, length: int) -> None:
    stream = AesCtrStream(bytes(32))
    summed, noise = (
        to_ring((stream.words(length) >> np.uint64(1)).astype(np.int64), bits=bits)
        for _ in range(2)
    )
    topped = to_ring(summed.astype(np.int64) + noise.astype(np.int64), bits=bits)
    together = sketches([summed, topped, noise], KEY, bits)
    assert together == [sketch(each, KEY, bits) for each in (summed, topped, noise)]
    assert difference(together[1], together[0], bits) == together[2]
    changed = topped.copy()
    changed[-1] ^= changed.dtype.type(1)
    assert sketch(changed, KEY, bits) != together[1]
