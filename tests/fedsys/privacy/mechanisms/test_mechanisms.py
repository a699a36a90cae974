"""One contract for every mechanism: sums come out right, and the noise tells nothing."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg, stats

from fedsys.errors import MechanismError
from fedsys.privacy import AesCtrStream, Mechanism, add_noise, build_mechanism, ring_dtype, to_ring
from fedsys.privacy.encoding.clipping import clip_to_integers
from fedsys.privacy.encoding.hadamard import hadamard_transform
from fedsys.privacy.events import MECHANISMS
from fedsys.privacy.mechanisms import CorrelatedNoise
from fedsys.privacy.mechanisms.narrow import round_at_random

D = 3000
CAP = 24
FALSE_ALARM = 1e-7
SEED = b"job 1 round 7"

CASES: dict[str, dict[str, Any]] = {
    "shares wide": {"name": "distributed-gaussian"},
    "shares 16 bits": {"name": "distributed-gaussian", "encoding": "narrow", "modulus_bits": 16},
    "shares 18 bits": {"name": "distributed-gaussian", "encoding": "narrow", "modulus_bits": 18},
    "shares for the server": {
        "name": "distributed-gaussian",
        "guarantee": "server",
        "colluders": 2,
        "min_survivors": 7,
    },
    "simulated": {"name": "distributed-gaussian", "noise": "once"},
    "central": {"name": "central-gaussian"},
    "central 16 bits": {"name": "central-gaussian", "encoding": "narrow", "modulus_bits": 16},
    "local": {"name": "local-gaussian", "noise_multiplier": 0.3},
    "local 16 bits": {
        "name": "local-gaussian",
        "noise_multiplier": 0.3,
        "encoding": "narrow",
        "modulus_bits": 16,
    },
    "banded": {
        "name": "banded-mf",
        "sampling": "min-separation",
        "min_separation": 8,
        "horizon": 64,
    },
    "example": {"name": "example-gaussian", "example_rate": 0.1, "steps": 3},
    "none": {"name": "none"},
}
NOISY = [case for case in CASES if case not in ("example", "none")]


def _build(case: str, **changes: Any) -> Mechanism:
    parameters: dict[str, Any] = {
        "dimension": D,
        "clip": 2.0,
        "noise_multiplier": 1.0,
        "expected_cohort": 15.0,
        "population": 300,
        "cap": CAP,
        "min_survivors": 3,
    }
    parameters |= CASES[case] | changes
    return build_mechanism(parameters.pop("name"), **parameters)


def _stream(number: int) -> AesCtrStream:
    return AesCtrStream(number.to_bytes(32, "big"))


def _updates(count: int, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)
    rows *= np.linspace(0.2, 1.9, count)[:, None] / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def _round(mechanism: Mechanism, updates: NDArray[Any], number: int) -> NDArray[np.float64]:
    """The whole way of a sum: encode, share, add mod 2^b, top up, decode."""
    count, bits = len(updates), mechanism.modulus_bits
    encoded = mechanism.encode(updates, seed=SEED, entropy=_stream(number))
    shares = mechanism.noise_shares(count, [_stream(1000 * number + k) for k in range(count)])
    sent = add_noise(encoded.values, shares, bits=bits)
    total = np.zeros(mechanism.length, dtype=sent.dtype)
    for row in sent:
        total = add_noise(total, row.astype(np.int64), bits=bits)
    total = add_noise(total, mechanism.top_up(count, _stream(7000 + number)), bits=bits)
    return mechanism.decode(total, seed=SEED)


@pytest.mark.parametrize("case", CASES)
def test_the_mean_comes_out_with_the_stated_noise(case: str) -> None:
    mechanism = _build(case)
    updates = _updates(12)
    error = _round(mechanism, updates, 1) - updates.sum(axis=0, dtype=np.float64) / 15.0
    rounding = 0.02 * 2.0 / math.sqrt(D)
    assert abs(error.mean()) < 6 * (mechanism.noise_deviation + rounding) / math.sqrt(D)
    if case in NOISY and case != "banded":
        assert error.std() == pytest.approx(mechanism.noise_deviation, rel=0.08)
    else:
        assert error.std() < mechanism.noise_deviation + rounding


@pytest.mark.parametrize("case", [case for case in NOISY if case != "banded"])
def test_the_noise_does_not_tell_how_many_took_part(case: str) -> None:
    """The same variance and distribution for every number of survivors, chi-square at 1e-7."""
    mechanism = _build(case)
    nothing = np.zeros(mechanism.length, dtype=np.int64)
    deviation = math.sqrt(mechanism.event.total_variance)
    edges = stats.norm.ppf(np.linspace(0.02, 0.98, 49)) * deviation
    for survivors in (1, 3, 10, 23, CAP):
        noise = np.concatenate(
            [
                nothing
                + mechanism.noise_shares(survivors, _stream(100 * survivors + k)).sum(axis=0)
                + mechanism.top_up(survivors, _stream(100 * survivors + 50 + k))
                for k in range(4)
            ]
        )
        counts = np.bincount(np.searchsorted(edges, noise), minlength=50)
        expected = noise.size * np.diff(np.concatenate(([0.0], np.linspace(0.02, 0.98, 49), [1.0])))
        assert stats.chisquare(counts, expected).pvalue > FALSE_ALARM


@pytest.mark.parametrize("case", NOISY)
def test_variances_add_up_to_the_constant(case: str) -> None:
    event = _build(case).event
    share, total = event.share_variance, event.total_variance
    unit = (event.noise_multiplier * event.l2) ** 2
    if case == "shares for the server":
        assert share == pytest.approx(unit / (7 - 2))
        assert total == pytest.approx(CAP * share)
    elif case.startswith("shares") or case == "simulated":
        assert total == pytest.approx(unit)
        assert share == pytest.approx(unit / CAP)
    elif case.startswith("local"):
        assert share == pytest.approx(unit)
        assert total == pytest.approx(CAP * unit)
    elif case.startswith("central"):
        assert share == 0.0
        assert total == pytest.approx(unit)
    else:
        assert total >= unit  # correlated noise: the last round's is the largest


@pytest.mark.parametrize("case", CASES)
def test_bad_updates_become_zeros_and_good_ones_stay(case: str) -> None:
    mechanism = _build(case)
    updates = _updates(3)
    updates[1, 5] = np.nan
    encoded = mechanism.encode(updates, seed=SEED, entropy=_stream(1))
    assert encoded.unusable.tolist() == [False, True, False]
    assert not encoded.values[1].any()
    assert encoded.values[0].any()
    infinite = np.full((1, D), np.inf, dtype=np.float32)
    assert not mechanism.encode(infinite, seed=SEED, entropy=_stream(1)).values.any()


@pytest.mark.parametrize("case", CASES)
def test_the_encoded_norm_is_within_the_events_sensitivity(case: str) -> None:
    from fedsys.privacy import from_ring

    mechanism = _build(case)
    updates = _updates(6) * np.array([[1e-6], [1.0], [1.05], [3.0], [1e6], [0.0]], dtype=np.float32)
    encoded = mechanism.encode(updates, seed=SEED, entropy=_stream(2))
    norms = np.linalg.norm(from_ring(encoded.values, bits=mechanism.modulus_bits), axis=1)
    l2 = mechanism.event.l2
    assert (norms <= l2).all()
    assert norms[3] == pytest.approx(l2, rel=0.02)
    assert encoded.clipped.tolist() == [bool(n > 2.0) for n in np.linalg.norm(updates, axis=1)]


@pytest.mark.parametrize("case", CASES)
def test_a_row_of_noise_depends_on_its_own_source(case: str) -> None:
    mechanism = _build(case)
    together = mechanism.noise_shares(4, [_stream(k) for k in range(4)])
    alone = mechanism.noise_shares(1, [_stream(2)])
    np.testing.assert_array_equal(together[2], alone[0])


@pytest.mark.parametrize("case", CASES)
def test_noise_in_place_is_the_same_noise(case: str) -> None:
    """Added to vectors mod 2^b or summed, in place: what `noise_shares` returns as an array."""
    mechanism = _build(case)
    shares = mechanism.noise_shares(3, [_stream(k) for k in range(3)])
    bits = mechanism.modulus_bits
    vectors = np.full(shares.shape, 5, dtype=ring_dtype(bits))
    expected = add_noise(vectors.copy(), shares, bits=bits)
    mechanism.add_shares(vectors, [_stream(k) for k in range(3)])
    np.testing.assert_array_equal(vectors, expected)
    total = np.arange(mechanism.length)
    mechanism.add_share_sum(total, 3, [_stream(k) for k in range(3)])
    np.testing.assert_array_equal(total, np.arange(mechanism.length) + shares.sum(axis=0))


@pytest.mark.parametrize("case", CASES)
def test_cohorts_above_the_cap_and_foreign_shapes_are_refused(case: str) -> None:
    mechanism = _build(case)
    for survivors in (0, -1, CAP + 1):
        with pytest.raises(MechanismError, match="survivors"):
            mechanism.top_up(survivors, os.urandom)
    with pytest.raises(MechanismError, match="shape"):
        mechanism.decode(np.zeros(mechanism.length + 1, dtype=np.uint32), seed=SEED)
    with pytest.raises(MechanismError, match="shape"):
        mechanism.encode(np.zeros((2, D + 1)), seed=SEED)
    with pytest.raises(MechanismError, match="float"):
        mechanism.encode(np.zeros((2, D), dtype=np.int32), seed=SEED)


def test_sums_wrap_nowhere_at_the_caps_extreme() -> None:
    """All clients at full norm in one direction, the worst case that the ring is checked for."""
    mechanism = _build("shares wide")
    one = np.zeros((CAP, D), dtype=np.float32)
    one[:, 3] = 2.0
    mean = _round(mechanism, one, 3)
    assert mean[3] == pytest.approx(CAP * 2.0 / 15.0, rel=0.1)


def test_narrow_rounding_is_unbiased_and_obeys_its_limit() -> None:
    values = np.array([0.25, -0.75, 3.5, 0.0, -2.0], dtype=np.float32)
    rows = np.repeat(values[None], 4000, axis=0)
    draws = round_at_random(rows.copy(), 1e9, [_stream(k) for k in range(4000)])
    assert draws.dtype == np.int32
    np.testing.assert_allclose(draws.mean(axis=0), values, atol=6 * 0.5 / math.sqrt(4000))
    assert set(np.unique(draws[:, 3])) == {0}
    assert set(np.unique(draws[:, 0])) == {0, 1}
    halves = np.full((200, 40), 0.5, dtype=np.float32)
    for rounded in round_at_random(halves, 20.0, [_stream(k) for k in range(200)]):
        assert rounded @ rounded <= 20
    # a limit that cannot be met by chance: truncation towards zero
    ones = np.full((1, 4000), 0.999, dtype=np.float32)
    assert not round_at_random(ones, 1.0, [_stream(1)]).any()


def test_narrow_rounding_of_large_values_does_not_wrap() -> None:
    """2^16 in units of 2^-16 does not fit into 32 bits: a wrapped norm would pass for a small."""
    rows = np.array([[65536.25, -65536.5, 0.0, 1.0]], dtype=np.float32)
    rounded = round_at_random(rows.copy(), 1e10, [_stream(1)])[0]
    assert np.abs(rounded - rows[0]).max() < 1
    assert not round_at_random(rows.copy(), 4.0, [_stream(1)])[0].any()


def test_narrow_rows_depend_on_their_own_entropy_alone() -> None:
    """So that clients encode alike in whatever chunks they come."""
    mechanism = _build("shares 16 bits")
    updates = _updates(7)
    together = mechanism.encode(updates, seed=b"a", entropy=[_stream(k) for k in range(7)]).values
    for k in range(7):
        alone = mechanism.encode(updates[k : k + 1], seed=b"a", entropy=[_stream(k)]).values[0]
        np.testing.assert_array_equal(alone, together[k])
    other = mechanism.encode(updates, seed=b"a", entropy=[_stream(k + 1) for k in range(7)]).values
    assert (other != together).any(axis=1).all()
    with pytest.raises(MechanismError, match="7 clients need one entropy source or 7, got 2"):
        mechanism.encode(updates, seed=b"a", entropy=[_stream(1), _stream(2)])


@pytest.mark.parametrize("width", [1, 2, 8, 32, 512])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_transform_is_hadamards(width: int, kind: type[np.float64]) -> None:
    matrix = linalg.hadamard(width)
    rows = np.random.default_rng(1).integers(-99, 99, (3, width)).astype(kind)
    np.testing.assert_array_equal(hadamard_transform(rows.copy()), rows @ matrix)


def test_narrow_encoding_needs_the_rounds_seed_and_its_own() -> None:
    mechanism = _build("shares 16 bits")
    with pytest.raises(MechanismError, match="seed"):
        mechanism.encode(_updates(1))
    encoded = mechanism.encode(_updates(1), seed=b"a", entropy=_stream(1)).values[0]
    right = mechanism.decode(encoded, seed=b"a")
    wrong = mechanism.decode(encoded, seed=b"b")
    truth = _updates(1)[0]
    assert np.linalg.norm(right * 15 - truth) < 0.2 * np.linalg.norm(truth)
    assert np.linalg.norm(wrong * 15 - truth) > 0.9 * np.linalg.norm(truth)


def test_secret_randomness_is_not_shared_between_calls() -> None:
    mechanism = _build("shares wide")
    first = mechanism.noise_shares(2, os.urandom)
    assert not np.array_equal(first, mechanism.noise_shares(2, os.urandom))
    assert not np.array_equal(first[0], first[1])


def _banded() -> Any:
    return _build("banded")


class TestBanded:
    def test_noise_is_the_strategys_inverse_applied_to_white_noise(self) -> None:
        """Dense check: C n is white, up to the rounding of each release."""
        event = _banded().event
        noise = CorrelatedNoise(event)
        rounds = [noise.top_up(5, _stream(k)) for k in range(20)]
        numerators = event.factors.numerators
        matrix = np.zeros((20, 20))
        for j, numerator in enumerate(numerators):
            matrix += np.diag([numerator / 2**20] * (20 - j), -j)
        white = matrix @ np.stack(rounds)
        deviation = event.white_deviation
        assert white.std() == pytest.approx(deviation, rel=0.01)
        correlation = np.asarray(np.corrcoef(white)) - np.eye(20)
        assert np.abs(correlation).max() < 6 / math.sqrt(D)
        plain = np.asarray(np.corrcoef(np.stack(rounds))) - np.eye(20)
        assert np.abs(plain).max() > 0.2  # the releases themselves are correlated

    def test_prefix_sums_are_much_less_noisy_than_independent_noise(self) -> None:
        mechanism = _build("banded")
        independent = _build("central")
        ours = np.cumsum([mechanism.top_up(5, _stream(k)) for k in range(64)], axis=0)
        theirs = np.cumsum([independent.top_up(5, _stream(k)) for k in range(64)], axis=0)
        assert np.sqrt((ours**2).mean()) < 0.6 * np.sqrt((theirs.astype(float) ** 2).mean())

    def test_state_survives_a_restart(self) -> None:
        first, second = _build("banded"), _build("banded")
        for k in range(11):
            first.top_up(5, _stream(k))
        second.restore(first.state_bytes())
        second.skip_to(11, os.urandom)  # already there: nothing is drawn
        np.testing.assert_array_equal(first.top_up(5, _stream(77)), second.top_up(5, _stream(77)))

    def test_foreign_and_damaged_states_are_refused(self) -> None:
        mechanism, other = _build("banded"), _build("banded", dimension=D + 1)
        mechanism.top_up(5, _stream(1))
        state = mechanism.state_bytes()
        for damaged in (b"", state[:-1], state + b"\0", b"x" + state):
            with pytest.raises(MechanismError, match="state"):
                mechanism.restore(damaged)
        with pytest.raises(MechanismError, match="another model"):
            other.restore(state)

    def test_lost_rounds_keep_their_position(self) -> None:
        """Noise of rounds that released nothing is drawn all the same: seven skipped, then one."""
        whole, skipping = _build("banded"), _build("banded")
        streams = [AesCtrStream(bytes(32)) for _ in range(2)]
        for _ in range(7):
            whole.top_up(5, streams[0])
        skipping.skip_to(7, streams[1])
        np.testing.assert_array_equal(whole.top_up(5, _stream(9)), skipping.top_up(5, _stream(9)))

    def test_independent_noise_remembers_nothing(self) -> None:
        mechanism, state = _build("central"), _build("banded").state_bytes()
        assert mechanism.state_bytes() == b""
        mechanism.restore(b"")
        mechanism.skip_to(1000, os.urandom)
        with pytest.raises(MechanismError, match="independent"):
            mechanism.restore(state)

    def test_the_horizon_ends_the_job(self) -> None:
        mechanism = _build("banded", horizon=8)
        for k in range(8):
            mechanism.top_up(5, _stream(k))
        with pytest.raises(MechanismError, match="planned for 8 rounds"):
            mechanism.top_up(5, _stream(9))


def test_ring_too_small_is_refused_with_the_bits_that_would_do() -> None:
    with pytest.raises(MechanismError, match=r"modulus_bits=16 is too small.*needs \d+ bits"):
        _build("shares wide", modulus_bits=16)
    with pytest.raises(MechanismError, match="from 2 to 20"):
        _build("shares 16 bits", modulus_bits=24)
    with pytest.raises(MechanismError, match="overflows"):
        _build("shares 16 bits", modulus_bits=3)


@pytest.mark.parametrize("case", CASES)
def test_hosts_are_told_what_they_need_to_know(case: str) -> None:
    """What a mechanism says of itself is what it does."""
    mechanism = _build(case)
    assert mechanism.adds_shares == bool(mechanism.noise_shares(1, _stream(1)).any())
    encoded = mechanism.encode(_updates(1), seed=b"a", entropy=_stream(1)).values
    again = mechanism.encode(_updates(1), seed=b"b", entropy=_stream(1)).values
    assert mechanism.rotates == bool((encoded != again).any())
    if mechanism.sums_integers:
        integers = clip_to_integers(_updates(1), clip=2.0).values
        np.testing.assert_array_equal(encoded, to_ring(integers, bits=mechanism.modulus_bits))
    else:
        assert mechanism.rotates
    one, other = mechanism.top_up(1, _stream(3)), mechanism.top_up(CAP, _stream(3))
    assert not mechanism.draws_ahead or np.array_equal(one, other)


def test_every_mechanism_is_covered_here() -> None:
    assert {parameters["name"] for parameters in CASES.values()} == set(MECHANISMS)


def test_events_carry_what_the_encoder_does() -> None:
    event = _build("shares 16 bits").event
    assert event.length == 4096
    assert event.l2 >= event.scale * event.clip
