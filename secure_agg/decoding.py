"""Interleaved Reed-Solomon decoding: the sum of secrets from the committee's answers, and liars.

The honest answers are the values of K polynomials of degree below t at the members' points, one
polynomial a column. A member that lies is wrong in one row, whichever columns it falsified, so that
one random combination of the columns has errors in exactly the liars' rows except with chance
1/65,521 each; Berlekamp and Welch (US patent 4,633,470, 1986) find up to floor((rows - t) / 2) of
them, and the columns are then compared row by row, so that chance never decides the result.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from secure_agg.errors import DecodingError
from secure_agg.field import PRIME, Elements, interpolation, matmul, power, solve
from secure_agg.gaussian import Keystream
from secure_agg.sharing import secret_points
from secure_agg.streams import uniform

__all__ = ["agree", "decode"]

_ATTEMPTS = 4


def decode(
    points: npt.ArrayLike, answers: Elements, *, threshold: int, packing: int, coins: bytes
) -> tuple[Elements, tuple[int, ...]]:
    """Recover what a polynomial of degree below ``threshold`` hides at the secret points.

    Args:
        points: Distinct evaluation points of the rows, shape (r,), r >= threshold.
        answers: Shape (r, columns).
        threshold: t.
        packing: Secrets a column, rho.
        coins: 32 bytes from which the random combinations are drawn; public, but not known to the
            members when they answer.

    Returns:
        The secrets, shape (packing, columns), and the indices of the wrong rows, increasing.

    Raises:
        DecodingError: More rows are wrong than floor((r - t) / 2), or there are too few rows.
    """
    xs = np.asarray(points, np.int64)
    rows = len(xs)
    if rows < threshold:
        raise DecodingError(f"{rows} answers: {threshold} are needed")
    everybody = np.arange(rows)
    targets = secret_points(packing)
    first, _, wrong = _compare(xs, answers, everybody, threshold)
    if not wrong.any():
        return matmul(interpolation(xs[first], targets), answers[first]), ()
    allowed = (rows - threshold) // 2
    stream = Keystream(coins)
    for _ in range(_ATTEMPTS):
        combination = uniform(stream, answers.shape[1])
        try:
            errors = _locate(xs, matmul(answers, combination[:, None])[:, 0], threshold, allowed)
        except DecodingError:
            continue
        trusted = np.setdiff1d(everybody, errors)
        if len(trusted) < threshold:
            continue
        first, rest, wrong = _compare(xs, answers, trusted, threshold)
        liars = rest[wrong]
        if len(liars) <= allowed:
            secrets = matmul(interpolation(xs[first], targets), answers[first])
            return secrets, tuple(int(i) for i in liars)
    raise DecodingError(f"more than {allowed} of {rows} answers are wrong: none can be trusted")


def agree(points: npt.ArrayLike, answers: Elements, *, threshold: int) -> bool:
    """Whether all rows lie on polynomials of degree below ``threshold``; arguments as `decode`."""
    xs = np.asarray(points, np.int64)
    return not _compare(xs, answers, np.arange(len(xs)), threshold)[2].any()


def _compare(
    xs: Elements, answers: Elements, trusted: Elements, threshold: int
) -> tuple[Elements, Elements, npt.NDArray[np.bool_]]:
    """Interpolate through the first t trusted rows; say which of the other rows disagree.

    With at most ``allowed`` disagreements in all, the polynomial is the nearest codeword: two
    codewords differ in at least r - t + 1 rows, more than twice as many.
    """
    first = trusted[:threshold]
    rest = np.setdiff1d(np.arange(len(xs)), first)
    if not len(rest):
        return first, rest, np.zeros(0, np.bool_)
    expected = matmul(interpolation(xs[first], xs[rest]), answers[first])
    return first, rest, (expected != answers[rest]).any(axis=1)


def _locate(xs: Elements, values: Elements, threshold: int, errors: int) -> Elements:
    """Return the places of at most ``errors`` errors in one codeword (Berlekamp-Welch).

    Solves Q(x) = y E(x) for a monic E of degree ``errors`` and a Q of degree below t + errors; the
    roots of E contain the wrong places.
    """
    if errors < 1:
        raise DecodingError("an answer is wrong, and there is no redundancy to correct it")
    powers = np.ones((len(xs), threshold + errors), np.int64)
    for k in range(1, threshold + errors):
        powers[:, k] = powers[:, k - 1] * xs % PRIME
    negated = (PRIME - values[:, None]) * powers[:, :errors] % PRIME
    right = values * power(xs, errors) % PRIME
    solution = solve(np.concatenate((powers, negated), axis=1), right)
    at = np.zeros(len(xs), np.int64)
    for coefficient in (1, *solution[threshold + errors :][::-1]):
        at = (at * xs + int(coefficient)) % PRIME
    return np.flatnonzero(at == 0)
