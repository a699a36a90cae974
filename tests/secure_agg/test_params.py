"""Derived parameters: the design's figures, the bounds behind them, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom, norm

from secure_agg.errors import ParameterError
from secure_agg.params import (
    MARGIN,
    MAX_COHORT,
    MAX_LOG_Q,
    PARAMS_SIZE,
    Committee,
    SecAggParams,
    choose_committee,
    cohort_colluders,
)


def derive(n: int = 100, corrupt: float = 0.1, dropout: float = 0.1, **more: Any) -> SecAggParams:
    return SecAggParams.derive(
        **{
            "n": n,
            "corrupt": corrupt,
            "dropout": dropout,
            "modulus_bits": 20,
            "dimension": 1000,
            **more,
        }
    )


def up(params: SecAggParams) -> int:
    """Bytes of shares and proof that a member sends."""
    return params.committee * params.share_bytes + params.proof_bytes


def row(params: SecAggParams) -> tuple[int, ...]:
    p = params
    return p.committee, p.colluders, p.quorum, p.threshold, p.packing, up(p)


@pytest.mark.parametrize(
    ("n", "corrupt", "dropout", "size", "expected"),
    [
        (100, 0.1, 0.1, None, (100, 10, 56, 69, 59, 11_304)),
        (100, 0.2, 0.3, None, (100, 20, 61, 30, 10, 44_680)),
        (1000, 0.1, 0.1, None, (160, 64, 113, 89, 25, 32_784)),
        # At 300 the tail of 2^-104 assumes all 30 colluders in the committee, where 2^-40 would
        # assume 27 of them in a committee of 100.
        (300, 0.1, 0.1, None, (100, 30, 66, 55, 25, 20_480)),
        # A committee of 180 would take 4 kB less up at 1,000 members, and be delivered 370 kB for
        # an average member, where one of 160 is delivered 300 kB.
        (1000, 0.1, 0.1, 180, (180, 67, 124, 102, 35, 28_632)),
        (10_000, 0.1, 0.1, None, (190, 80, 136, 105, 25, 38_920)),
    ],
)
def test_committees(
    n: int, corrupt: float, dropout: float, size: int | None, expected: tuple[int, ...]
) -> None:
    assert row(derive(n, corrupt, dropout, committee=size)) == expected


@pytest.mark.parametrize(
    ("n", "expected"),
    [(4, (4, 1, 3, 3, 2)), (5, (5, 1, 4, 2, 1)), (10, (10, 1, 6, 7, 6)), (50, (50, 5, 28, 35, 30))],
)
def test_small_fleets_are_served(n: int, expected: tuple[int, ...]) -> None:
    assert row(derive(n))[:5] == expected


def test_correction_is_given_up_before_a_fleet_is_refused() -> None:
    assert derive(4).errors == 0
    assert derive(5).errors == 1
    assert derive(100).errors == 10
    assert 0 < derive(100, corrupt=0.3).errors < 30


@pytest.mark.parametrize("n", [2, 3])
def test_tiny_fleets_name_the_explicit_choices(n: int) -> None:
    with pytest.raises(ParameterError) as caught:
        derive(n)
    message = str(caught.value)
    assert f"n={n}" in message
    assert "corrupt=0.1" in message
    assert "corrupt = 0" in message
    assert "dropout = 0" in message
    assert "\n" not in message
    assert derive(n, corrupt=0, dropout=0).committee == n


def test_three_silos_have_two_choices() -> None:
    trusting = derive(3, corrupt=0)
    assert (trusting.colluders, trusting.needed, trusting.losses_if_colluders_answer) == (0, 2, 1)
    complete = derive(3, dropout=0)
    assert (complete.colluders, complete.needed) == (1, 3)


@pytest.mark.parametrize(
    ("n", "corrupt", "dropout", "why"),
    [
        (100, 0.5, 0.3, "below the quorum"),
        (100, 0.99, 0.0, "two are honest"),
        (10_000, 0.2, 0.3, "below the quorum"),
        (2, 0.0, 0.1, "below the quorum"),
        (2, 0.1, 0.0, "two are honest"),
    ],
)
def test_what_cannot_be_met_is_named(n: int, corrupt: float, dropout: float, why: str) -> None:
    with pytest.raises(ParameterError, match=why) as caught:
        derive(n, corrupt, dropout)
    assert f"n={n}" in str(caught.value)
    assert f"corrupt={corrupt}" in str(caught.value)


def test_an_absolute_number_of_colluders() -> None:
    assert cohort_colluders(n=100, corrupt=0.1, colluders=25) == 25
    assert cohort_colluders(n=100, corrupt=0.1, colluders=5) == 10
    assert cohort_colluders(n=100, corrupt=0.1, colluders=5000) == 98
    assert derive(100, colluders=25).colluders == 25
    assert derive(1000, colluders=200).colluders > derive(1000).colluders
    with pytest.raises(ParameterError, match="colluders=5000"):
        derive(1000, colluders=5000)


def test_a_fraction_means_whole_members() -> None:
    assert cohort_colluders(n=30, corrupt=0.1) == 3  # 0.1 * 30 is 3.0000000000000004
    assert cohort_colluders(n=31, corrupt=0.1) == 4
    assert choose_committee(n=30, corrupt=0.1, dropout=0.1).live == 27


def test_a_sum_has_two_honest_inputs() -> None:
    assert derive(100).min_included == 90
    assert derive(100, colluders=95, dropout=0).min_included == 100
    assert derive(100, min_included=12).min_included == 12
    with pytest.raises(ParameterError, match="min_included is 11: it must be from 12 to 100"):
        derive(100, min_included=11)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    n=st.integers(2, MAX_COHORT),
    corrupt=st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.2, 0.3]),
    dropout=st.sampled_from([0.0, 0.05, 0.1, 0.3]),
    bits=st.sampled_from([2, 8, 16, 20, 24, 32, 39]),
    suite=st.sampled_from([1, 2]),
)
def test_what_is_derived_keeps_its_promises(
    n: int, corrupt: float, dropout: float, bits: int, suite: int
) -> None:
    """Against scipy's floating-point tails, which are good to a thousandth here."""
    try:
        p = derive(n, corrupt, dropout, modulus_bits=bits, suite=suite)
    except ParameterError:
        event("refused")
        return
    bad = cohort_colluders(n=n, corrupt=corrupt)
    stay = math.floor((1 - dropout) * n + 1e-9)
    assert 2 * p.quorum > p.committee + p.colluders
    assert p.tau >= max(p.colluders, 1)
    assert n > 100 or p.committee == n
    assert p.colluders <= bad
    if p.colluders < min(bad, p.committee):
        assert hypergeom.logsf(p.colluders, n, bad, p.committee) / math.log(2) < -103.99
    assert p.needed + 2 * p.errors <= p.committee or p.errors == 0 or p.quorum >= p.threshold
    too_few = max(p.needed, p.threshold + 2 * p.errors) - 1
    if p.committee < n:
        assert hypergeom.cdf(too_few, n, stay, p.committee) < 2.0**-29.99
    else:
        assert stay > too_few
    assert p.columns * p.packing >= 2048 > p.columns * (p.packing - 1)
    assert p.log_q <= MAX_LOG_Q
    assert SecAggParams.decode(p.encode()) == p
    assert derive(n, corrupt, dropout, modulus_bits=bits, suite=suite) is p


def test_both_views_of_liveness() -> None:
    p = derive(100)
    assert p.needed == 69
    assert p.losses_if_colluders_answer == 31
    assert p.losses_if_colluders_refuse == 21
    assert p.losses_if_colluders_lie == 100 - (69 + 2 * 10)
    assert derive(1000).losses_if_colluders_refuse < 0


def test_a_planner_gets_the_committee_alone() -> None:
    p = derive(1000)
    committee = choose_committee(n=1000, corrupt=0.1, dropout=0.1)
    assert committee == Committee(
        size=160, colluders=64, live=121, quorum=113, threshold=89, packing=25, errors=16
    )
    assert committee.needed == p.needed == 113
    assert choose_committee(n=50, corrupt=0.1, dropout=0.1).size == 50


@pytest.mark.parametrize(
    ("n", "bits", "ring", "wire"),
    [
        # values a coefficient, log2 q, dropped bits, scale bits; wire bytes a value
        (100, 16, (2, 42, 2, 10), 2.5),
        (1000, 16, (2, 44, 4, 12), 2.5),
        (10_000, 16, (2, 46, 0, 14), 3.0),
        (100, 20, (2, 50, 2, 10), 3.0),
        (1000, 20, (2, 52, 4, 12), 3.0),
        (3000, 20, (2, 53, 0, 13), 3.5),
        (10_000, 20, (1, 34, 2, 14), 4.0),
        (1000, 24, (1, 36, 4, 12), 4.0),
        (100, 32, (1, 42, 2, 10), 5.0),
        (1000, 32, (1, 44, 4, 12), 5.0),
        (10_000, 32, (1, 46, 0, 14), 6.0),
        (1000, 8, (5, 52, 4, 12), 1.2),
    ],
)
def test_rings(n: int, bits: int, ring: tuple[int, ...], wire: float) -> None:
    p = derive(n, modulus_bits=bits, dimension=2048 * 210)
    assert (p.values_per_coefficient, p.log_q, p.dropped_bits, p.scale_bits) == ring
    assert p.ciphertext_bytes / p.dimension == pytest.approx(wire, rel=0.02)
    assert sum(p.planes) * 8 >= p.wire_bits


def test_twenty_packed_bits_go_unpacked_near_nine_thousand() -> None:
    assert derive(9000).values_per_coefficient == 2
    assert derive(9500).values_per_coefficient == 1


def test_a_ring_that_does_not_exist() -> None:
    with pytest.raises(ParameterError, match="modulus_bits=40, n=10000"):
        derive(10_000, modulus_bits=40)


def test_noise_stays_in_its_field() -> None:
    for n in (2, 10, 1000, 10_000):
        p = derive(n, corrupt=0, dropout=0)
        assert p.noise_limit(n) == MARGIN * p.noise_sigma(n) <= 2 ** (p.scale_bits - 1)
        assert p.noise_sigma(n) >= 4.4999 * math.sqrt(n)
    assert 2 * norm.sf(MARGIN) < 2.0**-68.6
    assert 2 * math.exp(-(MARGIN**2) / 2) < 2.0**-64


def test_sizes() -> None:
    p = derive(100, dimension=5001)
    assert p.coefficients_used == 2501
    assert (p.polynomials, p.coefficients) == (2, 4096)
    assert p.planes == (4, 2)
    assert p.ciphertext_bytes == 6 * 4096
    assert p.share_bytes == 2 * (p.columns + 8) + 16
    assert p.upload_bytes == p.ciphertext_bytes + 100 * p.share_bytes + 16 * p.threshold
    assert derive(100, suite=2).share_bytes == p.share_bytes + 1088


def test_security() -> None:
    p = derive(1000)
    assert p.security.core_svp == 109.5
    assert p.security_by_theorem.core_svp == 106.6


GOOD = derive(100)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n": 1}, "n is 1"),
        ({"n": 10_001}, "n is 10001"),
        ({"n": 100.0}, "an integer"),
        ({"n": True}, "an integer"),
        ({"dimension": 0}, "dimension is 0"),
        ({"modulus_bits": 41}, "modulus_bits is 41"),
        ({"committee": 101}, "committee is 101"),
        ({"quorum": 55}, "could endorse two sets"),
        ({"quorum": 101}, "quorum is 101"),
        ({"colluders": 11}, "would reveal secrets"),
        ({"threshold": 68}, "would reveal secrets"),
        ({"threshold": 101}, "threshold is 101"),
        ({"packing": 60}, "would reveal secrets"),
        ({"packing": 0}, "packing is 0"),
        ({"errors": 16}, "errors is 16"),
        ({"min_included": 1}, "min_included is 1"),
        ({"log_q": 49}, "log_q is 49"),
        ({"log_q": 54}, "log_q is 54"),
        ({"values_per_coefficient": 3}, "take 70"),
        ({"scale_bits": 9}, "noise of 100 ciphertexts"),
        ({"dropped_bits": 5}, "noise of 100 ciphertexts"),
        ({"dropped_bits": 11}, "dropped_bits is 11"),
        ({"suite": 3}, "suite is 3"),
        ({"suite": 0}, "suite is 0"),
    ],
)
def test_unsafe_values_cannot_be_constructed(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        dataclasses.replace(GOOD, **change)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n": "100"}, "n is '100'"),
        ({"corrupt": 1.0}, "corrupt is 1.0"),
        ({"corrupt": float("nan")}, "corrupt is nan"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": True}, "dropout is True"),
        ({"modulus_bits": 1}, "modulus_bits is 1"),
        ({"dimension": 2**31}, "dimension is"),
        ({"committee": 1}, "committee is 1"),
        ({"committee": 101}, "committee is 101"),
        ({"colluders": -1}, "colluders is -1"),
        ({"suite": 3}, "suite is 3"),
    ],
)
def test_bad_arguments(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        derive(**change)


def test_encoding_is_strict() -> None:
    data = GOOD.encode()
    assert len(data) == PARAMS_SIZE
    assert SecAggParams.decode(data) == GOOD
    for bad in (b"", data[:-1], data + b"\0"):
        with pytest.raises(ParameterError, match=f"take {PARAMS_SIZE} bytes"):
            SecAggParams.decode(bad)
    with pytest.raises(ParameterError, match="n is 0"):
        SecAggParams.decode(bytes(PARAMS_SIZE))


def test_every_field_is_encoded() -> None:
    seen = {GOOD.encode()}
    changes = {
        "n": 101,
        "dimension": 1001,
        "modulus_bits": 19,
        "committee": 99,
        "colluders": 9,
        "quorum": 57,
        "threshold": 70,
        "packing": 58,
        "errors": 9,
        "min_included": 91,
        "values_per_coefficient": 1,
        "log_q": 51,
        "dropped_bits": 1,
        "scale_bits": 10,
        "suite": 2,
    }
    assert set(changes) == {field.name for field in dataclasses.fields(GOOD)}
    changes["log_q"] = 53
    for name, value in changes.items():
        if name == "scale_bits":
            other = dataclasses.replace(GOOD, scale_bits=11, log_q=53)
            assert other.encode() != dataclasses.replace(GOOD, log_q=53).encode()
            continue
        other = dataclasses.replace(GOOD, **{name: value})
        assert other.encode() not in seen
        seen.add(other.encode())
