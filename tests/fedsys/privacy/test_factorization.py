"""Matrix factorisation tables: their error, their sensitivity against brute force, their origin."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fedsys.errors import MechanismError
from fedsys.privacy.factorization import (
    banded_strategy,
    inverse_series,
    relative_error,
    sensitivity,
    tables,
)
from fedsys.privacy.tables.build import optimise


def test_the_design_point_holds() -> None:
    strategy = banded_strategy(horizon=100, bands=20)
    assert relative_error(strategy.coefficients, horizon=100) == pytest.approx(0.36, abs=0.005)


@pytest.mark.parametrize(("horizon", "bands"), [(16, 4), (64, 8), (200, 16), (1024, 32)])
def test_shipped_tables_are_what_the_script_computes(horizon: int, bands: int) -> None:
    shipped = np.array(tables()[horizon, bands])
    assert np.abs(shipped - np.array(optimise(horizon, bands))).max() <= 64  # of 2^20


def test_every_table_is_sound_and_better_with_more_bands() -> None:
    for (horizon, bands), numerators in tables().items():
        assert len(numerators) == bands
        assert numerators[0] == 1 << 20
        assert all(a >= b >= 0 for a, b in itertools.pairwise(numerators))
        if bands > 1:
            column = np.array(numerators) / 2**20
            fewer = np.array(tables()[horizon, 1]) / 2**20
            assert relative_error(column, horizon=horizon) < relative_error(fewer, horizon=horizon)


def test_relative_error_against_dense_matrices() -> None:
    strategy = banded_strategy(horizon=64, bands=8)
    c = strategy.coefficients
    dense = sum(np.diag([value] * (64 - j), -j) for j, value in enumerate(c))
    prefix = np.tril(np.ones((64, 64)))
    ours = np.linalg.norm(prefix @ np.linalg.inv(dense)) * np.linalg.norm(dense, axis=0).max()
    assert relative_error(c, horizon=64) == pytest.approx(float(ours / np.linalg.norm(prefix)))
    np.testing.assert_allclose(inverse_series(c, 64), np.linalg.inv(dense)[:, 0], atol=1e-12)


def _brute_force(c: np.ndarray, horizon: int, separation: int, participations: int) -> float:
    """Largest |C x| over all schedules and all signs: worst-case scalar updates of norm 1."""
    dense = np.zeros((horizon, horizon))
    for j, value in enumerate(c[:horizon]):
        dense += np.diag([value] * (horizon - j), -j)
    worst = 0.0
    for count in range(1, participations + 1):
        for rounds in itertools.combinations(range(horizon), count):
            if any(b - a < separation for a, b in itertools.pairwise(rounds)):
                continue
            for signs in itertools.product((1, -1), repeat=count - 1):
                column = dense[:, rounds] @ np.array((1, *signs))
                worst = max(worst, float(np.linalg.norm(column)))
    return worst


@pytest.mark.parametrize("separation", [1, 3, 4, 5])
@pytest.mark.parametrize("participations", [1, 2, 3])
def test_sensitivity_against_every_schedule(separation: int, participations: int) -> None:
    for c in (
        np.array([1.0, 0.5, 0.25]),
        np.array([1.0, 0.5, 0.375, 0.3125, 0.27, 0.25, 0.2, 0.2, 0.1, 0.1, 0.1, 0.05]),
        np.array([1.0]),
    ):
        stated = sensitivity(c, horizon=12, separation=separation, participations=participations)
        found = _brute_force(c, 12, separation, participations)
        assert found <= stated * (1 + 1e-12)
        if len(c) > separation or len(c) == 1:
            assert found == pytest.approx(stated)


def test_any_other_strategy_is_refused() -> None:
    for c in (np.array([1.0, -0.5, 0.1]), np.array([1.0, 0.2, 0.5])):
        with pytest.raises(MechanismError, match="of other matrices is not implemented"):
            sensitivity(c, horizon=10, separation=2, participations=2)
        banded = sensitivity(c, horizon=10, separation=3, participations=2)
        assert banded == pytest.approx(math.sqrt(2) * float(np.linalg.norm(c)))


def test_strategies_are_chosen_to_fit() -> None:
    assert banded_strategy(horizon=90, bands=21).horizon == 100
    assert banded_strategy(horizon=90, bands=21).bands == 20
    with pytest.raises(MechanismError, match="up to 4096 rounds, got rounds=5000"):
        banded_strategy(horizon=5000, bands=4)
