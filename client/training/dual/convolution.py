"""A convolution of K clients, each with its own weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.training.dual.own_weights import OwnWeights, copies, plain
from client.training.dual.progress import Progress, UnsupportedLayerError
from client.training.local import LocalConfig

__all__ = ["ClientConv2d", "channels_last"]


class ClientConv2d(OwnWeights, nn.Module):
    """Runs client by client in channels-last layout, in which a CPU's convolutions and pooling
    come close to the speed of its matrix products; batched and grouped convolutions were slower.

    Raises:
        UnsupportedLayerError: `like` pads other than with zeros, or names its padding.
    """

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        if like.padding_mode != "zeros" or isinstance(like.padding, str):
            raise UnsupportedLayerError(
                f"a Conv2d with padding {like.padding!r}, padding_mode {like.padding_mode!r}"
            )
        self.geometry = (list(like.stride), list(like.padding), list(like.dilation))
        self.groups = like.groups
        self._progress: Progress
        self._of_client: list[tuple[Tensor, Tensor | None]] = []
        self._rate: float | None = None
        self._grads: dict[int, tuple[Tensor, Tensor | None]] = {}

    def start(
        self, progress: Progress, local: LocalConfig, weight: Tensor, bias: Tensor | None
    ) -> None:
        """Start all clients from `weight` (out, in, h, w) and `bias` (out,)."""
        self._progress = progress
        self._grads.clear()
        # (K, out, h, w, in) in memory: each client's slice is channels-last.
        last = weight.permute(0, 2, 3, 1)
        own = copies(last, progress.clients).permute(0, 1, 4, 2, 3)
        biases = [] if bias is None else [copies(bias, progress.clients)]
        self.own(local, (weight, bias), [own, *biases])
        each_bias = biases[0].unbind(0) if biases else [None] * progress.clients
        self._of_client = list(zip(own.unbind(0), each_bias, strict=True))
        self._rate = local.learning_rate if plain(local) else None

    def of_client(self, client: int) -> tuple[Tensor, Tensor | None]:
        """The weights and the bias of one client."""
        return self._of_client[client]

    def forward(self, x: Tensor) -> Tensor:
        """(A B, in, H, W) to (A B, out, H', W'); B in place of A B if only one client is fed."""
        x = channels_last(x)
        outputs: Tensor = _ClientConv2d.apply(x, self._progress.anchor, self)  # type: ignore[no-untyped-call]
        return outputs

    @property
    def fed(self) -> range:
        """The clients whose examples the current batch holds."""
        return self._progress.fed

    def output(self, x: Tensor) -> Tensor:
        """As `forward`, of channels-last `x` and without autograd."""
        stride, padding, dilation = self.geometry
        return _joined(
            [
                functional.conv2d(
                    own, *self.of_client(client), stride, padding, dilation, self.groups
                )
                for client, own in zip(self.fed, _split(x, self.fed), strict=True)
            ]
        )

    def input_gradient(self, x: Tensor, dy: Tensor, clients: range, wanted: bool) -> Tensor | None:
        """The gradient of `x` if wanted, else None; these clients' weights are updated from dY."""
        stride, padding, dilation = self.geometry
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx, learnt = [], []
        batches = zip(_split(x, clients), _split(dy, clients), strict=True)
        for client, (own, upper) in zip(clients, batches, strict=True):
            weight, bias = self.of_client(client)
            down, of_weight, of_bias = torch.ops.aten.convolution_backward(
                upper,
                own,
                weight,
                None if bias is None else list(bias.shape),
                stride,
                padding,
                dilation,
                False,
                [0, 0],
                self.groups,
                [wanted, True, bias is not None],
            )
            dx.append(down)
            learnt.append((client, of_weight, of_bias))
        for each in learnt:
            self.learn(*each)
        return _joined(dx) if wanted else None

    def learn(self, client: int, weight: Tensor, bias: Tensor | None) -> None:
        """Take a client's optimizer step with these gradients: at once under plain SGD, else
        together with all active clients, when the last of their gradients has come."""
        if self._rate is not None:
            for param, gradient in zip(self.of_client(client), (weight, bias), strict=True):
                if param is not None and gradient is not None:
                    param.add_(gradient, alpha=-self._rate)
            return
        self._grads[client] = weight, bias
        active = range(self._progress.active)
        if len(self._grads) == len(active):
            weights = torch.stack([self._grads[each][0] for each in active])
            biases = [own for each in active if (own := self._grads[each][1]) is not None]
            self._stepper.step([weights, torch.stack(biases)] if biases else [weights], len(active))
            self._grads.clear()


class _ClientConv2d(torch.autograd.Function):
    """Takes the optimizer step inside the backward pass, after which nothing reads the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: ClientConv2d) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer, ctx.wanted, ctx.clients = layer, x.requires_grad, layer.fed
        return layer.output(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        return ctx.layer.input_gradient(x, grads[0], ctx.clients, ctx.wanted), None, None


def channels_last(x: Tensor) -> Tensor:
    """`x` (N, C, H, W) in channels-last layout, with the strides to match.

    With a single channel, channels-first strides describe the same memory, but oneDNN then takes a
    slower kernel.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    if x.shape[1] > 1 or x.requires_grad:
        return x
    height, width = x.shape[2:]
    return x.as_strided(x.shape, (height * width, 1, width, 1), x.storage_offset())


def _split(rows: Tensor, clients: range) -> tuple[Tensor, ...]:
    """The batch of each client."""
    if len(clients) == 1:
        return (rows,)
    return rows.view(len(clients), -1, *rows.shape[1:]).unbind(0)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
