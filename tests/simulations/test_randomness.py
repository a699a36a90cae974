"""Sources of secrets: what a randomness says of itself is so."""

from __future__ import annotations

import pytest

from simulations.randomness import Randomness, SeededRandomness, SystemRandomness


@pytest.mark.parametrize(
    "randomness",
    [SystemRandomness(), SeededRandomness(b"one"), SeededRandomness(b"one", everything=False)],
)
def test_a_randomness_knows_whether_all_noise_has_one_source(randomness: Randomness) -> None:
    sources = [randomness.noise(round, client) for round in (1, 2) for client in (0, 7)]
    shared = randomness.shared_noise()
    assert (shared is not None) == (len(set(sources)) == 1)
    assert shared in (None, *sources)
