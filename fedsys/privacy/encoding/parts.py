"""The parts of one client's vector: its update, further blocks, and the client's weight.

A local procedure may send more than an update: a control variate, the number of its steps. Such a
block lies behind the update in the one vector that is clipped, noised, summed and paid for. Each
block has a clipping norm of its own, and the update gets what is left of the whole vector's C:
sqrt(C^2 - sum of squares), so that a long update does not crowd out a short block. The guarantee
does not rest on this: the mechanism bounds the whole vector at C whatever is in it.

Weighted means work in the same way. A client multiplies its update by its weight v in [0, 1] and
sends c v behind it, where c is half of C. The server divides the first sum by the second, so that
no weight is ever in the clear and none moves the sum by more than C.

>>> parts = Parts(dimension=2, blocks={"steps": Block(shape=(), clip=3.0)})
>>> parts.assemble(np.array([[0.0, 8.0, 2.0]], dtype=np.float32), clip=5.0)
array([[0., 4., 2.]], dtype=float32)
>>> parts.split(np.array([0.0, 4.0, 2.0]), clip=5.0)
(array([0., 4.]), {'steps': array(2.)})
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import ConfigError, MechanismError
from fedsys.privacy.encoding.clipping import check_updates

__all__ = ["Block", "Parts"]

_WEIGHT = 0.5
"""The weight's portion of C. It leaves sqrt(3)/2 of C to the update."""

_MOST = 1 << 31
_LEAST_WEIGHT = 1e-3


@dataclass(frozen=True, kw_only=True)
class Block:
    """Numbers that a client sends besides its update.

    Attributes:
        shape: Their shape.
        clip: L2 norm that they do not exceed.
        scale: Factor by which they enter the vector, which the server takes out again: a block
            takes `clip` times `scale` of the vector's norm, and the smaller that is, the more the
            noise drowns it.

    Raises:
        ConfigError: a size, the norm or the factor is not positive.
    """

    shape: tuple[int, ...]
    clip: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if min(self.shape, default=1) < 1 or self.size > _MOST:
            raise ConfigError(f"a block of shape {self.shape}: sizes are positive, 2^31 in all")
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise ConfigError(f"a block with clip = {self.clip}: give a positive number")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"a block with scale = {self.scale}: give a positive number")

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def norm(self) -> float:
        """What the block takes of the vector's norm."""
        return self.clip * self.scale


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What lies where in a client's vector.

    Attributes:
        dimension: d, coordinates of the update.
        blocks: Blocks behind it, in order.
        weight_cap: Number of examples at which a client's weight is 1; 0 where clients count alike.
    """

    dimension: int
    blocks: Mapping[str, Block] = field(default_factory=dict)
    weight_cap: int = 0

    @property
    def width(self) -> int:
        """d and the blocks' sizes: what local training returns."""
        return self.dimension + sum(block.size for block in self.blocks.values())

    @property
    def length(self) -> int:
        """Coordinates of the vector, the weight's included."""
        return self.width + int(self.weighted)

    @property
    def weighted(self) -> bool:
        """Whether clients are weighted by their number of examples."""
        return self.weight_cap > 0

    @property
    def plain(self) -> bool:
        """Whether the vector is the update and nothing else."""
        return not self.blocks and not self.weighted

    def update_clip(self, clip: float) -> float:
        """What is left of C for the update.

        Raises:
            ConfigError: nothing is left.
        """
        spent = sum(block.norm**2 for block in self.blocks.values())
        left = clip**2 - spent - (_WEIGHT * clip) ** 2 * self.weighted
        if not left > 0:
            named = " and ".join(f"{name} ({block.norm:g})" for name, block in self.blocks.items())
            raise ConfigError(
                f"privacy.clip = {clip:g} bounds the update together with the blocks {named}, "
                f"which leave nothing of it to the update; raise privacy.clip, or lower the "
                f"blocks' clip or scale"
            )
        return math.sqrt(left)

    def assemble(
        self, rows: NDArray[np.float32], *, clip: float, examples: Sequence[int] = ()
    ) -> NDArray[np.float32]:
        """Clips each part of K rows (K, width), and weights them: (K, length) float32.

        Args:
            rows: Updates with their blocks. A row that is not finite stays so: the mechanism sends
                zeros for it.
            clip: C, the norm of the whole vector.
            examples: (K,) each client's number of examples, if clients are weighted by it.

        Raises:
            MechanismError: the rows have another shape, or numbers of examples are missing.
            ConfigError: as `update_clip`.
        """
        check_updates(rows, self.width)
        if self.plain:
            return rows
        made = np.zeros((len(rows), self.length), dtype=np.float32)
        made[:, : self.dimension] = _clipped(rows[:, : self.dimension], self.update_clip(clip))
        for part, block in self._slices():
            made[:, part] = _clipped(rows[:, part], block.clip) * block.scale
        if self.weighted:
            if len(examples) != len(rows):
                raise MechanismError(f"{len(rows)} updates, {len(examples)} numbers of examples")
            weights = np.minimum(np.asarray(examples, dtype=np.float64) / self.weight_cap, 1.0)
            made[:, : self.dimension] *= weights[:, None].astype(np.float32)
            made[:, -1] = _WEIGHT * clip * weights
        made[~np.isfinite(rows).all(axis=1)] = np.nan
        return made

    def split(
        self, mean: NDArray[np.float64], *, clip: float, deviation: float = 0.0
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """The mean update (d,), and the mean of each block, of a decoded mean (length,).

        Args:
            mean: Sum of the clients' vectors over the expected cohort.
            clip: C.
            deviation: Standard deviation of the noise in each coordinate of `mean`. A mean weight
                below it says nothing, and is taken to be as large.
        """
        update = mean[: self.dimension]
        sent = {
            name: (mean[part] / block.scale).reshape(block.shape)
            for (part, block), name in zip(self._slices(), self.blocks, strict=True)
        }
        if self.weighted:
            unit = _WEIGHT * clip
            update = update / max(float(mean[-1]) / unit, deviation / unit, _LEAST_WEIGHT)
        return update, sent

    def _slices(self) -> list[tuple[slice, Block]]:
        found, start = [], self.dimension
        for block in self.blocks.values():
            found.append((slice(start, start + block.size), block))
            start += block.size
        return found


def _clipped(rows: NDArray[np.float32], norm: float) -> NDArray[np.float64]:
    """(K, n) rows, each scaled down to norm `norm`."""
    with np.errstate(over="ignore", invalid="ignore"):
        wide = rows.astype(np.float64)
        lengths = np.sqrt(np.einsum("kd,kd->k", wide, wide))
        scaled: NDArray[np.float64] = wide * (norm / np.maximum(lengths, norm))[:, None]
        return scaled
