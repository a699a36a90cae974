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


@pytest.mark.parametrize("bits", [8, 20, 40])
@pytest.mark.parametrize("below", [1, 2])
def test_multiples_of_a_high_power_have_one_sketch_as_often_as_said(bits: int, below: int) -> None:
    """4^-(b-v) of all keys, within five standard errors: a false alarm has chance 1e-6."""
    zero = np.zeros(3, dtype=np.uint64)
    other = np.array([1, 0, 3], dtype=np.uint64) << np.uint64(bits - below)
    keys = (number.to_bytes(32, "big") for number in range(2000))
    same = sum(len(set(sketches([zero, other], key, bits))) == 1 for key in keys)
    chance = 4.0**-below
    assert abs(same - 2000 * chance) < 5 * (2000 * chance * (1 - chance)) ** 0.5
