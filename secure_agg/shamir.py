"""Shamir's sharing over GF(2^16), all secrets of a dealer at once.

Shamir, "How to Share a Secret" (Communications of the ACM, 1979).

A secret of 2s bytes is s field elements (little endian), each the constant term of a polynomial of
degree t - 1. The holder in place i, from 0, gets the values at the point i + 1.

>>> shares = split(b"sixteen bytes...", 5, 3, os.urandom)
>>> combine({0: shares[0], 4: shares[4], 2: shares[2]}, 3)
b'sixteen bytes...'
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Final

import numpy as np

from secure_agg.errors import ParameterError, ShareError, ThresholdNotMet
from secure_agg.gf65536 import Elements, invert, log_tables, matmul, multiply
from secure_agg.roster import Entropy

__all__ = ["MAX_SHARES", "combine", "correctable", "decode", "split"]

MAX_SHARES: Final = 65_535


@functools.lru_cache(maxsize=64)
def _powers(count: int, threshold: int) -> Elements:
    """Return point^j for the points 1..count and j = 1..threshold-1; shape (count, t-1)."""
    log, exp = log_tables()
    points = log[np.arange(1, count + 1)].astype(np.int64)
    return exp.take(points[:, None] * np.arange(1, threshold) % 65_535)


def split(secret: bytes, count: int, threshold: int, entropy: Entropy = os.urandom) -> list[bytes]:
    """Deal ``count`` shares, any ``threshold`` of which determine ``secret``.

    Args:
        secret: An even number of bytes, at least two.
        count: Holders, 1 to 65 535.
        threshold: 1 to ``count``.
        entropy: Asked once, for ``(threshold - 1) * len(secret)`` bytes.

    Returns:
        ``count`` shares, each as long as the secret.

    Raises:
        ParameterError: On arguments out of range.
    """
    if not secret or len(secret) % 2:
        raise ParameterError(f"a secret of {len(secret)} bytes cannot be shared: an even number")
    if not 1 <= threshold <= count <= MAX_SHARES:
        raise ParameterError(
            f"threshold {threshold} of {count} shares: 1 <= threshold <= count <= {MAX_SHARES}"
        )
    constant = np.frombuffer(secret, "<u2")
    randomness = entropy((threshold - 1) * len(secret))
    coefficients = np.frombuffer(randomness, "<u2").reshape(threshold - 1, len(constant))
    if threshold == 1:
        return [secret] * count
    rows = matmul(_powers(count, threshold), coefficients.astype(np.uint16))
    rows ^= constant
    data = rows.astype("<u2", copy=False).tobytes()
    size = len(secret)
    return [data[i * size : (i + 1) * size] for i in range(count)]


@functools.lru_cache(maxsize=1024)
def _weights(places: tuple[int, ...], at: int) -> Elements:
    """Return Lagrange's weights for the value at the point ``at``; shape (1, t)."""
    log, exp = log_tables()
    x = np.array(places, np.uint16) + np.uint16(1)
    own = np.equal.outer(x, x)
    below = log[np.where(own, 1, np.bitwise_xor.outer(x, x))].sum(axis=1, dtype=np.int64)
    from_at = x ^ np.uint16(at)
    if not from_at.all():
        return np.asarray(from_at[None] == 0, np.uint16)
    logs = log[from_at].astype(np.int64)
    return np.asarray(exp[(logs.sum() - logs - below) % 65_535][None])


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Reconstruct a secret from the first ``threshold`` of the given shares, by place.

    Nothing tells whether the result is right but what it is compared to: check it against a hash
    or a public key.

    Raises:
        ParameterError: On a threshold below one.
        ThresholdNotMet: On fewer shares than the threshold.
        ShareError: On a place outside the field or shares of different or odd lengths.
    """
    _check(shares, threshold)
    places = tuple(sorted(shares)[:threshold])
    return _interpolate(shares, places, 0)


def _interpolate(shares: Mapping[int, bytes], places: tuple[int, ...], at: int) -> bytes:
    values = np.frombuffer(b"".join(shares[p] for p in places), "<u2").reshape(len(places), -1)
    value = matmul(_weights(places, at), values.astype(np.uint16, copy=False))
    return value.astype("<u2", copy=False).tobytes()


def correctable(count: int, threshold: int) -> int:
    """Return how many wrong shares among ``count`` `decode` corrects: floor((count - t) / 2)."""
    return max(0, (count - threshold) // 2)


def decode(shares: Mapping[int, bytes], threshold: int) -> tuple[bytes, frozenset[int]]:
    """Reconstruct a secret although some shares are wrong (Berlekamp and Welch, 1986).

    Shares are the code words of a Reed-Solomon code: with m of them and threshold t, up to
    floor((m - t) / 2) wrong ones are found and left out.

    Returns:
        The secret and the places whose shares are wrong.

    Raises:
        ParameterError: On a threshold below one.
        ThresholdNotMet: On fewer shares than the threshold.
        ShareError: When no polynomial of degree t - 1 is that near, or malformed shares.
    """
    _check(shares, threshold)
    places = tuple(sorted(shares))
    allowed = correctable(len(places), threshold)
    wrong: set[int] = set()
    for column in range(len(shares[places[0]]) // 2):
        good = tuple(p for p in places if p not in wrong)
        symbol = {p: shares[p][2 * column : 2 * column + 2] for p in good}
        wrong |= _locate(symbol, threshold, allowed - len(wrong))
        if len(wrong) > allowed:
            raise ShareError(f"more than {allowed} of {len(places)} shares are wrong")
    good = tuple(p for p in places if p not in wrong)
    return _interpolate(shares, good[:threshold], 0), frozenset(wrong)


def _locate(shares: Mapping[int, bytes], threshold: int, allowed: int) -> set[int]:
    """Return the places of one symbol's errors, of which there may be ``allowed``."""
    places = tuple(sorted(shares))
    y = np.frombuffer(b"".join(shares[p] for p in places), "<u2").astype(np.uint16)
    errors = min(allowed, correctable(len(places), threshold))
    # Q(x) = y E(x), deg Q < t + e, E monic of degree e: one linear equation for each share.
    width = threshold + errors
    powers = np.concatenate(
        (np.ones((len(places), 1), np.uint16), _powers(places[-1] + 1, width + 1)[list(places)]),
        axis=1,
    )
    system = np.concatenate(
        (
            powers[:, :width],
            multiply(powers[:, :errors], y[:, None]),
            multiply(powers[:, errors], y)[:, None],
        ),
        axis=1,
    )
    solution = _solve(system)
    if solution is None:
        raise ShareError(f"more than {errors} of {len(places)} shares are wrong")
    numerator, locator = solution[:width], np.append(solution[width:], np.uint16(1))
    bad = set()
    at = matmul(powers[:, : errors + 1], locator[:, None])[:, 0]
    value = matmul(powers[:, :width], numerator[:, None])[:, 0]
    # Where E is not zero, Q / E is the polynomial's value; E's zeros hold every error.
    good = [p for p, zero in zip(places, at == 0, strict=True) if not zero]
    if len(good) < threshold or not np.array_equal(value, multiply(at, y)):
        raise ShareError(f"more than {errors} of {len(places)} shares are wrong")
    chosen = tuple(good[:threshold])
    weights = np.concatenate([_weights(chosen, p + 1) for p in places])
    known = y[[places.index(p) for p in chosen]]
    expected = matmul(weights, known[:, None])[:, 0]
    bad = {p for p, same in zip(places, expected == y, strict=True) if not same}
    if len(bad) > errors:
        raise ShareError(f"more than {errors} of {len(places)} shares are wrong")
    return bad


def _solve(augmented: Elements) -> Elements | None:
    """Return one solution of the linear system (free unknowns zero), or None."""
    rows = augmented.copy()
    unknowns = rows.shape[1] - 1
    pivots: list[int] = []
    for column in range(unknowns):
        rank = len(pivots)
        candidates = np.flatnonzero(rows[rank:, column])
        if not len(candidates):
            continue
        pivot = rank + int(candidates[0])
        rows[[rank, pivot]] = rows[[pivot, rank]]
        rows[rank] = multiply(rows[rank], invert(rows[rank, column]))
        factors = rows[:, column].copy()
        factors[rank] = 0
        rows ^= multiply(factors[:, None], rows[rank][None])
        pivots.append(column)
        if len(pivots) == len(rows):
            break
    if rows[len(pivots) :, -1].any():
        return None
    solution = np.zeros(unknowns, np.uint16)
    solution[pivots] = rows[: len(pivots), -1]
    return solution


def _check(shares: Mapping[int, bytes], threshold: int) -> None:
    if threshold < 1:
        raise ParameterError(f"threshold is {threshold}: at least 1 is needed")
    if len(shares) < threshold:
        raise ThresholdNotMet(f"{len(shares)} shares are below the threshold of {threshold}")
    sizes = {len(share) for share in shares.values()}
    if len(sizes) != 1 or sizes == {0} or next(iter(sizes)) % 2:
        raise ShareError(f"shares of {sorted(sizes)} bytes: one even length is needed")
    if min(shares) < 0 or max(shares) >= MAX_SHARES:
        raise ShareError(f"a share's place is outside 0 to {MAX_SHARES - 1}")
