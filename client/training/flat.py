"""A model's weights as one flat vector, and back.

The order is that of ``named_parameters()``: trainable parameters only, each flattened in row-major
order; one that several modules share is there once. Buffers and frozen parameters are not included;
they come from ``Task.init_model``.

What travels is float32. A model with float64 parameters trains in float64 from it; parameters of
16 bits train as their float32 masters, which are what travels, rounded for each forward pass; what
trains the model itself, as local procedures do, refuses them.

>>> layout = FlatLayout.of(torch.nn.Linear(3, 2))
>>> layout.dimension, layout.names
(8, ('weight', 'bias'))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from fedsys.errors import TrainingError

__all__ = ["FlatLayout"]


@dataclass(frozen=True, kw_only=True)
class FlatLayout:
    """Where each parameter lies in the flat vector.

    Attributes:
        names: Trainable parameters in the order of ``named_parameters()``.
        shapes: The parameters' shapes.
        offsets: Where each parameter starts, followed by the dimension.
        dtypes: The parameters' dtypes in the model.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, model: nn.Module) -> FlatLayout:
        """The layout of `model`'s trainable parameters.

        Raises:
            TrainingError: the model has none, or one that is not of floating point.
        """
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not trainable:
            raise TrainingError("the model has no trainable parameter; there is nothing to learn")
        for name, parameter in trainable.items():
            if not parameter.is_floating_point():
                raise TrainingError(
                    f"the model's parameter {name!r} is {parameter.dtype}, which has no order to "
                    f"clip and round by; make it of floating point, or requires_grad=False"
                )
        offsets = [0]
        for parameter in trainable.values():
            offsets.append(offsets[-1] + parameter.numel())
        return cls(
            names=tuple(trainable),
            shapes=tuple(tuple(parameter.shape) for parameter in trainable.values()),
            offsets=tuple(offsets),
            dtypes=tuple(parameter.dtype for parameter in trainable.values()),
        )

    @property
    def dimension(self) -> int:
        """The length d of the flat vector."""
        return self.offsets[-1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of weights of each parameter."""
        return tuple(b - a for a, b in pairwise(self.offsets))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which weights are trained: float64 if a parameter is, else float32."""
        return torch.float64 if torch.float64 in self.dtypes else torch.float32

    @property
    def uniform(self) -> bool:
        """Whether every parameter has the dtype in which weights are trained."""
        return all(each == self.dtype for each in self.dtypes)

    def in_model(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Trained weights by name in the dtypes of the model's parameters, differentiably."""
        if self.uniform:
            return weights
        return {
            name: weights[name].to(dtype)
            for name, dtype in zip(self.names, self.dtypes, strict=True)
        }

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Each parameter as a view of `flat`: (d,) gives (*shape,), (K, d) gives (K, *shape)."""
        lead = tuple(flat.shape[:-1])
        return {
            name: flat[..., start : start + math.prod(shape)].view((*lead, *shape))
            for name, shape, start in zip(self.names, self.shapes, self.offsets, strict=False)
        }

    def read(self, model: nn.Module) -> Tensor:
        """(d,) a copy of `model`'s weights, in `dtype`."""
        parameters = dict(model.named_parameters())
        return torch.cat(
            [parameters[name].detach().reshape(-1).to(self.dtype) for name in self.names]
        )

    def write(self, model: nn.Module, flat: Tensor) -> None:
        """Sets `model`'s weights, in place, to `flat` (d,)."""
        if flat.shape != (self.dimension,):
            raise TrainingError(
                f"a weight vector of shape {tuple(flat.shape)} does not fit a model of "
                f"{self.dimension} parameters"
            )
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, view in self.views(flat).items():
                parameters[name].copy_(view)
