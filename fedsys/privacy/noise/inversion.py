"""round(shift + sigma Phi^-1(U)) for a uniform real U, of which as many bits are read as needed.

A draw begins with one 64-bit word, the leading bits of U. These almost always determine the
integer: `normal_quantile` evaluates the quantile in float64 with a generous error bound, beyond
which `decided` does so in high precision, or a table (see `fedsys.privacy.noise.sampler`) brackets
it. Where they do not, `settle` reads 960 further bits and evaluates the quantile to more than that
precision. A draw of 1,024 bits can be wrong only if the boundary between two integers lies within
its cell of width 2^-1024, and each boundary lies in one cell.

Only numpy, mpmath and the standard library are used, because devices do not have scipy.

Wichura, "Algorithm AS 241: The Percentage Points of the Normal Distribution", Applied Statistics
37 (1988), PPND16, about 1 part in 10^16.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import mpmath
import numpy as np
from numpy.typing import NDArray

from fedsys.privacy.noise.grids import grid_distance
from fedsys.privacy.randomness import AesCtrStream

__all__ = [
    "FURTHER_BYTES",
    "SETTLED_BITS",
    "decided",
    "normal_quantile",
    "precisely",
    "sampler_distance",
    "settle",
    "tail_quantile",
]

FURTHER_BYTES = 120
"""Bytes that a draw reads beyond its first word if that word does not decide the integer."""

SETTLED_BITS = 64 + 8 * FURTHER_BYTES
"""The number of bits of U that a draw reads at most."""

_WORD_BITS = 64

_CONTEXT = mpmath.MPContext()
_ONE_AT_A_TIME = threading.RLock()

Vector = NDArray[np.float64]

# Numerators and denominators of AS 241, constant terms last, as `_ratio` evaluates them.
_CENTRE = (
    (
        2.5090809287301226727e3,
        3.3430575583588128105e4,
        6.7265770927008700853e4,
        4.5921953931549871457e4,
        1.3731693765509461125e4,
        1.9715909503065514427e3,
        1.3314166789178437745e2,
        3.3871328727963666080,
    ),
    (
        5.2264952788528545610e3,
        2.8729085735721942674e4,
        3.9307895800092710610e4,
        2.1213794301586595867e4,
        5.3941960214247511077e3,
        6.8718700749205790830e2,
        4.2313330701600911252e1,
        1.0,
    ),
)
_TAIL = (
    (
        7.74545014278341407640e-4,
        2.27238449892691845833e-2,
        2.41780725177450611770e-1,
        1.27045825245236838258,
        3.64784832476320460504,
        5.76949722146069140550,
        4.63033784615654529590,
        1.42343711074968357734,
    ),
    (
        1.05075007164441684324e-9,
        5.47593808499534494600e-4,
        1.51986665636164571966e-2,
        1.48103976427480074590e-1,
        6.89767334985100004550e-1,
        1.67638483018380384940,
        2.05319162663775882187,
        1.0,
    ),
)
_FAR_TAIL = (
    (
        2.01033439929228813265e-7,
        2.71155556874348757815e-5,
        1.24266094738807843860e-3,
        2.65321895265761230930e-2,
        2.96560571828504891230e-1,
        1.78482653991729133580,
        5.46378491116411436990,
        6.65790464350110377720,
    ),
    (
        2.04426310338993978564e-15,
        1.42151175831644588870e-7,
        1.84631831751005468180e-5,
        7.86869131145613259100e-4,
        1.48753612908506148525e-2,
        1.36929880922735805310e-1,
        5.99832206555887937690e-1,
        1.0,
    ),
)


def _ratio(x: Vector, polynomials: tuple[tuple[float, ...], tuple[float, ...]]) -> Vector:
    """Numerator over denominator at x (n,), both by Horner's method."""
    above, below = (np.full_like(x, polynomial[0]) for polynomial in polynomials)
    for up, down in zip(polynomials[0][1:], polynomials[1][1:], strict=True):
        above *= x
        above += up
        below *= x
        below += down
    above /= below
    return above


def normal_quantile(tail: Vector) -> Vector:
    """x >= 0 (n,) with P[N > x] = tail, for tails (n,) in (0, 1/2], by AS 241's PPND16.

    With p = 1/2 - tail: x = p A(.180625 - p^2) / B(.180625 - p^2) for p <= .425. Further out, with
    r = sqrt(-log tail): C(r - 1.6) / D(r - 1.6) for r <= 5 and E(r - 5) / F(r - 5) above.
    """
    centred = 0.5 - tail
    result: Vector = centred * _ratio(0.180625 - centred * centred, _CENTRE)
    outside = np.flatnonzero(centred > 0.425)
    if outside.size:
        root = np.sqrt(-np.log(tail[outside]))
        result[outside] = np.where(
            root <= 5, _ratio(root - 1.6, _TAIL), _ratio(root - 5, _FAR_TAIL)
        )
    return result


@contextmanager
def precisely(bits: int) -> Iterator[mpmath.MPContext]:
    """mpmath's functions, computing with this many bits, for one thread at a time.

    mpmath's own precision is one for the process: whichever thread changes it, changes everybody's.
    So this context is ours, and it has a lock, because all contexts share what mpmath remembers of
    pi and the like, which two threads must not extend at once.
    """
    with _ONE_AT_A_TIME, _CONTEXT.workprec(bits):
        yield _CONTEXT


def decided(word: int, sigma: float, shift: float) -> int | None:
    """The integer of a draw whose uniform begins with `word`; None if 64 bits do not decide it.

    Args:
        word: the first 64 bits of U, as an integer.
        sigma: the standard deviation before rounding, in integers.
        shift: added before rounding, |shift| <= 1.
    """
    upper = word >> (_WORD_BITS - 1)
    near = (1 << _WORD_BITS) - 1 - word if upper else word
    if not near:
        return None
    with precisely(4 * _WORD_BITS) as mp:
        ends = set()
        for edge in (near, near + 1):
            magnitude = mp.mpf(sigma) * tail_quantile(mp.ldexp(edge, -_WORD_BITS))
            ends.add(int(mp.nint((magnitude if upper else -magnitude) + shift)))
    return ends.pop() if len(ends) == 1 else None


def settle(word: int, sigma: float, shift: float, stream: AesCtrStream) -> int:
    """The integer of the draw that began with `word`, decided by 960 further bits of U.

    Args:
        word: the first 64 bits of U, as an integer.
        sigma: the standard deviation before rounding, in integers.
        shift: added before rounding, |shift| <= 1.
        stream: the source of the further bits.
    """
    further = int.from_bytes(stream(FURTHER_BYTES), "little")
    cell = (word << (8 * FURTHER_BYTES)) + further  # U is in [cell, cell + 1) / 2^SETTLED_BITS
    upper = cell >> (SETTLED_BITS - 1)
    if upper:  # by symmetry of the normal distribution
        cell = (1 << SETTLED_BITS) - 1 - cell
    with precisely(SETTLED_BITS + 80) as mp:
        tail = mp.ldexp(mp.mpf(2 * cell + 1), -SETTLED_BITS - 1)  # the cell's midpoint
        magnitude = mp.mpf(sigma) * tail_quantile(tail)
        return int(mp.nint((magnitude if upper else -magnitude) + shift))


def tail_quantile(tail: mpmath.mpf) -> mpmath.mpf:
    """x with P[N > x] = tail, for tail in (0, 1/2], at the precision of its context.

    By Newton's method on log P[N > x] = log tail. The left side is concave, so the method converges
    from any starting point, and each step doubles the number of correct digits.
    """
    mp = tail.context
    if tail > mp.ldexp(1, -1000):
        estimate = mp.mpf(float(normal_quantile(np.array([float(tail)]))[0]))
    else:
        estimate = mp.sqrt(-2 * mp.log(tail))
    root_two, root_two_pi = mp.sqrt(2), mp.sqrt(2 * mp.pi)
    wanted, enough = mp.log(tail), mp.ldexp(1, -(mp.prec // 2))
    while True:
        value = mp.erfc(estimate / root_two) / 2
        density = mp.exp(-estimate * estimate / 2) / root_two_pi
        step = (mp.log(value) - wanted) * value / density
        estimate += step
        if abs(step) < enough * (1 + abs(estimate)):
            return estimate


def sampler_distance(sigma: float) -> float:
    """An upper bound on the total variation distance of one draw from what it is accounted as:
    round(N(0, sigma^2)) or, on two grids, that of `fedsys.privacy.noise.grids`.

    A draw can be wrong only in a cell of width 2^-SETTLED_BITS that contains a boundary between two
    integers. Each boundary lies in one cell, and those beyond 38 standard deviations all lie in the
    first and the last, so there are at most 2 (38 sigma + 2) such cells; two grids have fewer.
    """
    return math.ldexp(2 * (38 * sigma + 2), -SETTLED_BITS) + grid_distance(sigma)
