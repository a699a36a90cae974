"""Sums in a recorded epoch equal those of the host's encoder, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from client.privatize import recorded
from client.privatize.floats import clipped_sum_of
from client.privatize.integers import add_clipped_integers
from client.privatize.recorded import FloatSum, IntegerSum
from fedsys.privacy.encoding.clipping import clip_to_integers, wide_scale
from fedsys.privacy.encoding.float_sums import FixedPoint


def updates(count: int, dimension: int, seed: int = 1) -> Tensor:
    """Rows of norms from far below 1 to far above, one of them near zero."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn((count, dimension), generator=generator)
    rows *= torch.logspace(-3, 3, count)[:, None] / dimension**0.5
    rows[0] *= 1e-30
    return rows


def present(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)


@pytest.mark.parametrize(("count", "dimension"), [(1, 7), (23, 50), (40, 3001), (3, 100_000)])
@pytest.mark.parametrize("tile", [1 << 24, 999])
@pytest.mark.parametrize("clip", [0.05, 1.0, 100.0])
def test_integers_are_the_hosts(
    count: int, dimension: int, tile: int, clip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "_TILE", tile)
    rows = updates(count, dimension)
    if count > 2:
        rows[1, 3] = torch.nan
        rows[2, 0] = -torch.inf
    expected = torch.zeros(dimension, dtype=torch.float64)
    seen = add_clipped_integers(expected, rows.clone(), clip=clip)
    found = IntegerSum(clip).bind(rows, present(count))
    for _ in range(2):
        found()
        if found.left.any():
            found.settle()
        assert torch.equal(found.total, expected.to(torch.int64))
    assert (found.clipped.numpy() == seen.clipped).all()
    assert (found.unusable.numpy() == seen.unusable).all()


def test_integers_are_the_references_of_the_privacy_package() -> None:
    rows = updates(30, 400, seed=2)
    expected = clip_to_integers(rows.numpy(), clip=0.3).values.sum(0, dtype=np.int64)
    found = IntegerSum(0.3).bind(rows, present(30))
    found()
    assert not found.left.any()
    np.testing.assert_array_equal(found.total.numpy(), expected)


@pytest.mark.parametrize("scale", [1e-39, 1.0, 5e37])
def test_norms_are_rounded_as_the_reference_does(scale: float) -> None:
    """Of a clipping norm that is exactly the rounded norm, so that any other rounding shows."""
    generator = torch.Generator().manual_seed(3)
    for row in torch.randn((12, 1, 1000), generator=generator) * scale:
        norm = float(clip_to_integers(row.numpy(), clip=1.0).norms[0])
        expected = clip_to_integers(row.numpy(), clip=norm)
        found = IntegerSum(norm).bind(row, present(1))
        found()
        assert found.clipped.numpy() == expected.clipped
        np.testing.assert_array_equal(found.total.numpy(), expected.values[0])


def test_rows_that_one_shrinking_does_not_repair_are_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one dimension rounding can undo the shrinking: such a row is left, then settled."""
    rows = torch.full((4, 1), 5.0)
    rows[1] = 0.2
    expected = torch.zeros(1, dtype=torch.float64)
    monkeypatch.setattr(recorded, "squared_norm_limit", lambda dimension: 3000)
    monkeypatch.setattr("client.privatize.integers.squared_norm_limit", lambda dimension: 3000)
    # 64^2 = 4096 is over the limit made up here; once shrunk, 54.66 becomes 55, and 3025 > 3000.
    add_clipped_integers(expected, rows.clone(), clip=1.0)
    found = IntegerSum(1.0).bind(rows, present(4))
    found()
    assert found.left.tolist() == [True, False, True, True]
    assert found.total.tolist() == [13]
    found.settle()
    assert torch.equal(found.total, expected.to(torch.int64))


@pytest.mark.parametrize("kind", [IntegerSum, FloatSum])
def test_rows_that_are_not_there_add_nothing(kind: type[IntegerSum] | type[FloatSum]) -> None:
    rows = updates(8, 60)
    rows[5:] = torch.nan
    there = present(8)
    there[4:] = False
    found = kind(0.5).bind(rows, there)
    found()
    # Of the same shape: a float sum's order, and so its last bits, may follow from the shape.
    zeros = updates(8, 60)
    zeros[4:] = 0.0
    expected = kind(0.5).bind(zeros, present(8))
    expected()
    assert expected.total.any().item() is True
    assert torch.equal(found.total, expected.total)
    assert torch.equal(found.flags, expected.flags)


@pytest.mark.parametrize("clip", [1e-6, 0.5])
def test_a_finite_update_counts_however_large_it_is(clip: float) -> None:
    """In both float sums, also where squares overflow, and where the norm itself does."""
    rows = torch.zeros((6, 4))
    rows[0], rows[1], rows[2], rows[3] = 1e-9, 1e18, -1e20, 3e38
    rows[4, 0], rows[5, 0] = torch.inf, torch.nan
    rows[2, 0] = 0
    wide = rows[:4].numpy().astype(np.float64)
    factors = np.minimum(1.0, clip / np.linalg.norm(wide, axis=1))
    expected = factors @ wide
    found = FloatSum(clip).bind(rows.clone(), present(6))
    found()
    units = FixedPoint(wide_scale(4, clip)).units
    np.testing.assert_allclose(found.total.numpy() / units, expected, rtol=1e-5)
    assert found.clipped.tolist() == [False, True, True, True, False, False]
    assert found.unusable.tolist() == [False] * 4 + [True] * 2
    summed, norms = clipped_sum_of(rows.clone(), clip)
    np.testing.assert_allclose(summed.numpy(), expected, rtol=1e-5)
    rounded = (summed.to(torch.float64) * units).round()
    assert torch.equal(found.total, rounded.to(torch.int64)), "to the bit"
    assert (norms > clip).tolist() == found.clipped.tolist()
    assert (~torch.isfinite(norms)).tolist() == found.unusable.tolist()
