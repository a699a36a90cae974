"""Adaptive clipping: the norm follows a quantile of the updates' norms, flat or by layer.

Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private Learning with Adaptive Clipping"
(NeurIPS 2021). For each layer, a client's bit 1[norm <= C] - 1/2 travels as a further coordinate of
its update: inside the clipped, noised and accounted vector, never next to it. With G layers of
norms C_g and bits of weight w, the vector's norm is at most C = sqrt(sum C_g^2 + G w^2), the
clipping norm of the round's event. To the mechanism it is an ordinary vector of dimension d + G. A
client that does not take part sends zeros in all of it, neither bit.

>>> adaptive = AdaptiveClipping.start(layers=(3, 2), clip=1.0, quantile=0.5, learning_rate=0.2,
...     bit_fraction=0.1, survival=0.95)
>>> extended = adaptive.extend(np.array([[3.0, 0.0, 4.0, 0.1, 0.1]]))
>>> extended.shape, round(float(np.linalg.norm(extended)), 3) <= round(adaptive.clip, 3)
((1, 7), True)
>>> mean, fractions = adaptive.split(np.zeros(7))
>>> fractions
array([0.5, 0.5])
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.encoding.clipping import check_updates, finite_norms

__all__ = ["AdaptiveClipping", "default_bit_fraction"]

_STEEPEST = 20.0  # a larger learning rate is refused as a misconfiguration


def default_bit_fraction(noise_multiplier: float, expected_cohort: float) -> float:
    """The w / C at which the noise on a round's fraction has deviation 0.05; at most 1/2.

    The mean of a bit has noise of deviation z C / n and a range of 2 w, so w / C = 10 z / n.

    Args:
        noise_multiplier: z.
        expected_cohort: n = q N, or p q N where a secret coin decides who sends bits.
    """
    return min(0.5, 10 * noise_multiplier / expected_cohort)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveClipping:
    """One round's clipping norms; ``updated`` gives the next round's.

    Attributes:
        layers: (G,) the number of coordinates of each group, in order; one group is flat clipping.
        norms: (G,) C_g, the clipping norm of each group.
        weight: w; the coordinate of a bit is w for a 1 and -w for a 0.
        quantile: the target fraction of updates whose norm stays below the clipping norm.
        learning_rate: eta in ``C *= exp(-eta (fraction - quantile))``.
        survival: the expected fraction of a cohort whose bits reach the sum: that is not lost, and
            that takes part by its secret coin. An assumption, because the realised fraction is
            secret; where fewer take part, fractions are closer to 1/2.
        bit_fraction: w / C, which is kept when the norms move.

    Raises:
        MechanismError: a value is out of range, the number of norms is not that of the layers, or
            the bits leave no room for the update.
    """

    layers: tuple[int, ...]
    norms: tuple[float, ...]
    weight: float
    quantile: float
    learning_rate: float
    survival: float
    bit_fraction: float

    def __post_init__(self) -> None:
        if not self.layers or len(self.layers) != len(self.norms):
            raise MechanismError(
                f"adaptive clipping needs one norm per layer, got {len(self.norms)} norms for "
                f"{len(self.layers)} layers"
            )
        for size in self.layers:
            validation.integer("layer size", size)
        for norm in (*self.norms, self.weight):
            validation.positive("clip", norm)
        validation.fraction("quantile", self.quantile)
        validation.positive("adaptive learning_rate", self.learning_rate)
        validation.probability("survival", self.survival)
        validation.fraction("bit_fraction", self.bit_fraction)
        if self.learning_rate > _STEEPEST:
            raise MechanismError(
                f"adaptive learning_rate={self.learning_rate:g} moves the norm by a factor of "
                f"exp({self.learning_rate:g}) per round: 0.2 is usual"
            )
        if len(self.layers) * self.bit_fraction**2 >= 1:
            raise MechanismError(
                f"{len(self.layers)} bits of bit_fraction={self.bit_fraction:g} leave no room for "
                "the update: lower it below 1 / sqrt(layers)"
            )

    @classmethod
    def start(
        cls,
        *,
        layers: tuple[int, ...],
        clip: float,
        quantile: float = 0.5,
        learning_rate: float = 0.2,
        bit_fraction: float = 0.1,
        survival: float = 1.0,
    ) -> AdaptiveClipping:
        """The first round's norms: ``clip`` in total, with C_g proportional to the square root of
        the layer's size.

        Args:
            layers: (G,) the number of coordinates of each group.
            clip: C, the norm of the extended vector.
            quantile: the target fraction of updates whose norm stays below the clipping norm.
            learning_rate: eta.
            bit_fraction: w / C.
            survival: the expected fraction of a cohort whose bits reach the sum.

        Raises:
            MechanismError: as for the constructor.
        """
        validation.positive("clip", clip)
        validation.fraction("bit_fraction", bit_fraction)
        for size in layers:
            validation.integer("layer size", size)
        body = clip * math.sqrt(max(1 - len(layers) * bit_fraction**2, 0.0))
        total = sum(layers)
        return cls(
            layers=layers,
            norms=tuple(body * math.sqrt(size / total) for size in layers),
            weight=clip * bit_fraction,
            quantile=quantile,
            learning_rate=learning_rate,
            survival=survival,
            bit_fraction=bit_fraction,
        )

    @property
    def dimension(self) -> int:
        """d, the number of coordinates of an update."""
        return sum(self.layers)

    @property
    def length(self) -> int:
        """d + G, the dimension for which plan and mechanism are built."""
        return self.dimension + len(self.layers)

    @property
    def clip(self) -> float:
        """C, the bound on the extended vector's norm and the clipping norm of the round's event."""
        squares = sum(norm**2 for norm in self.norms)
        return math.sqrt(squares + len(self.layers) * self.weight**2)

    def _slices(self) -> list[slice]:
        ends = np.cumsum(self.layers)
        return [
            slice(int(end) - size, int(end)) for end, size in zip(ends, self.layers, strict=True)
        ]

    def extend(self, updates: NDArray[Any]) -> NDArray[np.float64]:
        """Clips each layer of K updates (K, d) and appends their bits: (K, d + G) float64.

        A row with a NaN or an infinity keeps a NaN, so that the mechanism encodes it as zeros.

        Raises:
            MechanismError: the array is not (K, d) of float32 or float64.
        """
        check_updates(updates, self.dimension)
        extended = np.empty((len(updates), self.length), dtype=np.float64)
        for group, (part, norm) in enumerate(zip(self._slices(), self.norms, strict=True)):
            with np.errstate(over="ignore", invalid="ignore"):
                rows = updates[:, part].astype(np.float64)
                norms, finite = finite_norms(rows)
                extended[:, part] = rows * (norm / np.maximum(norms, norm))[:, None]
            below = norms <= norm
            extended[:, self.dimension + group] = np.where(below, self.weight, -self.weight)
            extended[~finite, part] = np.nan
        return extended

    def split(self, mean: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Splits a decoded mean (d + G,) into the mean update (d,) and the layers' noisy fractions
        (G,) of updates within their norms.

        The denominator of the mean is q N, and that of the fractions is the expected number of
        clients whose bits are in the sum.

        Raises:
            MechanismError: the mean has another shape.
        """
        if mean.shape != (self.length,):
            raise MechanismError(f"the mean must have shape ({self.length},), got {mean.shape}")
        bits = mean[self.dimension :] / (2 * self.weight * self.survival)
        return mean[: self.dimension], bits + 0.5

    def updated(self, fractions: NDArray[np.float64]) -> AdaptiveClipping:
        """The next round's norms: ``C_g *= exp(-eta (fraction_g - quantile))``; w / C is kept.

        Args:
            fractions: (G,) as returned by `split`; clamped to [0, 1].

        Raises:
            MechanismError: ``fractions`` is not G finite numbers.
        """
        if fractions.shape != (len(self.layers),) or not np.isfinite(fractions).all():
            raise MechanismError(f"expected {len(self.layers)} finite fractions, got {fractions!r}")
        steps = self.learning_rate * (np.clip(fractions, 0.0, 1.0) - self.quantile)
        norms = tuple(
            float(norm * math.exp(-step)) for norm, step in zip(self.norms, steps, strict=True)
        )
        body = math.sqrt(sum(norm**2 for norm in norms))
        bits = len(self.layers) * self.bit_fraction**2
        total = body / math.sqrt(1 - bits)
        return dataclasses.replace(self, norms=norms, weight=total * self.bit_fraction)

    def to_json(self) -> dict[str, Any]:
        """A JSON object for the checkpoint and the round's assignment."""
        body = dataclasses.asdict(self)
        return {**body, "layers": list(self.layers), "norms": list(self.norms)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> AdaptiveClipping:
        """The inverse of ``to_json``.

        Raises:
            MechanismError: a key is missing or unknown, or a value is invalid.
        """
        try:
            fields = {**body, "layers": tuple(body["layers"]), "norms": tuple(body["norms"])}
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise MechanismError(f"not a state of adaptive clipping: {error}") from None
