"""Pictures in folders: one folder per class, or one per client with a folder per class in each."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedsys.errors import ConfigError, DataError
from fedsys.preprocessing import Preprocessing
from fedsys.preprocessing import images as prepared_by
from fedsys.tasks.base import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification, Rescale
from fedsys.tasks.options import Options

__all__ = ["MOST_BYTES", "Images", "PictureTask", "decoded", "is_test_picture"]

_ENDINGS = (".png", ".jpg", ".jpeg")
MOST_BYTES = 64 << 20
_MOST_PIXELS = 64_000_000
_SPLIT = b"fedsys images split v1\x00"


class PictureTask(Classification):
    """Classes of pictures of one size; what its options and its model are."""

    def _take_picture_options(self, given: Options, wanted: str) -> None:
        """Read ``classes``, ``size``, ``channels``, ``test_fraction`` and ``model``.

        Args:
            given: The task's options.
            wanted: What ``classes`` must be, for errors.

        Raises:
            ConfigError: One of them is no such value.
        """
        self._classes = given.names("classes")
        if len(self._classes) < 2 or len(set(self._classes)) != len(self._classes):
            raise ConfigError(f"task.options.classes = {list(self._classes)}: {wanted}")
        self._size = given.count("size", 32, low=4, high=1024)
        self._channels = given.count("channels", 3, low=1, high=3)
        if self._channels == 2:
            raise ConfigError("task.options.channels = 2: allowed are 1 and 3")
        self._test_fraction = given.fraction("test_fraction", 0.2)
        self._kind = given.choice("model", "cnn", ("cnn", "logistic"))

    def init_model(self, seed: int) -> nn.Module:
        """Two convolutions and a linear map, or a linear map alone; takes bytes."""
        with seeded(seed):
            scale, classes = Rescale(127.5, 127.5), len(self._classes)
            if self._kind == "logistic":
                width = self._channels * self._size**2
                return nn.Sequential(scale, nn.Flatten(), nn.Linear(width, classes))
            side = math.ceil(math.ceil(self._size / 2) / 2)
            return nn.Sequential(
                scale,
                nn.Conv2d(self._channels, 16, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(32 * side**2, classes),
            )


class Images(PictureTask):
    """Options: ``path`` (the folder), ``classes`` (names of the folders, in order), ``layout``
    (class | client/class), ``size`` (pixels per side, to which pictures are scaled), ``channels``
    (1 | 3), ``test_fraction``, ``model`` (cnn | logistic)."""

    name = "images"

    def __init__(self, options: Mapping[str, Any]) -> None:
        known = ("path", "classes", "layout", "size", "channels", "test_fraction", "model")
        given = Options(self.name, options, known)
        self._path = given.required("path", "the folder")
        self._take_picture_options(given, "must be a list of 2 or more folder names")
        self._by_client = given.choice("layout", "class", ("class", "client/class")) != "class"
        self.preprocessing: Preprocessing = prepared_by(options)

    def clients(self, source: DataSource) -> FederatedData:
        """Pixels as bytes (M, channels, size, size). A picture's own bytes decide whether it is for
        testing, so that copies of it go the same way."""
        found = list(self._files(self._folder(source)))
        if not found:
            raise DataError(
                f"{self._path}: holds no picture ({', '.join(_ENDINGS)}) in folders "
                f"{', '.join(self._classes)}"
            )
        pixels = np.empty((len(found), self._channels, self._size, self._size), np.uint8)
        testing = np.zeros(len(found), np.bool_)
        for row, (path, _, _) in enumerate(found):
            pixels[row] = self._decoded(path)
            testing[row] = is_test_picture(pixels[row], self._test_fraction)
        labels = np.array([label for _, label, _ in found], np.int64)
        names = sorted({client for _, _, client in found})
        owner = np.array([names.index(client) for _, _, client in found], np.int64)
        if self._by_client:
            left = np.bincount(owner[~testing], minlength=len(names))
            testing &= left[owner] > 0
        x, y = torch.from_numpy(pixels), torch.from_numpy(labels)
        train, test = np.flatnonzero(~testing), np.flatnonzero(testing)
        return FederatedData(
            train=Examples(x=x[train], y=y[train]),
            test=Examples(x=x[test], y=y[test]),
            natural=torch.from_numpy(owner[train]) if self._by_client else None,
            client_names=tuple(names) if self._by_client else (),
        )

    def _folder(self, source: DataSource) -> Path:
        for place in (Path(self._path), *(folder / self._path for _, folder in source.folders)):
            if place.is_dir():
                return place
        looked = ", ".join(str(folder) for _, folder in source.folders) or "the current folder"
        raise DataError(f"{self._path}: no such folder in {looked}")

    def _files(self, root: Path) -> Iterator[tuple[Path, int, str]]:
        """(file, class, client), in the order of their names."""
        clients = [each for each in sorted(root.iterdir()) if each.is_dir()]
        for place in clients if self._by_client else [root]:
            for folder in sorted(each for each in place.iterdir() if each.is_dir()):
                if folder.name not in self._classes:
                    raise DataError(
                        f"{folder}: is not one of task.options.classes = {list(self._classes)}"
                    )
                label = self._classes.index(folder.name)
                for path in sorted(folder.iterdir()):
                    if path.suffix.lower() in _ENDINGS:
                        yield path, label, place.name if self._by_client else ""

    def _decoded(self, path: Path) -> NDArray[np.uint8]:
        try:
            if path.stat().st_size > MOST_BYTES:
                raise DataError(f"{path}: larger than {MOST_BYTES} bytes")
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: not a readable picture ({type(error).__name__})") from None
        return decoded(content, str(path), self._size, self._channels)


def is_test_picture(pixels: NDArray[np.uint8], fraction: float) -> bool:
    """Whether a picture is for testing, by its own bytes, so that copies of it go the same way."""
    digest = hashlib.blake2b(_SPLIT + pixels.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < int(fraction * 2.0**64)


def decoded(content: bytes, where: str, size: int, channels: int) -> NDArray[np.uint8]:
    """(channels, size, size) the pixels of a PNG or JPEG file.

    Args:
        content: The file.
        where: Which it is, for errors.
        size: Pixels per side, to which it is scaled.
        channels: 1 or 3.

    Raises:
        DataError: it is no such file, or has too many pixels.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise DataError(f"{where}: {opened.size} pixels are too many")
            image = opened.convert("L" if channels == 1 else "RGB").resize((size, size))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        raise DataError(f"{where}: not a readable picture ({type(error).__name__})") from None
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
