"""Adaptive clipping: the norm finds its quantile through the noisy, accounted vector alone."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import Any

import numpy as np
import pytest

from fedsys.errors import MechanismError
from fedsys.privacy import AdaptiveClipping, add_noise, default_bit_fraction, make_plan, to_ring


def _start(**changes: Any) -> AdaptiveClipping:
    parameters: dict[str, Any] = {"layers": (30, 10), "clip": 2.0, "bit_fraction": 0.1}
    return AdaptiveClipping.start(**parameters | changes)


@pytest.mark.parametrize("layers", [(40,), (30, 10), (10, 10, 10, 10)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_extended_vector_stays_within_the_rounds_norm(
    layers: tuple[int, ...], size: float
) -> None:
    adaptive = _start(layers=layers)
    updates = size * np.random.default_rng(0).standard_normal((50, 40))
    extended = adaptive.extend(updates)
    assert extended.shape == (50, 40 + len(layers))
    assert np.linalg.norm(extended, axis=1).max() <= adaptive.clip * (1 + 1e-6)
    assert adaptive.clip == pytest.approx(2.0)
    bits = extended[:, 40:]
    assert (np.abs(bits) == adaptive.weight).all()
    assert (bits > 0).all() if size < 1 else True
    assert (bits < 0).all() if size > 1 else True


def test_layers_are_clipped_each_to_its_norm() -> None:
    adaptive = _start()
    updates = np.ones((1, 40))
    updates[0, 30:] = 1e-4
    extended = adaptive.extend(updates)[0]
    assert np.linalg.norm(extended[:30]) == pytest.approx(adaptive.norms[0], rel=1e-6)
    np.testing.assert_array_equal(extended[30:40], updates[0, 30:])
    assert (extended[40], extended[41]) == (-adaptive.weight, adaptive.weight)


def test_norms_move_as_in_the_paper() -> None:
    adaptive = _start(learning_rate=0.3, quantile=0.4)
    moved = adaptive.updated(np.array([1.0, 0.1]))
    assert moved.norms[0] == pytest.approx(adaptive.norms[0] * math.exp(-0.3 * 0.6))
    assert moved.norms[1] == pytest.approx(adaptive.norms[1] * math.exp(0.3 * 0.3))
    assert moved.weight / moved.clip == pytest.approx(0.1)
    beyond = adaptive.updated(np.array([7.0, -3.0]))  # noise: a fraction is within [0, 1]
    assert beyond.norms == adaptive.updated(np.array([1.0, 0.0])).norms


def test_fractions_are_divided_by_expected_survivors() -> None:
    adaptive = _start(survival=0.8)
    extended = adaptive.extend(np.full((40, 40), 1e-6))  # 40 of 50 expected survive, all below
    mean, fractions = adaptive.split(extended.sum(axis=0) / 50)
    np.testing.assert_allclose(fractions, 1.0)
    assert mean.shape == (40,)


def test_the_norm_finds_the_quantile_through_noise() -> None:
    """The whole way: extended, encoded, noised, decoded; median of norms 3 from a start of 0.5."""
    rng = np.random.default_rng(1)
    adaptive = _start(
        layers=(40,), clip=0.5, learning_rate=0.3, bit_fraction=default_bit_fraction(0.6, 60)
    )
    plan = make_plan(
        mechanism="distributed-gaussian",
        population=1000,
        expected_cohort=60,
        rounds=60,
        dimension=adaptive.length,
        clip=adaptive.clip,
        delta=1e-5,
        noise_multiplier=0.6,
        dropout=0.0,
        adaptive_clip=True,
    )
    for _ in range(60):
        mechanism = plan.build_mechanism(clip=adaptive.clip)
        assert plan.covers(mechanism.event)
        updates = rng.standard_normal((60, 40))
        updates *= rng.lognormal(math.log(3), 0.3, 60)[:, None]
        updates /= np.linalg.norm(updates, axis=1).mean() / 3.1
        encoded = mechanism.encode(adaptive.extend(updates))
        bits = mechanism.modulus_bits
        values = add_noise(encoded.values, mechanism.noise_shares(60, os.urandom), bits=bits)
        total = to_ring(values.sum(axis=0, dtype=np.int64), bits=bits)
        total = add_noise(total, mechanism.top_up(60, os.urandom), bits=bits)
        _, fractions = adaptive.split(mechanism.decode(total))
        adaptive = adaptive.updated(fractions)
    assert 2.0 < adaptive.norms[0] < 4.2


def test_bad_rows_count_for_nothing() -> None:
    adaptive = _start()
    plan = make_plan(
        mechanism="distributed-gaussian",
        population=1000,
        expected_cohort=60,
        rounds=6,
        dimension=adaptive.length,
        clip=adaptive.clip,
        delta=1e-5,
        noise_multiplier=0.6,
    )
    updates = np.ones((2, 40), dtype=np.float32)
    updates[0, 35] = np.nan
    encoded = plan.build_mechanism().encode(adaptive.extend(updates))
    assert encoded.unusable.tolist() == [True, False]
    assert not encoded.values[0].any()


@pytest.mark.parametrize("layers", [(), (0,), (3, 0), (3, -3)])
def test_layers_without_coordinates_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(MechanismError, match="layer"):
        AdaptiveClipping.start(layers=layers, clip=1.0)


def test_state_survives_json_and_bad_states_are_refused() -> None:
    adaptive = _start().updated(np.array([0.2, 0.9]))
    body = json.loads(json.dumps(adaptive.to_json()))
    assert AdaptiveClipping.from_json(body) == adaptive
    states: tuple[dict[str, Any], ...] = (
        {},
        body | {"norms": [1.0]},
        body | {"norms": [1.0, -1.0]},
        body | {"quantile": 1.0},
        body | {"survival": 0.0},
        body | {"learning_rate": 1e9},
        body | {"bit_fraction": 0.9},
        body | {"surprise": 1},
    )
    for bad in states:
        with pytest.raises(MechanismError):
            AdaptiveClipping.from_json(bad)
    with pytest.raises(MechanismError, match="finite fractions"):
        adaptive.updated(np.array([np.nan, 0.5]))
    with pytest.raises(MechanismError, match="shape"):
        adaptive.split(np.zeros(3))
    assert dataclasses.replace(adaptive, quantile=0.9).quantile == 0.9
