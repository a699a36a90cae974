"""MNIST: 60,000 + 10,000 handwritten digits of 28 x 28 pixels (LeCun, Cortes, Burges 1998)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fedsys.preprocessing import Preprocessing
from fedsys.tasks.base import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification, Rescale
from fedsys.tasks.files import check_labels, read_npz
from fedsys.tasks.options import Options

__all__ = ["Mnist"]

FILE = "mnist.npz"
HOW = (
    "it is MNIST as a NumPy archive with uint8 arrays x_train (60000, 28, 28), y_train (60000,), "
    "x_test (10000, 28, 28), y_test (10000,), the file that Keras calls mnist.npz"
)


class Mnist(Classification):
    """Which digit is it? Options: ``model`` (``mlp``: 784-64-10, ``cnn``), ``hidden``."""

    name = "mnist"
    preprocessing: Preprocessing = "fixed"

    def __init__(self, options: Mapping[str, Any]) -> None:
        given = Options(self.name, options, ("model", "hidden"))
        self._kind = given.choice("model", "mlp", ("mlp", "cnn"))
        self._hidden = given.count("hidden", 64 if self._kind == "mlp" else 184, high=65536)

    def init_model(self, seed: int) -> nn.Module:
        """``mlp``: 50,890 parameters; ``cnn``: two 5 x 5 convolutions, 109,490 parameters."""
        with seeded(seed):
            scale = Rescale(mean=33.3, std=78.6)
            if self._kind == "mlp":
                return nn.Sequential(
                    scale,
                    nn.Flatten(),
                    nn.Linear(784, self._hidden),
                    nn.ReLU(),
                    nn.Linear(self._hidden, 10),
                )
            return nn.Sequential(
                scale,
                nn.Conv2d(1, 16, 5),
                nn.MaxPool2d(2),
                nn.ReLU(),
                nn.Conv2d(16, 32, 5),
                nn.MaxPool2d(2),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(512, self._hidden),
                nn.ReLU(),
                nn.Linear(self._hidden, 10),
            )

    def clients(self, source: DataSource) -> FederatedData:
        """Pixels as bytes (M, 1, 28, 28)."""
        path = source.find(FILE, HOW)
        arrays = read_npz(
            path,
            {
                "x_train": (None, 28, 28),
                "y_train": (None,),
                "x_test": (None, 28, 28),
                "y_test": (None,),
            },
        )
        parts = {
            part: Examples(
                x=torch.from_numpy(arrays[f"x_{part}"]).unsqueeze(1),
                y=torch.from_numpy(
                    check_labels(path, arrays[f"y_{part}"], 10, private=source.private)
                ),
            )
            for part in ("train", "test")
        }
        return FederatedData(train=parts["train"], test=parts["test"])
