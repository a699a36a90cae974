"""Synthetic images, for measuring systems at any population size: not for claims of accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsys.preprocessing import Preprocessing
from fedsys.tasks.base import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification, Rescale
from fedsys.tasks.options import Options

__all__ = ["Synthetic"]

_SEED = 20


class Synthetic(Classification):
    """Ten noisy patterns of 784 bytes. Options: ``examples`` (the pool), ``hidden``."""

    name = "synthetic"
    preprocessing: Preprocessing = "fixed"

    def __init__(self, options: Mapping[str, Any]) -> None:
        given = Options(self.name, options, ("examples", "hidden"))
        self._examples = given.count("examples", 20_000, low=10, high=10**6)
        self._hidden = given.count("hidden", 64, high=65536)

    def init_model(self, seed: int) -> nn.Module:
        """An MLP 784-64-10 (50,890 parameters)."""
        with seeded(seed):
            return nn.Sequential(
                Rescale(mean=127.5, std=73.9),
                nn.Linear(784, self._hidden),
                nn.ReLU(),
                nn.Linear(self._hidden, 10),
            )

    def clients(self, source: DataSource) -> FederatedData:
        """The same examples every time; no file is needed."""
        rng = np.random.default_rng(_SEED)
        patterns = rng.integers(0, 256, size=(10, 784), dtype=np.uint8)
        return FederatedData(
            train=_draw(rng, patterns, self._examples), test=_draw(rng, patterns, 1000)
        )


def _draw(rng: np.random.Generator, patterns: np.ndarray[Any, Any], count: int) -> Examples:
    """`count` examples: a class's pattern with three of four bytes replaced by noise."""
    labels = rng.integers(0, 10, size=count)
    x = rng.integers(0, 256, size=(count, patterns.shape[1]), dtype=np.uint8)
    for start in range(0, count, 4096):
        part = slice(start, start + 4096)
        kept = rng.integers(0, 4, size=x[part].shape, dtype=np.uint8) == 0
        x[part] = np.where(kept, patterns[labels[part]], x[part])
    return Examples(x=torch.from_numpy(x), y=torch.from_numpy(labels))
