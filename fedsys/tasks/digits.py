"""1,797 handwritten digits of 8 x 8 pixels, shipped with scikit-learn: real data, no download.

Softmax regression 64 -> 10 (650 parameters) by default. Source: E. Alpaydin and C. Kaynak,
"Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsys.errors import DataError
from fedsys.preprocessing import Preprocessing
from fedsys.tasks.base import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification
from fedsys.tasks.options import Options

__all__ = ["Digits"]

TEST_EXAMPLES = 360
_TEST_ROWS = (
    "AAAEiDUkEEAABkEAk0IFABoACAEAJAAoBiwSABAAlAoAkBkSBCD4oAKBEKAACAqIIEQVJElCQKAKAAAAQATYAACB"
    "gCAASAXEABBACKAQAAVASAAwEAACDsQJAAIkhACDqAE8IKaYCgAAAAsIQAgEoBhIAgJAQcEAgARARoQ3aoECFgBE"
    "gABAQqCkGApQAIQLhWHGCBCACABMgMAgBAaOAAEIggCBADgIA8AIGQAAEA4BAIQQoCEAMygpBMBEwIBoDgECgwCC"
    "AIgipkAsJAQhCKhggJCBoAwCggJCEgE4pBUA"
)
"""One bit per row of the published file, as base64: whether it is for testing. A constant, so that
no row influences where another goes: the split of scikit-learn's ``train_test_split`` with 360 test
rows, stratified, seed 0.
"""


class Digits(Classification):
    """Which digit is it? Options: ``hidden`` (0: softmax regression, else an MLP's width)."""

    name = "digits"
    preprocessing: Preprocessing = "fixed"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._hidden = Options(self.name, options, ("hidden",)).count("hidden", 0, low=0, high=4096)

    def init_model(self, seed: int) -> nn.Module:
        """Softmax regression starts from zero whatever the seed; an MLP depends on the seed."""
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
        """1,437 training and 360 test examples, a constant split; pixels in [0, 1].

        Raises:
            DataError: scikit-learn does not have the published number of digits.
        """
        from sklearn.datasets import load_digits

        digits = load_digits()
        bits = np.frombuffer(base64.b64decode(_TEST_ROWS), dtype=np.uint8)
        rows = len(digits.target)
        if len(bits) != -(-rows // 8):
            raise DataError(f"scikit-learn's digits have {rows} rows; 1797 were published")
        testing = np.unpackbits(bits)[:rows].astype(bool)
        pixels = torch.from_numpy((digits.data / 16.0).astype(np.float32))
        labels = torch.from_numpy(digits.target.astype(np.int64))
        return FederatedData(
            train=Examples(x=pixels[~testing], y=labels[~testing]),
            test=Examples(x=pixels[testing], y=labels[testing]),
        )
