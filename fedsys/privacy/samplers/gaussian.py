"""round(shift + sigma N) as an integer, exactly: Gaussian noise whose floating point tells nothing.

An integer sum plus round(sigma N) equals round(sum + sigma N), a function of the Gaussian
mechanism's output, so every accountant of the Gaussian mechanism holds for it. For that the
integer must be the right one, not one that floating point made. A draw is a sign and a uniform
64-bit word u (the integer part of 2^64 times a uniform real); sigma Phi^-1 is evaluated in
float64 with a generous error bound, and where the bound or the unseen bits of the uniform leave
two integers possible, further random bits and as much precision as it takes decide
(mpmath). Nothing is truncated but what 192 further bits cannot tell.

>>> RoundedGaussian(3.0).draw((4,), AesCtrStream(bytes(32)))
array([-5, -6, -2, -5])
"""

from __future__ import annotations

import math

import mpmath
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from fedsys.errors import MechanismError
from fedsys.privacy.randomness import AesCtrStream

__all__ = ["MAX_SIGMA", "RoundedGaussian"]

MAX_SIGMA = float(1 << 40)

_BLOCK = 1 << 14
_RELATIVE_ERROR = 1e-13  # of scipy's ndtri on (0, 1/2]; tests measure less than 1e-15
_FEWEST_WORD = 1 << 24  # below it (one draw in 2^40) 64 bits of the uniform are too coarse
_FURTHER_BYTES = 24


class RoundedGaussian:
    """Draws round(shift + sigma N), ties away from the sign of the noise, for a fixed sigma.

    Args:
        sigma: a float in (0, 2^40].

    Raises:
        MechanismError: another sigma.

    Attributes:
        sigma: standard deviation before rounding, in integer units.
        total_variation: an upper bound on the distance of one draw from the true distribution.
    """

    def __init__(self, sigma: float) -> None:
        if not (isinstance(sigma, float) and 0 < sigma <= MAX_SIGMA):
            raise MechanismError(
                f"the noise's standard deviation must be in (0, 2^40] integers, got {sigma!r}"
            )
        self.sigma = sigma
        self.total_variation = 2.0**-180

    def __repr__(self) -> str:
        return f"RoundedGaussian(sigma={self.sigma!r})"

    def draw(
        self,
        shape: tuple[int, ...],
        stream: AesCtrStream,
        shift: NDArray[np.float64] | None = None,
    ) -> NDArray[np.int64]:
        """Independent draws of this shape, as int64.

        Args:
            shape: of the result.
            stream: 8 bytes a draw, and 25 more for one draw in millions.
            shift: (the same shape) added before rounding, exactly; |shift| <= 1.
        """
        out = np.empty(math.prod(shape), dtype=np.int64)
        shifts = None if shift is None else shift.reshape(-1)
        for start in range(0, out.size, _BLOCK):
            stop = min(start + _BLOCK, out.size)
            part = None if shifts is None else shifts[start:stop]
            out[start:stop] = self._block(stop - start, stream, part)
        return out.reshape(shape)

    def _block(
        self, count: int, stream: AesCtrStream, shift: NDArray[np.float64] | None
    ) -> NDArray[np.int64]:
        words = stream.words(count)
        negative = (words >> np.uint64(63)).astype(np.bool_)
        words &= np.uint64((1 << 63) - 1)
        # The magnitude is -Phi^-1(v / 2), v = (w + fraction) / 2^63 uniform on (0, 1).
        magnitude = ndtri((words.astype(np.float64) + 0.5) * 2.0**-64)
        magnitude *= -self.sigma
        real = np.where(negative, -magnitude, magnitude)
        if shift is not None:
            real += shift
        rounded = np.rint(real)
        # d Phi^-1 / dv at v is below 1 / v; the word's fraction moves v by 2^-64 at most, and the
        # conversion of the word to float64 by a relative 2^-53 (absolute error near v = 1: 2^-54).
        tolerance = magnitude * _RELATIVE_ERROR + self.sigma * 1e-14
        tolerance += self.sigma / (words.astype(np.float64) + 1.0)
        doubtful = np.abs(np.abs(real - rounded) - 0.5) <= tolerance + np.abs(real) * 2.0**-51
        doubtful |= words < _FEWEST_WORD
        result: NDArray[np.int64] = rounded.astype(np.int64)
        for index in np.flatnonzero(doubtful):
            offset = 0.0 if shift is None else float(shift[index])
            result[index] = self._settle(int(words[index]), bool(negative[index]), offset, stream)
        return result

    def _settle(self, word: int, negative: bool, shift: float, stream: AesCtrStream) -> int:
        """The same draw with 192 further bits of its uniform, at a precision that decides."""
        further = int.from_bytes(stream(_FURTHER_BYTES), "little")
        bits = 63 + 8 * _FURTHER_BYTES
        with mpmath.workprec(bits + 80):
            uniform = mpmath.mpf(2 * ((word << (8 * _FURTHER_BYTES)) + further) + 1)
            magnitude = _tail_quantile(uniform / mpmath.mpf(2) ** (bits + 2))
            real = mpmath.mpf(self.sigma) * (-magnitude if negative else magnitude) + shift
            return int(mpmath.nint(real))


def _tail_quantile(tail: mpmath.mpf) -> mpmath.mpf:
    """x with P[N > x] = tail, for tail in (0, 1/2), by Newton's method on log erfc."""
    if tail > mpmath.mpf(2) ** -1000:
        estimate = mpmath.mpf(-float(ndtri(float(tail)))) if float(tail) > 0 else mpmath.mpf(30)
    else:
        estimate = mpmath.sqrt(-2 * mpmath.log(tail))
    root_two = mpmath.sqrt(2)
    for _ in range(12):
        value = mpmath.erfc(estimate / root_two) / 2
        density = mpmath.exp(-estimate * estimate / 2) / mpmath.sqrt(2 * mpmath.pi)
        step = (value - tail) / density
        # Halley's correction: the density's slope is -x times itself.
        step /= 1 + step * estimate / 2
        estimate += step
        if abs(step) < mpmath.mpf(2) ** (-(mpmath.mp.prec - 40) // 2 * 2 // 3) * (1 + estimate):
            value = mpmath.erfc(estimate / root_two) / 2
            density = mpmath.exp(-estimate * estimate / 2) / mpmath.sqrt(2 * mpmath.pi)
            return estimate + (value - tail) / density
    return estimate
