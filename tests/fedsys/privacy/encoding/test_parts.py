"""Blocks and weights never exceed the vector's norm, and their means come out again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsys.errors import ConfigError, MechanismError
from fedsys.privacy.encoding.parts import Block, Parts

TWO = {"pair": Block(shape=(1, 2), clip=2.0), "steps": Block(shape=(), clip=100.0, scale=0.01)}


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1e-3, 1.0, 1e20]),
    cap=st.sampled_from([0, 1, 40]),
)
def test_no_vector_is_longer_than_c(seed: int, size: float, cap: int) -> None:
    parts = Parts(dimension=5, blocks=TWO, weight_cap=cap)
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(4, parts.width)) * size).astype(np.float32)
    made = parts.assemble(rows, clip=3.0, examples=rng.integers(0, 100, 4).tolist())
    assert made.shape == (4, parts.length)
    assert (np.linalg.norm(made.astype(np.float64), axis=1) <= 3.0 * (1 + 1e-6)).all()


def test_the_means_come_out_again() -> None:
    """At weights 1/4 and 1, with blocks that count alike."""
    parts = Parts(dimension=2, blocks=TWO, weight_cap=40)
    rows = np.array([[1, 0, 0.5, 0.25, 7], [0, 1, 0.5, 0.75, 9]], dtype=np.float32)
    mean = parts.assemble(rows, clip=4.0, examples=[10, 400]).mean(axis=0).astype(np.float64)
    update, sent = parts.split(mean, clip=4.0)
    assert np.allclose(update, [0.2, 0.8])
    assert np.allclose(sent["pair"], [[0.5, 0.5]])
    assert np.isclose(sent["steps"], 8)
    noisy, _ = parts.split(mean, clip=4.0, deviation=20.0)
    assert np.allclose(noisy, mean[:2] / 10)  # a weight below its noise divides by the noise


def test_a_row_that_is_not_finite_stays_so() -> None:
    parts = Parts(dimension=2, blocks=TWO)
    rows = np.array([[1, 0, 0, np.nan, 1], [1, 0, 0, 0, 1]], dtype=np.float32)
    made = parts.assemble(rows, clip=4.0)
    assert np.isnan(made[0]).all()
    assert np.isfinite(made[1]).all()


def test_mistakes_are_named() -> None:
    parts = Parts(dimension=2, blocks=TWO)
    with pytest.raises(ConfigError, match=r"privacy\.clip = 2 .* pair \(2\) and steps \(1\)"):
        parts.update_clip(2.0)
    with pytest.raises(MechanismError, match=r"must have shape \(K, 5\)"):
        parts.assemble(np.zeros((1, 2), np.float32), clip=4.0)
    with pytest.raises(MechanismError, match="0 numbers of examples"):
        Parts(dimension=2, weight_cap=3).assemble(np.zeros((1, 2), np.float32), clip=4.0)
    for shape, clip, scale in (((0,), 1.0, 1.0), ((), 0.0, 1.0), ((), 1.0, -1.0)):
        with pytest.raises(ConfigError, match="a block"):
            Block(shape=shape, clip=clip, scale=scale)
