"""1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn: real, no download.

Softmax regression 64 -> 10 (650 parameters) by default. Source: E. Alpaydin and C. Kaynak,
"Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsys.tasks.base import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification
from fedsys.tasks.options import Options

__all__ = ["Digits"]

TEST_EXAMPLES = 360
_SPLIT_SEED = 0


class Digits(Classification):
    """Which digit is it? Options: ``hidden`` (0: softmax regression, else an MLP's width)."""

    name = "digits"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._hidden = Options(self.name, options, ("hidden",)).count("hidden", 0, low=0, high=4096)

    def init_model(self, seed: int) -> nn.Module:
        """Softmax regression starts from zero, whatever the seed; an MLP from the seed."""
        with seeded(seed):
            if self._hidden:
                return nn.Sequential(
                    nn.Linear(64, self._hidden), nn.ReLU(), nn.Linear(self._hidden, 10)
                )
            model = nn.Linear(64, 10)
            nn.init.zeros_(model.weight)
            nn.init.zeros_(model.bias)
            return model

    def clients(self, source: DataSource) -> FederatedData:
        """1,437 training and 360 test examples, a fixed stratified split; pixels in [0, 1]."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        pixels = (digits.data / 16.0).astype(np.float32)
        labels = digits.target.astype(np.int64)
        x_train, x_test, y_train, y_test = (
            torch.from_numpy(np.ascontiguousarray(part))
            for part in train_test_split(
                pixels, labels, test_size=TEST_EXAMPLES, random_state=_SPLIT_SEED, stratify=labels
            )
        )
        return FederatedData(
            train=Examples(x=x_train, y=y_train), test=Examples(x=x_test, y=y_test)
        )
