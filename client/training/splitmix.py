"""The SplitMix64 stream (Steele, Lea, Flood 2014, figure 13), with random access.

A client's batches and dropout masks are drawn from it: a pure function of a seed, the same in
every language. Not for secrets and not for noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["state_of", "words"]

_WORD = np.uint64
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


def state_of(seeds: NDArray[np.uint64], domain: int) -> NDArray[np.uint64]:
    """(K,) the initial states of the streams of K seeds; each domain has its own streams."""
    return _finalise(seeds ^ _WORD(_finalise_int(domain)))


def words(state: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """(..., count) the first 64-bit words of the streams with initial `state` (...)."""
    return _finalise(state[..., None] + _WORD(_GOLDEN) * np.arange(1, count + 1, dtype=_WORD))


def _finalise(z: NDArray[Any]) -> NDArray[np.uint64]:
    z = (z ^ (z >> _WORD(30))) * _WORD(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> _WORD(27))) * _WORD(0x94D049BB133111EB)
    found: NDArray[np.uint64] = z ^ (z >> _WORD(31))
    return found


def _finalise_int(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
