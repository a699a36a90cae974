"""The convolutional trunk of a model, client by client.

Between a client's images and its first linear layer lie activations of megabytes. Taken for all
clients layer by layer they pass through main memory at every layer; taken client by client they
stay in the cache, forward and, because the autograd engine runs what was recorded last first, also
backward. The linear layers after it take all clients at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from client.training.dual.chain import Chain
from client.training.dual.convolution import ClientConv2d
from client.training.dual.own_or_dual import ClientLinear
from client.training.dual.progress import Cohort

__all__ = ["ChainedTrunk", "TrunkAndHead", "in_sequence"]


class TrunkAndHead(nn.Module):
    """A model cut before its first linear layer.

    Attributes:
        cohort: who trains; set before each chunk.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head
        self.cohort: Cohort

    @classmethod
    def of(cls, model: nn.Module) -> TrunkAndHead | None:
        """None where no convolution comes before the first linear layer of a sequence."""
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
        cohort = self.cohort
        features = []
        for client, own in enumerate(x.view(cohort.active, cohort.batch, *x.shape[1:]).unbind(0)):
            cohort.alone = client
            features.append(self.trunk(own))
        cohort.alone = None
        outputs: Tensor = self.head(torch.cat(features))
        return outputs


class ChainedTrunk:
    """The same, differentiated without the autograd engine; see `Chain`."""

    def __init__(self, cut: TrunkAndHead, trunk: Chain, head: Chain) -> None:
        self._cut, self._trunk, self._head = cut, trunk, head

    @classmethod
    def of(cls, cut: TrunkAndHead) -> ChainedTrunk | None:
        """None where there is a layer without a rule."""
        trunk = Chain.of(in_sequence(cut.trunk))
        head = Chain.of(in_sequence(cut.head), gradient=True)
        return None if trunk is None or head is None else cls(cut, trunk, head)

    def reset(self) -> None:
        """See `Chain`."""
        self._trunk.reset()
        self._head.reset()

    def prepared(self, x: Tensor | None) -> Tensor | None:
        """See `Chain`; all clients at once, as there is nothing to keep."""
        return self._trunk.prepared(x)

    def forward(self, x: Tensor | None) -> Tensor:
        """See `Chain`; `x` is there."""
        if x is None:
            raise ValueError("a convolution is fed nothing")
        cohort = self._cut.cohort
        features = []
        for client, own in enumerate(x.view(cohort.active, cohort.batch, *x.shape[1:]).unbind(0)):
            cohort.alone = client
            features.append(self._trunk.forward(own))
        cohort.alone = None
        return self._head.forward(torch.cat(features), wanted=True)

    def backward(self, gradient: Tensor) -> None:
        """See `Chain`; the client whose activations were made last comes first."""
        passed = self._head.backward(gradient)
        if passed is not None:
            active = self._cut.cohort.active
            for own in reversed(passed.view(active, -1, *passed.shape[1:]).unbind(0)):
                self._trunk.backward(own)


def in_sequence(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested Sequentials, one after the other."""
    if type(model) is not nn.Sequential:
        yield model
        return
    for layer in model:
        yield from in_sequence(layer)


def _holds(layer: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(part, kind) for part in layer.modules())
