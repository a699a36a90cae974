"""The torch encoder equals the numpy reference to the bit, whatever it is fed."""

from __future__ import annotations

import os
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.privatize import integers, privatize
from client.privatize.integers import add_clipped_integers
from fedsys.errors import MechanismError
from fedsys.privacy import build_mechanism
from fedsys.privacy.encoding.clipping import clip_to_integers, squared_norm_limit

Updates = NDArray[np.float32]


def agree(updates: Updates, clip: float) -> None:
    """Row by row, as a CPU adds short rows, and in tiles."""
    expected = clip_to_integers(updates, clip=clip)
    for longest in (updates.shape[1], 0):
        total = torch.zeros(updates.shape[1], dtype=torch.float64)
        with mock.patch.object(integers, "_HOST_ROW", longest):
            found = add_clipped_integers(total, torch.from_numpy(updates.copy()), clip=clip)
        np.testing.assert_array_equal(total.numpy(), expected.values.sum(axis=0))
        np.testing.assert_array_equal(found.clipped, expected.clipped)
        np.testing.assert_array_equal(found.unusable, expected.unusable)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    clients=st.integers(1, 9),
    dimension=st.integers(1, 700),
    scale=st.sampled_from([1e-44, 1e-38, 1e-30, 1e-3, 0.1, 1.0, 1e4, 1e30, 5e37]),
    clip=st.sampled_from([1e-3, 0.3, 1.0, 50.0]),
    spoiled=st.sampled_from([None, np.nan, np.inf, -np.inf]),
    sparse=st.booleans(),
)
def test_any_updates(
    seed: int,
    clients: int,
    dimension: int,
    scale: float,
    clip: float,
    spoiled: float | None,
    sparse: bool,
) -> None:
    rng = np.random.default_rng(seed)
    updates = (rng.normal(size=(clients, dimension)) * scale).astype(np.float32)
    if sparse:
        updates[:, rng.random(dimension) < 0.95] = 0.0
    if spoiled is not None:
        updates[rng.integers(clients), rng.integers(dimension)] = spoiled
    agree(updates, clip)


@pytest.mark.parametrize("scale", [1e-39, 1.0, 5e37])
def test_norms_are_rounded_in_the_whole_range_of_float32(scale: float) -> None:
    """Of a clipping norm that is exactly the rounded norm, so that any other rounding shows."""
    rng = np.random.default_rng(5)
    for row in (rng.standard_normal((12, 1000)) * scale).astype(np.float32):
        norm = float(clip_to_integers(row[None], clip=1.0).norms[0])
        agree(row[None], norm)


@pytest.mark.parametrize("dimension", [(1 << 16) - 1, 1 << 16, (1 << 16) + 1, 200_003])
@pytest.mark.parametrize("clip", [1.0, 1e3])
def test_updates_wider_than_a_tile(dimension: int, clip: float) -> None:
    rng = np.random.default_rng(dimension)
    updates = rng.normal(size=(3, dimension)).astype(np.float32)
    updates[1, 5] = np.nan
    agree(updates, clip)


def test_each_row_keeps_the_norm_that_accounting_needs() -> None:
    rng = np.random.default_rng(3)
    dimension = 5000
    for row in rng.normal(size=(20, dimension)).astype(np.float32):
        total = torch.zeros(dimension, dtype=torch.float64)
        add_clipped_integers(total, torch.from_numpy(row[None]), clip=0.5)
        assert float(total @ total) <= squared_norm_limit(dimension)


@pytest.mark.parametrize("longest", [0, 300])
def test_a_row_that_rounding_cannot_fit_is_truncated(
    monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    """The last resort is never needed in practice, so both sides lose their four passes here."""
    monkeypatch.setattr(integers, "_HOST_ROW", longest)
    monkeypatch.setattr(integers, "_PASSES", 0)
    monkeypatch.setattr("fedsys.privacy.encoding.clipping._PASSES", 0)
    rng = np.random.default_rng(11)
    row = rng.normal(size=(2, 300)).astype(np.float32)
    row[1] *= 1e-4
    total = torch.zeros(300, dtype=torch.float64)
    add_clipped_integers(total, torch.from_numpy(row.copy()), clip=1.0)
    np.testing.assert_array_equal(total.numpy(), clip_to_integers(row, clip=1.0).values.sum(axis=0))


def test_no_clients_add_nothing() -> None:
    total = torch.zeros(4, dtype=torch.float64)
    found = add_clipped_integers(total, torch.zeros(0, 4), clip=1.0)
    assert not total.any()
    assert not len(found.clipped)


@pytest.mark.parametrize(
    ("total", "updates"),
    [
        (torch.zeros(3, dtype=torch.float64), torch.zeros(2, 4)),
        (torch.zeros(4), torch.zeros(2, 4)),
        (torch.zeros(4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)),
        (torch.zeros(4, dtype=torch.float64), torch.zeros(4)),
    ],
)
def test_what_does_not_fit_is_refused(total: torch.Tensor, updates: torch.Tensor) -> None:
    with pytest.raises(MechanismError, match="float"):
        add_clipped_integers(total, updates, clip=1.0)


def test_privatized_vectors_sum_to_the_fused_sum() -> None:
    mechanism = build_mechanism(
        "none",
        dimension=50,
        clip=1.0,
        noise_multiplier=0.0,
        expected_cohort=5,
        population=10,
        cap=10,
        min_survivors=1,
        modulus_bits=32,
    )
    updates = np.random.default_rng(0).normal(size=(5, 50)).astype(np.float32)
    vectors = privatize(mechanism, updates, seed=b"", entropy=os.urandom).values
    total = torch.zeros(50, dtype=torch.float64)
    add_clipped_integers(total, torch.from_numpy(updates), clip=1.0)
    summed = vectors.sum(axis=0, dtype=np.uint32).view(np.int32)
    np.testing.assert_array_equal(summed, total.numpy())
