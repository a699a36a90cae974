"""Large deviations: a draw on a coarse grid plus one on a fine grid, from two small tables.

For a large sigma the table of round(N(0, sigma^2)) fits into no cache. Instead a draw is

    S + m C,   S = round(N(0, s^2)),   C = round(N(0, c^2)),   s = 7 m,   s^2 + m^2 c^2 >= sigma^2,

with m near sqrt(sigma / 7), so that both tables are small. ``NOISE.md`` proves that the law of
S + m C is within `GRID_DISTANCE` of that of round(G + m U), where G is Gaussian with a variance of
at least sigma^2 and U is uniform on [-1/2, 1/2]: a function of the Gaussian mechanism's output and
of independent noise. Every draw is charged that distance.

>>> split(40_000.0)
(532.0, 526.2692374149448, 76)
"""

from __future__ import annotations

import math
from fractions import Fraction

__all__ = [
    "FEWEST_ON_GRIDS",
    "GRID_DISTANCE",
    "MOST_ON_GRIDS",
    "grid_distance",
    "on_grids",
    "split",
]

FEWEST_ON_GRIDS = float(1 << 11)
"""The largest sigma drawn from a table of its own."""

MOST_ON_GRIDS = float(1 << 19)
"""The largest sigma drawn on two grids."""

GRID_DISTANCE = 1e-300
"""A bound on the total variation between S + m C and round(G + m U); NOISE.md derives 1e-400."""

_FINE = 7  # s / m: the fine grid's noise covers a step of the coarse grid


def on_grids(sigma: float) -> bool:
    """Whether draws of this deviation are made on two grids."""
    return FEWEST_ON_GRIDS < sigma <= MOST_ON_GRIDS


def grid_distance(sigma: float) -> float:
    """The part of a draw's distance that two grids cause; 0 where there is one."""
    return GRID_DISTANCE if on_grids(sigma) else 0.0


def split(sigma: float) -> tuple[float, float, int]:
    """(s, c, m) for a sigma on grids, with s^2 + m^2 c^2 >= sigma^2, exactly."""
    step = round(math.sqrt(sigma / _FINE))
    fine = float(_FINE * step)
    coarse = math.sqrt(sigma * sigma - fine * fine) / step
    while Fraction(fine) ** 2 + (step * Fraction(coarse)) ** 2 < Fraction(sigma) ** 2:
        coarse = math.nextafter(coarse, math.inf)
    return fine, coarse, step
