"""The convolutional trunk of a model, client by client.

A client's activations between its images and its first linear layer take megabytes. If each layer
processed all clients at once, they would pass through main memory at every layer. Processed client
by client they stay in the cache, in the backward pass too, because autograd runs what was recorded
last first. The linear layers that follow process all clients at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from client.training.dual.chain import Chain
from client.training.dual.convolution import ClientConv2d
from client.training.dual.own_or_dual import ClientLinear
from client.training.dual.progress import Progress

__all__ = ["ChainedTrunk", "TrunkAndHead", "in_sequence"]


class TrunkAndHead(nn.Module):
    """A model cut before its first linear layer.

    Attributes:
        progress: where the training of the present chunk stands; set before each chunk.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head
        self.progress: Progress

    @classmethod
    def of(cls, model: nn.Module) -> TrunkAndHead | None:
        """The cut model; None unless all convolutions, at least one, precede the linear layers."""
        layers = list(in_sequence(model))
        linear = [_holds(layer, ClientLinear) for layer in layers]
        at = linear.index(True) if True in linear else len(layers)
        if not any(_holds(layer, ClientConv2d) for layer in layers[:at]):
            return None
        if any(_holds(layer, ClientConv2d) for layer in layers[at:]):
            return None
        return cls(nn.Sequential(*layers[:at]), nn.Sequential(*layers[at:]))

    def forward(self, x: Tensor) -> Tensor:
        """(A B, ...) to (A B, ...)."""
        progress = self.progress
        features = []
        for client, own in enumerate(
            x.view(progress.active, progress.batch, *x.shape[1:]).unbind(0)
        ):
            progress.alone = client
            features.append(self.trunk(own))
        progress.alone = None
        outputs: Tensor = self.head(torch.cat(features))
        return outputs


class ChainedTrunk:
    """`TrunkAndHead`, differentiated without the autograd engine; see `Chain`."""

    def __init__(self, cut: TrunkAndHead, trunk: Chain, head: Chain) -> None:
        self._cut, self._trunk, self._head = cut, trunk, head

    @classmethod
    def of(cls, cut: TrunkAndHead) -> ChainedTrunk | None:
        """The cut model as two chains, or None if a layer has no rule."""
        trunk = Chain.of(in_sequence(cut.trunk))
        head = Chain.of(in_sequence(cut.head), gradient=True)
        return None if trunk is None or head is None else cls(cut, trunk, head)

    def reset(self) -> None:
        """See `Chain`."""
        self._trunk.reset()
        self._head.reset()

    def prepared(self, x: Tensor | None) -> Tensor | None:
        """See `Chain`; all clients at once, as nothing is kept for a backward pass."""
        return self._trunk.prepared(x)

    def forward(self, x: Tensor | None) -> Tensor:
        """See `Chain`; `x` must not be None."""
        if x is None:
            raise ValueError("a convolution needs an input")
        progress = self._cut.progress
        features = []
        for client, own in enumerate(
            x.view(progress.active, progress.batch, *x.shape[1:]).unbind(0)
        ):
            progress.alone = client
            features.append(self._trunk.forward(own))
        progress.alone = None
        return self._head.forward(torch.cat(features), wanted=True)

    def backward(self, gradient: Tensor) -> None:
        """See `Chain`; the client that came last in the forward pass goes first."""
        passed = self._head.backward(gradient)
        if passed is not None:
            active = self._cut.progress.active
            for own in reversed(passed.view(active, -1, *passed.shape[1:]).unbind(0)):
                self._trunk.backward(own)


def in_sequence(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested Sequentials, flattened into one sequence."""
    if type(model) is not nn.Sequential:
        yield model
        return
    for layer in model:
        yield from in_sequence(layer)


def _holds(layer: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(part, kind) for part in layer.modules())
