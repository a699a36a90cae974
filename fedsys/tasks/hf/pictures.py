"""Pictures of a Hugging Face dataset and their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsys.errors import DataError
from fedsys.preprocessing import Preprocessing
from fedsys.preprocessing import hf as prepared_by
from fedsys.tasks.base import DataSource, Examples, FederatedData
from fedsys.tasks.hf import dataset
from fedsys.tasks.hf.dataset import Rows, Saved
from fedsys.tasks.images import MOST_BYTES, PictureTask, decoded, is_test_picture
from fedsys.tasks.options import Options, nearest

__all__ = ["Pictures"]


class Pictures(PictureTask):
    """Options: those of the dataset (`Saved`), ``image`` and ``label`` (columns), ``client`` (a
    column), ``classes`` (the label's texts, in order), ``size`` (pixels per side, to which pictures
    are scaled), ``channels`` (1 | 3), ``test_fraction``, ``model`` (cnn | logistic)."""

    name = "hf"

    def __init__(self, options: Mapping[str, Any]) -> None:
        own = ("image", "label", "classes", "size", "channels", "test_fraction", "model")
        given = Options(self.name, options, (*dataset.KNOWN, *own))
        self._saved = Saved.of(given, options)
        self._image = given.required("image", "the column of pictures")
        self._label = given.required("label", "the column of classes")
        self._client = given.get("client", "")
        self._take_picture_options(
            given,
            "must list the label's classes, 2 or more texts (of a ClassLabel: its names)",
        )
        self.preprocessing: Preprocessing = prepared_by(options)

    def clients(self, source: DataSource) -> FederatedData:
        """Pixels as bytes (M, channels, size, size). Test rows are the other split, or those that a
        picture's own bytes choose; a client keeps a picture to train on."""
        rows = self._saved.train(source)
        x, y = self._examples(rows)
        natural, names = self._owners(rows)
        if self._saved.test_split:
            held, labels = self._examples(self._saved.test(source))
            train = np.arange(len(y))
        else:
            testing = np.array([is_test_picture(each, self._test_fraction) for each in x])
            if natural is not None:
                left = np.bincount(natural[~testing], minlength=len(names))
                testing &= left[natural] > 0
            held, labels = x[testing], y[testing]
            train = np.flatnonzero(~testing)
        return FederatedData(
            train=_tensors(x[train], y[train]),
            test=_tensors(held, labels),
            natural=None if natural is None else torch.from_numpy(natural[train]),
            client_names=names,
        )

    def _examples(self, rows: Rows) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        for column in filter(None, (self._image, self._label, self._client)):
            there = rows.table.column_names
            if column not in there:
                raise rows.place.file(
                    f"has no column {column!r}{nearest(column, there)}; it has {', '.join(there)}"
                )
        if self._image not in rows.pictures:
            raise rows.place.column(
                self._image,
                f"holds {rows.table[self._image].type}, and image names a column of pictures"
                + (f": {', '.join(rows.pictures)}" if rows.pictures else ""),
            )
        number = {text: at for at, text in enumerate(self._classes)}
        labels = rows.table[self._label].to_pylist()
        y = np.zeros(len(labels), dtype=np.int64)
        x = np.empty((len(labels), self._channels, self._size, self._size), np.uint8)
        for row, text in enumerate(labels):
            if str(text) not in number:
                raise rows.place.cell(
                    self._label,
                    row,
                    text,
                    f"is no class of task.options.classes = {list(self._classes)}",
                    "add it there, or leave such rows out of the dataset",
                )
            y[row] = number[str(text)]
        for row, cell in enumerate(rows.table[self._image]):
            x[row] = self._decoded(rows, row, cell.as_py())
        return x, y

    def _decoded(self, rows: Rows, row: int, cell: Any) -> NDArray[np.uint8]:
        where = f"{rows.place.path}: column {self._image!r}, row {row + 1}"
        content = None if cell is None else cell["bytes"]
        if content is None:
            raise DataError(
                f"{where}: holds no picture, or only the path of one; write the dataset again with "
                f"save_to_disk, which puts pictures into it"
            )
        if len(content) > MOST_BYTES:
            raise DataError(f"{where}: larger than {MOST_BYTES} bytes")
        return decoded(content, where, self._size, self._channels)

    def _owners(self, rows: Rows) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
        """(M,) each row's client, and the clients' names: texts, always."""
        if rows.natural is not None or not self._client:
            return rows.natural, rows.clients
        texts = rows.table[self._client].to_pylist()
        if None in texts:
            row = texts.index(None)
            raise rows.place.cell(
                self._client, row, None, "names no client", "leave such rows out of the dataset"
            )
        names = sorted(set(map(str, texts)))
        number = {name: at for at, name in enumerate(names)}
        return np.array([number[str(each)] for each in texts], dtype=np.int64), tuple(names)


def _tensors(x: NDArray[np.uint8], y: NDArray[np.int64]) -> Examples:
    return Examples(x=torch.from_numpy(x), y=torch.from_numpy(y))
