"""Packed Shamir sharing of a 2,048-element secret, and the proof that shares are of low degree.

The secret is laid out in K columns of rho elements. Each column is hidden in a random polynomial of
degree below t that takes the column's elements at -1, ..., -rho (Franklin and Yung, STOC 1992);
member j of the committee gets the values at j + 1. Any tau = t - rho shares are uniform whatever
the secret is, because some polynomial of degree below t fits every choice of rho secrets and tau
values; t shares determine it.

Eight further columns hold uniform secrets. They hide the eight linear combinations of the K columns
that the dealer publishes as its proof, in the manner of the interleaved test of Ligero (Ames,
Hazay, Ishai and Venkitasubramaniam, CCS 2017) with coefficients from a hash (Fiat and Shamir).
Shares that are not on polynomials of degree below t pass all eight with chance 65521^-8 < 2^-127
for each challenge that is tried.
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import numpy.typing as npt

from secure_agg.digests import digest
from secure_agg.field import PRIME, Elements, Floats, centred, interpolation, residues
from secure_agg.gaussian import Keystream
from secure_agg.params import PROOF_COLUMNS
from secure_agg.shared import Shared
from secure_agg.streams import uniform

__all__ = [
    "CHECKS",
    "challenge",
    "consistent",
    "evaluation",
    "join",
    "prove",
    "secret_points",
    "share",
    "split",
]

CHECKS: Final = PROOF_COLUMNS
"""Combinations in a proof, and mask columns that hide them."""
_CHUNK: Final = 256


def secret_points(packing: int) -> Elements:
    """Return the points that hold the secrets: -1, ..., -packing."""
    return -np.arange(1, packing + 1, dtype=np.int64)


@functools.lru_cache(maxsize=32)
def _dealing(committee: int, threshold: int, packing: int) -> Floats:
    """Matrix from (secrets, values of members 0 to tau - 1) to the other members' values."""
    tau = threshold - packing
    drawn = np.arange(1, tau + 1, dtype=np.int64)
    points = np.concatenate((secret_points(packing), drawn))
    return centred(interpolation(points, np.arange(tau + 1, committee + 1)))


@functools.lru_cache(maxsize=32)
def evaluation(committee: int, threshold: int) -> Elements:
    """Matrix from the values of members 0 to t - 1 to those of all, shape (C, t)."""
    return interpolation(np.arange(1, threshold + 1), np.arange(1, committee + 1))


def split(secret: npt.NDArray[np.generic], packing: int) -> Elements:
    """Lay a secret out in columns of ``packing`` elements; the last is filled up with zeros.

    Returns:
        Shape (packing, ceil(len(secret) / packing)), residues modulo the prime.
    """
    columns = -(-len(secret) // packing)
    padded = np.zeros(columns * packing, np.int64)
    padded[: len(secret)] = secret
    return residues(padded.reshape(columns, packing).T)


def join(columns: Elements, size: int) -> Elements:
    """Undo `split`: the first ``size`` elements, centred."""
    flat = columns.T.reshape(-1)[:size]
    return np.where(flat > PRIME // 2, flat - PRIME, flat)


def share(
    secret: npt.NDArray[np.generic], *, committee: int, threshold: int, packing: int, seed: bytes
) -> Elements:
    """Deal a secret.

    Args:
        secret: Integers, shape (2048,).
        committee: Members C.
        threshold: t.
        packing: rho.
        seed: 32 secret bytes, used once.

    Returns:
        Shape (C, K + CHECKS); row j belongs to member j, the last CHECKS columns are masks.
    """
    stream = Keystream(seed)
    columns = split(secret, packing)
    masks = uniform(stream, packing * CHECKS).reshape(packing, CHECKS)
    secrets = np.concatenate((columns, masks), axis=1)
    tau = threshold - packing
    drawn = uniform(stream, tau * secrets.shape[1]).reshape(tau, -1)
    known = centred(np.concatenate((secrets, drawn)))
    others = residues(_dealing(committee, threshold, packing) @ known)
    return np.concatenate((drawn, others))


def challenge(statement: bytes, columns: int, shared: Shared | None = None) -> Elements:
    """Return the proof's coefficients, shape (CHECKS, columns), drawn from a hash.

    Args:
        statement: 32 bytes that fix the session, the dealer and all sealed shares.
        columns: K.
        shared: Work shared with a virtual cohort in this process.
    """
    if shared is not None:
        name = ("challenge", statement, columns)
        drawn = shared.get(name, lambda: challenge(statement, columns).astype(np.uint16))
        return drawn.astype(np.int64)
    stream = Keystream(digest("low degree", statement))
    return uniform(stream, CHECKS * columns).reshape(CHECKS, columns)


def prove(shares: Elements, coefficients: Elements, threshold: int) -> Elements:
    """Return the values of the combined polynomials at the first t members, shape (CHECKS, t)."""
    columns = coefficients.shape[1]
    dealt = shares[:threshold]
    held = centred(dealt.T)
    return residues(centred(coefficients) @ held[:columns] + held[columns:])


def consistent(
    shares: npt.NDArray[np.uint16],
    coefficients: npt.NDArray[np.uint16],
    proofs: npt.NDArray[np.uint16],
    row: Floats,
) -> npt.NDArray[np.bool_]:
    """Whether one member's shares lie on their dealers' proofs, for many dealers at once.

    The products are exact in float64: one factor is a residue below 2^16, the other centred, below
    2^15 in absolute value; at most 2^12 products below 2^31 sum to less than 2^43.

    Args:
        shares: Shape (dealers, K + CHECKS), residues.
        coefficients: Shape (dealers, CHECKS, K), residues.
        proofs: Shape (dealers, CHECKS, t), residues.
        row: The member's row of `evaluation`, centred, shape (t,).

    Returns:
        Shape (dealers,).
    """
    columns = coefficients.shape[2]
    good = np.ones(len(shares), np.bool_)
    for start in range(0, len(shares), _CHUNK):
        part = slice(start, start + _CHUNK)
        held = centred(shares[part])
        combined = np.matmul(coefficients[part].astype(np.float64), held[:, :columns, None])[..., 0]
        expected = np.matmul(proofs[part].astype(np.float64), row)
        good[part] = ~centred(combined + held[:, columns:] - expected).any(axis=1)
    return good
