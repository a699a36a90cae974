"""CIFAR-10: 50,000 + 10,000 colour photographs of 32 x 32 pixels (Krizhevsky 2009)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsys.errors import DataError
from fedsys.preprocessing import Preprocessing
from fedsys.tasks.base import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification, Rescale
from fedsys.tasks.files import check_labels, read_table
from fedsys.tasks.options import Options

__all__ = ["Cifar10"]

FILES = {"train": "cifar10-train.parquet", "test": "cifar10-test.parquet"}
HOW = (
    "it is CIFAR-10 as parquet with the columns image (binary: a 32 x 32 RGB JPEG or PNG) and "
    "label (0 to 9), 50000 rows in cifar10-train.parquet and 10000 in cifar10-test.parquet"
)
MAX_IMAGE_BYTES = 1 << 20


class Cifar10(Classification):
    """What is in the picture? Options: ``model`` (``benchmark`` | ``small``), ``dropout``."""

    name = "cifar10"
    preprocessing: Preprocessing = "fixed"

    def __init__(self, options: Mapping[str, Any]) -> None:
        given = Options(self.name, options, ("model", "dropout"))
        self._kind = given.choice("model", "benchmark", ("benchmark", "small"))
        self._dropout = given.get("dropout", True)

    def init_model(self, seed: int) -> nn.Module:
        """``benchmark``: pfl-research's model (1,626,442 parameters); ``small``: 66,570."""
        with seeded(seed):
            scale = Rescale(mean=120.7, std=64.2)
            quarter, half = (0.25, 0.5) if self._dropout else (0.0, 0.0)
            if self._kind == "benchmark":
                return nn.Sequential(
                    scale,
                    nn.Conv2d(3, 32, 3),
                    nn.ReLU(),
                    nn.Conv2d(32, 64, 3),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                    nn.Dropout(quarter),
                    nn.Flatten(),
                    nn.Linear(12544, 128),
                    nn.ReLU(),
                    nn.Dropout(half),
                    nn.Linear(128, 10),
                )
            return nn.Sequential(
                scale,
                nn.Conv2d(3, 32, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(32, 64, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(64, 64, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(1024, 10),
            )

    def clients(self, source: DataSource) -> FederatedData:
        """Pixels as bytes (M, 3, 32, 32)."""
        parts = {
            part: _read(source.find(name, HOW), source.private) for part, name in FILES.items()
        }
        return FederatedData(train=parts["train"], test=parts["test"])


def _read(path: Path, private: bool) -> Examples:
    table = read_table(path, ("image", "label"))
    images = table.column("image").to_pylist()
    pixels = np.empty((len(images), 32, 32, 3), dtype=np.uint8)
    for row, image in enumerate(images):
        pixels[row] = _decode(path, row, image)
    labels = table.column("label").to_numpy()
    return Examples(
        x=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        y=torch.from_numpy(check_labels(path, labels, 10, private=private)),
    )


def _decode(path: Path, row: int, image: object) -> Any:
    from PIL import Image, UnidentifiedImageError

    if not isinstance(image, bytes) or len(image) > MAX_IMAGE_BYTES:
        raise DataError(f"{path}: row {row}, column 'image': not an encoded image of normal size")
    try:
        with Image.open(io.BytesIO(image), formats=("JPEG", "PNG")) as opened:
            if opened.size != (32, 32):
                raise DataError(
                    f"{path}: row {row}, column 'image': {opened.size} pixels; expected 32 x 32"
                )
            return np.asarray(opened.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(f"{path}: row {row}, column 'image': {error}") from None
