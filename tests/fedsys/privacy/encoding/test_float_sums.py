"""Sums in floating point: their sensitivity, their events, one draw of noise."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsys.errors import MechanismError
from fedsys.privacy import AesCtrStream, PrivacyPlan, event_from_json, make_plan
from fedsys.privacy.encoding.clipping import wide_scale
from fedsys.privacy.encoding.float_sums import FixedPoint, encoded_norm
from fedsys.privacy.encoding.rings import from_ring

FLOATS = st.floats(-1.0, 1.0, width=32)


def plan(mechanism: str, encoding: str, **more: object) -> PrivacyPlan:
    arguments = {
        "population": 1000,
        "expected_cohort": 50,
        "rounds": 20,
        "dimension": 256,
        "clip": 0.5,
        "delta": 1e-5,
    }
    if mechanism != "none":
        arguments["noise_multiplier"] = 1.0
    return make_plan(mechanism=mechanism, encoding=encoding, **{**arguments, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("mechanism", ["distributed-gaussian", "central-gaussian"])
def test_a_float_sum_is_accounted_with_the_larger_sensitivity(mechanism: str) -> None:
    wide, rounded = plan(mechanism, "wide").event(), plan(mechanism, "float").event()
    norm = 64 * math.sqrt(256)
    assert wide.l2 == norm
    assert rounded.l2 == norm * (1 + 1e-4) + math.sqrt(256)
    assert event_from_json(rounded.to_json()) == rounded
    assert rounded.to_json()["encoding"] == "float"


@pytest.mark.parametrize("mechanism", ["local-gaussian", "banded-mf", "example-gaussian"])
def test_mechanisms_of_single_clients_refuse_float(mechanism: str) -> None:
    with pytest.raises(MechanismError, match=r"noise=.once. is for"):
        plan(mechanism, "float")


def test_a_float_sum_has_no_shares() -> None:
    with pytest.raises(MechanismError, match="no noise shares"):
        plan("distributed-gaussian", "float", noise="per-client")


@pytest.mark.parametrize("encoding", ["wide", "float"])
def test_one_draw_has_the_whole_variance_whoever_survived(encoding: str) -> None:
    job = plan("distributed-gaussian", encoding, noise="once", dimension=1 << 15)
    mechanism = job.build_mechanism()
    assert not mechanism.noise_shares(3, AesCtrStream(bytes(32))).any()
    variance = job.event().total_variance
    for survivors in (1, job.cap):
        drawn = mechanism.top_up(survivors, AesCtrStream(bytes([survivors]) * 32))
        # 2^15 draws: the variance's relative deviation is sqrt(2 / 2^15) = .0078; 5 of them
        assert abs(float(np.mean(drawn.astype(float) ** 2)) / variance - 1) < 5 * 0.0079
    with pytest.raises(MechanismError, match="survivors"):
        mechanism.top_up(job.cap + 1, AesCtrStream(bytes(32)))


@settings(max_examples=50, deadline=None)
@given(
    parts=st.lists(st.lists(FLOATS, min_size=5, max_size=5), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_partial_sums_give_the_same_bits_in_any_order(
    parts: list[list[float]], order: object
) -> None:
    scale = wide_scale(5, 1.0)
    one, other = np.zeros(5, np.int64), np.zeros(5, np.int64)
    point = FixedPoint(scale)
    for part in parts:
        point.add(one, np.array(part))
    shuffled = list(parts)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    for part in shuffled:
        point.add(other, np.array(part))
    assert (one == other).all()
    found = from_ring(point.round(one, bits=32), bits=32)
    for coordinate in range(5):
        exact = sum(Fraction(part[coordinate]) for part in parts) * Fraction(scale)
        assert abs(found[coordinate] - exact) <= Fraction(1, 2) + Fraction(len(parts), 1 << 20)


def test_rounding_moves_a_neighbour_by_no_more_than_the_stated_norm() -> None:
    rng = np.random.default_rng(7)
    dimension, clip = 400, 0.3
    point = FixedPoint(wide_scale(dimension, clip))
    bound = encoded_norm(dimension, "float")
    for _ in range(50):
        rest = rng.normal(size=dimension)
        update = rng.normal(size=dimension)
        update *= clip / np.linalg.norm(update)
        sums = []
        for total in (rest, rest + update):
            integers = np.zeros(dimension, np.int64)
            point.add(integers, total)
            sums.append(from_ring(point.round(integers, bits=40), bits=40))
        assert np.linalg.norm((sums[1] - sums[0]).astype(float)) <= bound


def test_partial_sums_add_up_in_any_order_beyond_the_integers_of_float64() -> None:
    """Cohorts of large models reach 2^53 units."""
    parts = [np.array([part]) for part in (2.0**33, 2.0**-20, 2.0**-20, 2.0**33)]
    totals = []
    for order in (parts, parts[::-1], parts[1:] + parts[:1]):
        total = np.zeros(1, dtype=np.int64)
        for part in order:
            FixedPoint(1.0).add(total, part)
        totals.append(int(total[0]))
    assert totals == [(1 << 54) + 2] * 3
