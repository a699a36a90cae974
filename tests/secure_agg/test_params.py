"""Derived parameters: the figures of the design, the bounds behind them, what is refused."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_agg import SecAggParams
from secure_agg.errors import ParameterError


@pytest.mark.parametrize(
    ("n", "corrupt", "dropout", "degree", "threshold"),
    [
        (100, 0.1, 0.1, 42, 33),
        (1000, 0.1, 0.1, 52, 28),
        (1000, 0.2, 0.1, 76, 47),
        (1000, 0.1, 0.3, 102, 39),
        (10_000, 0.1, 0.1, 60, 32),
        (10_000, 0.2, 0.1, 90, 55),
        (10_000, 0.1, 0.3, 126, 49),
        (2, 0.0, 0.0, 1, 1),
        (3, 0.0, 0.0, 2, 2),
        (10, 0.2, 0.1, 9, 7),
    ],
)
def test_derived_values(
    n: int, corrupt: float, dropout: float, degree: int, threshold: int
) -> None:
    params = SecAggParams.derive(n=n, corrupt=corrupt, dropout=dropout)
    assert (params.degree, params.threshold) == (degree, threshold)
    assert 2 * params.quorum > n + params.colluders
    assert params.secrecy_bits >= 40
    assert SecAggParams.decode(params.encode()) == params


def exact_tail(population: int, marked: int, draws: int, values: range) -> Fraction:
    return sum(
        (
            Fraction(
                math.comb(marked, j) * math.comb(population - marked, draws - j),
                math.comb(population, draws),
            )
            for j in values
            if 0 <= j <= marked and 0 <= draws - j <= population - marked
        ),
        Fraction(0),
    )


@pytest.mark.parametrize("n", [60, 100, 333])
@pytest.mark.parametrize(("corrupt", "dropout"), [(0.05, 0.1), (0.1, 0.05), (0.2, 0.1)])
def test_bounds_hold_in_exact_arithmetic(n: int, corrupt: float, dropout: float) -> None:
    params = SecAggParams.derive(n=n, corrupt=corrupt, dropout=dropout, attempts=3)
    k, t, c = params.degree, params.threshold, params.colluders
    live = n - params.dropouts
    if params.complete:
        assert c < t <= live - c
        return
    few = n * exact_tail(n - 1, live, k, range(t))
    assert few <= Fraction(1, 2**30) * (1 + Fraction(1, 10**6))
    assert n * exact_tail(n - 1, live, k, range(t + 1)) > Fraction(1, 2**30) or t == k
    many = 3 * n * exact_tail(n - 1, c, k, range(t, k + 1))
    assert many <= Fraction(1, 2**41) * (1 + Fraction(1, 10**6))
    assert 3 * n * ((c + n - live) / n) ** (k / 2) <= 2.0**-41 * (1 + 1e-6)
    bits = -math.log2(float(many) + 3 * n * ((c + n - live) / n) ** (k / 2))
    assert params.secrecy_bits == pytest.approx(bits, rel=1e-6)


@settings(deadline=None)
@given(st.integers(2, 1500), st.floats(0, 0.3), st.floats(0, 0.3))
def test_whatever_is_derived_is_secure(n: int, corrupt: float, dropout: float) -> None:
    try:
        params = SecAggParams.derive(n=n, corrupt=corrupt, dropout=dropout)
    except ParameterError as error:
        assert "invite more or assume less" in str(error)  # noqa: PT017
        return
    assert params.secrecy_bits >= 40
    assert params.colluders >= corrupt * n - 1e-6
    assert params.min_alive <= (1 - dropout) * n + 1e-6
    assert params.quorum <= params.min_alive
    assert params.threshold <= params.degree
    if params.complete:
        assert params.colluders < params.threshold < params.min_alive


@pytest.mark.parametrize(
    ("n", "corrupt", "dropout", "reason"),
    [
        (2, 0.1, 0.0, "no threshold above 1 colluders"),
        (2, 0.0, 0.1, "1 live members are below the quorum of 2"),
        (10, 0.5, 0.3, "7 live members are below the quorum of 8"),
        (4, 0.25, 0.25, "no threshold above 1 colluders|below the quorum"),
        (1, 0.0, 0.0, "n is 1"),
        (10, 1.0, 0.0, "corrupt is 1.0"),
        (10, 0.0, -0.1, "dropout is -0.1"),
        (70_000, 0.0, 0.1, "n is 70000"),
    ],
)
def test_what_cannot_be_derived(n: int, corrupt: float, dropout: float, reason: str) -> None:
    if (n, corrupt) == (4, 0.25):
        assert SecAggParams.derive(n=n, corrupt=corrupt, dropout=dropout).threshold == 2
        return
    with pytest.raises(ParameterError, match=reason):
        SecAggParams.derive(n=n, corrupt=corrupt, dropout=dropout)


GOOD = SecAggParams.derive(n=20, corrupt=0.1, dropout=0.1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 1), ("n", 65_536), ("degree", 0), ("degree", 17), ("degree", 20), ("threshold", 0),
        ("threshold", 20), ("quorum", 0), ("quorum", 21), ("min_alive", 1), ("colluders", -1),
        ("dropouts", 20), ("modulus_bits", 0), ("modulus_bits", 65), ("attempts", 0),
        ("attempts", 17), ("n", True), ("threshold", 2.0),
    ],
)  # fmt: skip
def test_raw_values_that_cannot_work(field: str, value: int) -> None:
    with pytest.raises(ParameterError, match=field):
        dataclasses.replace(GOOD, **{field: value})


def test_secrecy_is_nothing_where_a_bound_is_broken() -> None:
    assert GOOD.secrecy_bits == math.inf
    for field, value in (("threshold", 2), ("quorum", 11), ("min_alive", 2)):
        broken = dataclasses.replace(GOOD, **{field: value})
        assert broken.secrecy_bits == 0
    sparse = dataclasses.replace(GOOD, degree=4, threshold=3)
    assert 0 <= sparse.secrecy_bits < 10


def test_attempts_cost_bits() -> None:
    one = SecAggParams.derive(n=200, corrupt=0.1, dropout=0.1, attempts=1)
    many = SecAggParams.derive(n=200, corrupt=0.1, dropout=0.1, attempts=16)
    assert many.degree > one.degree
    assert dataclasses.replace(one, attempts=16).secrecy_bits == pytest.approx(
        one.secrecy_bits - 4, abs=1e-6
    )


def test_what_was_derived_is_kept() -> None:
    one = SecAggParams.derive(n=444, corrupt=0.13, dropout=0.17)
    assert one is SecAggParams.derive(n=444, corrupt=0.13, dropout=0.17)


@pytest.mark.parametrize("data", [b"", bytes(29), bytes(31), bytes(30)])
def test_decoding_is_strict(data: bytes) -> None:
    with pytest.raises(ParameterError):
        SecAggParams.decode(data)
