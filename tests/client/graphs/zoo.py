"""Tasks with small models and made-up data, of the kinds that are exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsys import tasks
from fedsys.tasks import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification

SYMBOLS, LENGTH = 97, 6


class Small(Classification):
    """A task of one model on one kind of made-up examples."""

    def __init__(self, name: str, model: Callable[[], nn.Module], examples: Examples) -> None:
        self.name, self._model, self.examples = name, model, examples

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return self._model()

    def clients(self, source: DataSource) -> FederatedData:
        return FederatedData(train=self.examples, test=self.examples)


class Reading(Small):
    """Predicts every symbol of a sequence; the end is padded, as in task shakespeare."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = functional.cross_entropy(outputs, targets, reduction="none", ignore_index=-100)
        return each.sum(-1) / (targets != -100).sum(-1)


class Transformer(nn.Module):
    """A causal `nn.TransformerEncoderLayer` on an embedding."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, 16)
        self.place = nn.Parameter(torch.randn(LENGTH, 16) * 0.02)
        self.layer = nn.TransformerEncoderLayer(
            16, 4, 32, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.norm, self.readout = nn.LayerNorm(16), nn.Linear(16, SYMBOLS)
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.layer(self.embedding(symbols.long()) + self.place, src_mask=self.mask)
        found: Tensor = self.readout(self.norm(x)).transpose(-1, -2)
        return found


class Norms(nn.Module):
    """Group norm, depthwise, dilated and strided convolutions, overlapping and average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2, bias=False)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.n(self.a(x)))
        x = functional.avg_pool2d(functional.max_pool2d(x, 3, 2, 1), 2)
        x = functional.leaky_relu(self.depth(x), 0.1) + self.wide(x)
        found: Tensor = self.out(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return found


class Recurrent(nn.Module):
    """torch's own recurrent layers."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.embedding, self.readout = nn.Embedding(SYMBOLS, 8), nn.Linear(10, SYMBOLS)
        self.layer = kind(8, 10, batch_first=True)

    def forward(self, symbols: Tensor) -> Tensor:
        states, _ = self.layer(self.embedding(symbols))
        found: Tensor = self.readout(states).transpose(-1, -2)
        return found


class Mixing(nn.Module):
    """Subtracts the mean over the batch, which padding changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x - x.mean(0, keepdim=True))
        return found


def images(*shape: int, classes: int = 10, count: int = 40) -> Examples:
    """Bytes and classes."""
    drawn = torch.Generator().manual_seed(3)
    x = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=drawn)
    return Examples(x=x, y=torch.randint(0, classes, (count,), generator=drawn))


def rows(*shape: int, classes: int = 3, count: int = 40) -> Examples:
    """Floats and classes."""
    drawn = torch.Generator().manual_seed(4)
    x = torch.randn(count, *shape, generator=drawn)
    return Examples(x=x, y=torch.randint(0, classes, (count,), generator=drawn))


def sequences(count: int = 40, length: int = LENGTH, kind: torch.dtype = torch.int64) -> Examples:
    """Symbols, and the symbols one later with a padded end."""
    drawn = torch.Generator().manual_seed(5)
    x = torch.randint(0, SYMBOLS, (count, length), generator=drawn)
    y = torch.randint(0, SYMBOLS, (count, length), generator=drawn)
    y[::3, length // 2 :] = -100
    return Examples(x=x.to(kind), y=y)


class OnExamples:
    """A built-in task on made-up examples."""

    def __init__(self, name: str, options: dict[str, Any], examples: Examples) -> None:
        self._task, self.examples = tasks.load(name, options), examples
        self.name = self._task.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def zoo() -> dict[str, Any]:
    """Tasks by name; each has `examples`."""
    short = sequences(length=5, kind=torch.uint8)
    reader = {"hidden": 24, "layers": 2, "embedding": 8, "sequence": 5}
    return {
        "mnist-mlp": OnExamples("mnist", {}, images(1, 28, 28)),
        "mnist-cnn": OnExamples("mnist", {"model": "cnn"}, images(1, 28, 28)),
        "gru": OnExamples("shakespeare", reader, short),
        "transformer": Reading("transformer", Transformer, sequences()),
        "norms": Small("norms", Norms, rows(3, 12, 12, classes=5)),
        "nn.GRU": Reading("nn.GRU", lambda: Recurrent(nn.GRU), sequences()),
        "nn.LSTM": Reading("nn.LSTM", lambda: Recurrent(nn.LSTM), sequences()),
    }
