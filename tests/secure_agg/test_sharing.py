"""Packed sharing, its proof, and decoding with errors; field and streams below them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from secure_agg.decoding import decode
from secure_agg.errors import DecodingError
from secure_agg.field import (
    PRIME,
    _tables,
    centred,
    interpolation,
    invert,
    matmul,
    power,
    residues,
    solve,
)
from secure_agg.gaussian import Keystream
from secure_agg.sharing import (
    CHECKS,
    challenge,
    consistent,
    evaluation,
    join,
    prove,
    secret_points,
    share,
    split,
)
from secure_agg.streams import derive, uniform

SHAPES = [(5, 2, 1), (10, 6, 5), (40, 23, 16), (120, 70, 30), (180, 102, 35)]


def test_products_are_exact_at_the_extremes() -> None:
    """Centred residues of 32,760 throughout, and the largest inner dimension that is used."""
    for value in (PRIME // 2, PRIME // 2 + 1):
        left = np.full((3, 1000), value)
        right = np.full((1000, 2), value)
        assert (matmul(left, right) == value * value * 1000 % PRIME).all()
    dice = np.random.default_rng(0)
    a, b = dice.integers(0, PRIME, (7, 900)), dice.integers(0, PRIME, (900, 5))
    exact = (a.astype(object) @ b.astype(object)) % PRIME
    assert (matmul(a, b) == exact).all()
    assert np.abs(centred(np.arange(PRIME))).max() == PRIME // 2


def test_reduction_is_exact_up_to_its_bound() -> None:
    """Where the quotient is nearest to a half, for multiples of the prime up to 2^50."""
    multiples = np.unique(np.geomspace(1, 2**50 // PRIME - 1, 2000).astype(np.int64)) * PRIME
    multiples = np.concatenate((-multiples, [0], multiples))
    for offset in (-(PRIME // 2), -1, 0, 1, PRIME // 2):
        assert (centred(multiples + offset) == offset).all()
        assert (residues(multiples + offset) == offset % PRIME).all()


def test_inverses_powers_and_systems() -> None:
    values = np.arange(1, PRIME, 97)
    assert (values * invert(values) % PRIME == 1).all()
    assert power(3, 20).tolist() == pow(3, 20, PRIME)
    dice = np.random.default_rng(1)
    matrix, x = dice.integers(0, PRIME, (12, 9)), dice.integers(0, PRIME, 9)
    assert solve(matrix, matmul(matrix, x[:, None])[:, 0]).tolist() == x.tolist()
    matrix[:, 3] = 0
    right = matmul(matrix, x[:, None])[:, 0]
    assert (matmul(matrix, solve(matrix, right)[:, None])[:, 0] == right).all()
    with pytest.raises(DecodingError):
        solve(np.zeros((2, 2), np.int64), np.array([0, 1]))


def test_interpolation_is_lagrange() -> None:
    dice = np.random.default_rng(2)
    coefficients = dice.integers(0, PRIME, 6).tolist()

    def at(x: int) -> int:
        return int(sum(c * pow(x % PRIME, k, PRIME) for k, c in enumerate(coefficients)) % PRIME)

    points, targets = [1, 2, -5, 9, 100, 65520 - 7], [-1, 0, 2, 55]
    got = matmul(interpolation(points, targets), np.array([[at(x)] for x in points]))[:, 0]
    assert got.tolist() == [at(x) for x in targets]


def test_logarithms_are_those_of_all_elements() -> None:
    logarithms, powers = _tables()
    assert sorted(powers.tolist()) == list(range(1, PRIME))
    assert (powers[logarithms[1:]] == np.arange(1, PRIME)).all()
    assert powers[:3].tolist() == [1, 17, 17**2]


def test_elements_are_uniform() -> None:
    """Chi-squared of 65,521 cells; refused with chance below 1e-9 (normal approximation)."""
    found = uniform(Keystream(bytes(32)), 2_000_000)
    assert found.min() == 0
    assert found.max() == PRIME - 1
    counts = np.bincount(found, minlength=PRIME)
    expected = len(found) / PRIME
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - (PRIME - 1)) < 6 * (2 * (PRIME - 1)) ** 0.5
    assert uniform(Keystream(bytes(32)), 5).tolist() == found[:5].tolist()
    assert derive(bytes(32), "a") != derive(bytes(32), "b")


@pytest.mark.parametrize(("committee", "threshold", "packing"), SHAPES)
def test_shares_determine_the_secret_and_pass_the_test(
    committee: int, threshold: int, packing: int
) -> None:
    dice = np.random.default_rng(committee)
    secret = dice.integers(-60, 61, 2048)
    shares = share(
        secret, committee=committee, threshold=threshold, packing=packing, seed=bytes(32)
    )
    columns = split(secret, packing).shape[1]
    assert shares.shape == (committee, columns + CHECKS)
    chosen = np.sort(dice.choice(committee, threshold, replace=False))
    matrix = interpolation(chosen + 1, secret_points(packing))
    assert join(matmul(matrix, shares[chosen, :columns]), 2048).tolist() == secret.tolist()
    coefficients = challenge(bytes(32), columns)
    proof = prove(shares, coefficients, threshold)
    for member in (0, committee - 1):
        row = centred(evaluation(committee, threshold)[member])
        batch = np.stack([shares[member]] * 300).astype(np.uint16)
        batch[7, 3] ^= 1
        batch[299, -1] ^= 1
        good = consistent(
            batch,
            np.stack([coefficients] * 300).astype(np.uint16),
            np.stack([proof] * 300).astype(np.uint16),
            row,
        )
        assert np.flatnonzero(~good).tolist() == [7, 299]


def test_few_shares_say_nothing() -> None:
    """Perfect secrecy, by counting: tau shares are a bijection of the randomness.

    For every choice of tau members, the map from the drawn values to their shares is invertible,
    so that uniform randomness makes the shares uniform for every secret.
    """
    committee, threshold, packing = 7, 5, 3
    tau = threshold - packing
    points = np.concatenate((secret_points(packing), np.arange(1, tau + 1)))
    everybody = interpolation(points, np.arange(1, committee + 1))
    for members in itertools.combinations(range(committee), tau):
        random = everybody[list(members), packing:]
        for unit in np.eye(tau, dtype=np.int64):
            x = solve(random, unit)
            assert (matmul(random, x[:, None])[:, 0] == unit).all()
    more = everybody[[3, 4, 5], packing:]
    unit = np.array([0, 0, 1])
    with pytest.raises(DecodingError):  # one share more, and a combination of them is a secret's
        solve(more, unit)


def test_the_proof_hides_the_secret() -> None:
    """With fresh masks the proof of one fixed secret is uniform: chi-squared in 64 cells."""
    found = []
    for count in range(400):
        shares = share(
            np.full(12, 7),
            committee=6,
            threshold=4,
            packing=3,
            seed=count.to_bytes(32, "little"),
        )
        found.append(prove(shares, challenge(bytes(32), 4), 4))
    counts = np.bincount(np.concatenate(found).ravel() * 64 // PRIME, minlength=64)
    expected = counts.sum() / 64
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < 63 + 7 * (2 * 63) ** 0.5


@pytest.mark.parametrize(("committee", "threshold", "packing"), SHAPES)
def test_errors_up_to_half_the_redundancy_are_found(
    committee: int, threshold: int, packing: int
) -> None:
    dice = np.random.default_rng(threshold)
    secret = dice.integers(-900, 901, 2048)
    shares = share(
        secret, committee=committee, threshold=threshold, packing=packing, seed=bytes(32)
    )
    columns = split(secret, packing).shape[1]
    for absent in (0, (committee - threshold) // 3):
        rows = np.sort(dice.choice(committee, committee - absent, replace=False))
        answers = shares[rows, :columns].copy()
        most = (len(rows) - threshold) // 2
        wrong = np.sort(dice.choice(len(rows), most, replace=False))
        for row in wrong:  # in one column, or in all
            where = slice(None) if row % 2 else slice(columns - 1, None)
            answers[row, where] = (answers[row, where] + 1 + row) % PRIME
        found, liars = decode(
            rows + 1, answers, threshold=threshold, packing=packing, coins=bytes(32)
        )
        assert join(found, 2048).tolist() == secret.tolist()
        assert list(liars) == wrong.tolist()
        spare = np.setdiff1d(np.arange(len(rows)), wrong)
        bent = spare[: most + 2]
        answers[bent] = dice.integers(0, PRIME, (len(bent), columns))
        with pytest.raises(DecodingError):
            decode(rows + 1, answers, threshold=threshold, packing=packing, coins=bytes(32))
    with pytest.raises(DecodingError, match="answers: "):
        decode(
            np.arange(1, threshold),
            shares[: threshold - 1, :columns],
            threshold=threshold,
            packing=packing,
            coins=bytes(32),
        )
