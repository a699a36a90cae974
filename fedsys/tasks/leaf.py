"""Data in LEAF's JSON format (Caldas et al. 2018, arXiv:1812.01097): users with their x and y.

Each file holds ``users``, ``num_samples`` and ``user_data``, which maps a user to its ``x``, a list
of equally long lists of numbers, and its ``y``, a list of classes counted from 0. FEMNIST and the
synthetic sets have this form; LEAF's texts (Shakespeare, Twitter) do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedsys.errors import DataError
from fedsys.preprocessing import Preprocessing
from fedsys.preprocessing import leaf as prepared_by
from fedsys.tasks.base import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification
from fedsys.tasks.options import Options

__all__ = ["Leaf"]

MAX_BYTES = 1 << 30
_HOW = "it is a .json file as LEAF writes them, or a folder of them"


class Leaf(Classification):
    """Options: ``path`` (a file or folder), ``features`` and ``classes`` (how many), ``test_path``,
    else ``test_fraction`` (the last rows of each user), ``model`` (logistic | mlp), ``hidden``."""

    name = "leaf"

    def __init__(self, options: Mapping[str, Any]) -> None:
        known = ("path", "test_path", "features", "classes", "test_fraction", "model", "hidden")
        given = Options(self.name, options, known)
        self._path = given.required("path", "a file of LEAF's, or a folder of them")
        self._test_path = given.get("test_path", "")
        self._features = given.count("features", 784)
        self._classes = given.count("classes", 62, low=2, high=100_000)
        self._test_fraction = given.fraction("test_fraction", 0.2)
        self._kind = given.choice("model", "logistic", ("logistic", "mlp"))
        self._hidden = given.count("hidden", 64, high=65536)
        self.preprocessing: Preprocessing = prepared_by(options)

    def init_model(self, seed: int) -> nn.Module:
        """A linear map from zero, or an MLP."""
        with seeded(seed):
            if self._kind == "mlp":
                return nn.Sequential(
                    nn.Linear(self._features, self._hidden),
                    nn.ReLU(),
                    nn.Linear(self._hidden, self._classes),
                )
            model = nn.Linear(self._features, self._classes)
            nn.init.zeros_(model.weight)
            nn.init.zeros_(model.bias)
            return model

    def clients(self, source: DataSource) -> FederatedData:
        """x (M, features) ``float32``; a client is a user, numbered in the order of their names."""
        held = self._users(source, self._path)
        train: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
        test: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
        names = sorted(name for name, (x, _) in held.items() if len(x))
        for name in names:
            x, y = held[name]
            out = 0
            if not self._test_path:
                out = min(round(len(x) * self._test_fraction), len(x) - 1)
            train.append((x[: len(x) - out], y[: len(x) - out]))
            test.append((x[len(x) - out :], y[len(x) - out :]))
        if self._test_path:
            test = list(self._users(source, self._test_path).values())
        natural = np.repeat(np.arange(len(names)), [len(x) for x, _ in train])
        return FederatedData(
            train=_examples(train, self._features),
            test=_examples(test, self._features),
            natural=torch.from_numpy(natural),
            client_names=tuple(names),
        )

    def _users(
        self, source: DataSource, name: str
    ) -> dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]]:
        found: dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}
        for path in _files(source, name):
            for user, data in _user_data(path):
                if user in found:
                    raise DataError(f"{path}: a user is in two files; merge them")
                found[user] = self._rows(path, user, data, source.private)
        if not any(len(x) for x, _ in found.values()):
            raise DataError(f"{name}: holds no user with a row")
        return found

    def _rows(
        self, path: Path, user: str, data: Any, private: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        who = "a user" if private else f"user {user!r}"
        try:
            x, y = np.asarray(data["x"]), np.asarray(data["y"])
        except (KeyError, TypeError):
            raise DataError(f"{path}: {who} has no lists x and y") from None
        except ValueError:
            raise DataError(f"{path}: {who}: rows of x differ in length") from None
        if not len(x):
            return np.empty((0, self._features), np.float32), np.empty(0, np.int64)
        x = x.reshape(len(x), -1) if x.dtype.kind in "iuf" else x
        if x.dtype.kind not in "iuf" or x.shape[1] != self._features:
            what = "texts" if x.dtype.kind == "U" else f"rows of shape {x.shape[1:]}"
            raise DataError(
                f"{path}: {who}: x holds {what}; task.options.features = {self._features} numbers "
                f"are needed"
            )
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        if not np.isfinite(x).all():
            row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
            raise DataError(f"{path}: {who}, row {row + 1}: x holds a number that is not finite")
        if y.shape != (len(x),) or y.dtype.kind not in "iu":
            raise DataError(f"{path}: {who}: y has to hold one whole number for each row of x")
        outside = np.flatnonzero((y < 0) | (y >= self._classes))
        if len(outside):
            row = int(outside[0])
            label = "the class" if private else f"class {y[row]}"
            raise DataError(
                f"{path}: {who}, row {row + 1}: {label} is not in 0 to {self._classes - 1}; see "
                f"task.options.classes"
            )
        return x.astype(np.float32), y.astype(np.int64)


def _files(source: DataSource, name: str) -> list[Path]:
    """The file, or the folder's files in the order of their names."""
    places = [Path(name), *(folder / name for _, folder in source.folders)]
    for place in places:
        if place.is_dir():
            files = sorted(place.glob("*.json"))
            if not files:
                raise DataError(f"{place}: holds no .json file")
            return files
        if place.is_file():
            return [place]
    return [source.find(name, _HOW)]


def _user_data(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES} bytes; split it by users")
        body = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {type(error).__name__}") from None
    found = body.get("user_data") if isinstance(body, dict) else None
    if not isinstance(found, dict):
        raise DataError(f"{path}: has no table user_data, as LEAF's files have")
    yield from found.items()


def _examples(
    parts: list[tuple[NDArray[np.float32], NDArray[np.int64]]], features: int
) -> Examples:
    x = np.concatenate([np.empty((0, features), np.float32), *(x for x, _ in parts)])
    y = np.concatenate([np.empty(0, np.int64), *(y for _, y in parts)])
    return Examples(x=torch.from_numpy(x), y=torch.from_numpy(y))
