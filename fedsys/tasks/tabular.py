"""Any table with a label: CSV or parquet, optionally with a column of client ids.

With *declared columns* every row is prepared by itself, and privacy claims hold::

    [task.options]
    path = "people.csv"
    label = "income"
    classes = ["low", "high"]                  # texts of the label
    ranges = { age = [0, 100] }                # numbers, mapped to [-1, 1]
    values = { sex = ["f", "m"] }              # texts, one-hot

``fedsys task schema people.csv --label income`` writes such a declaration. A label in ``ranges`` is
predicted as a number; a list of columns of 0 and 1 is a set of labels, any of which may hold.

Without a declaration, columns are inferred from the rows: numeric columns are standardised, text
columns with few values are one-hot encoded, and the split is drawn over all rows. One client's rows
then change everybody else's, which no epsilon covers: the ledger says so, and the audit refuses the
run's claims. This is for data that need no protection, and for one process: devices would each
prepare rows differently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fedsys.errors import ConfigError
from fedsys.preprocessing import Preprocessing
from fedsys.preprocessing import tabular as declared_by
from fedsys.tasks.base import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification
from fedsys.tasks.options import Options
from fedsys.tasks.tables.cells import Place
from fedsys.tasks.tables.columns import Columns, Prepared
from fedsys.tasks.tables.file import TableFile
from fedsys.tasks.tables.options import KNOWN, TableOptions

__all__ = ["Tabular", "test_rows"]

_SPLIT_SEED = 0
_SPLIT = b"fedsys tabular split v1\x00"


class Tabular(Classification):
    """Options for the table are in `fedsys.tasks.tables.options` and ``docs/tables.md``; those for
    the model are ``model`` (``logistic``, which is linear regression for a number, or ``mlp``)
    and ``hidden``."""

    name = "tabular"

    def __init__(self, options: Mapping[str, Any]) -> None:
        given = Options(self.name, options, (*KNOWN, "model", "hidden"))
        self._table = TableOptions.of(given, options)
        self._test_fraction = given.fraction("test_fraction", 0.2)
        self._kind = given.choice("model", "logistic", ("logistic", "mlp"))
        self._hidden = given.count("hidden", 64, high=65536)
        test_path = self._table.test_path
        if test_path and self._table.declared is None:
            raise ConfigError(
                f"task.options.test_path = {test_path!r}: a file of test rows needs declared "
                f"columns: add classes, and ranges or values"
            )
        if test_path and "test_fraction" in options:
            raise ConfigError(
                "task.options.test_fraction with test_path: the test rows are in a file of their "
                "own; leave one of the two out"
            )
        self.preprocessing: Preprocessing = declared_by(options)
        self._columns: Columns | None = self._table.declared

    @property
    def columns(self) -> Columns:
        """How rows are prepared: as declared, or as inferred from the table, which is read (from
        the current folder or FEDSYS_DATA) if `clients` was not called before."""
        if self._columns is None:
            table = self._read(DataSource.locate(), self._table.path, None)
            self._columns = self._table.columns(table)
        return self._columns

    @columns.setter
    def columns(self, columns: Columns) -> None:
        self._columns = columns

    def init_model(self, seed: int) -> nn.Module:
        """A linear map from zero, or an MLP, as wide as the columns."""
        width, outputs = self.columns.width, self.columns.target.outputs
        with seeded(seed):
            if self._kind == "mlp":
                return nn.Sequential(
                    nn.Linear(width, self._hidden),
                    nn.ReLU(),
                    nn.Linear(self._hidden, outputs),
                )
            model = nn.Linear(width, outputs)
            nn.init.zeros_(model.weight)
            nn.init.zeros_(model.bias)
            return model

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) cross-entropy in nats; for labels its mean over them; for a number half the
        squared error, in units of its scale."""
        if not targets.is_floating_point():
            return super().loss(outputs, targets)
        if targets.ndim == outputs.ndim:
            each = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
            return each.mean(-1)
        return (outputs.squeeze(-1) - targets).square() / 2

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``accuracy`` for classes, and for labels as the fraction of correct ones; ``mae`` for a
        number, its absolute error in the column's own unit."""
        if not targets.is_floating_point():
            return super().metrics(outputs, targets)
        if targets.ndim == outputs.ndim:
            right = (outputs > 0) == (targets > 0.5)
            return {"accuracy": right.to(torch.float32).mean(-1)}
        error = (outputs.squeeze(-1) - targets).abs()
        return {"mae": error * self.columns.target.scale}

    def clients(self, source: DataSource) -> FederatedData:
        """A random split, the same every time; with a client column, within each client.

        If columns are declared, a row's own content decides whether it is for testing.
        """
        table = self._read(source, self._table.path, self._table.declared)
        columns = self._table.columns(table)
        prepared = self._owned(columns.prepare(table), source)
        del table
        self._columns = columns
        if self._table.declared is None:
            test, train = self._drawn(prepared)
            held = _examples(prepared, test)
        elif self._table.test_path:
            alone = columns.without_client()
            tests = alone.prepare(self._read(source, self._table.test_path, alone))
            held, train = _examples(tests, slice(None)), np.arange(len(prepared.targets))
        else:
            testing = test_rows(prepared.features, prepared.targets, self._test_fraction)
            if prepared.natural is not None:
                left = np.bincount(prepared.natural[~testing], minlength=len(prepared.clients))
                testing &= left[prepared.natural] > 0
            held, train = _examples(prepared, testing), np.flatnonzero(~testing)
        natural = prepared.natural
        return FederatedData(
            train=_examples(prepared, train),
            test=held,
            natural=None if natural is None else torch.from_numpy(natural[train]),
            client_names=prepared.clients,
            reading=prepared.reading,
        )

    def _drawn(self, prepared: Prepared) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(test, train) rows."""
        rows = len(prepared.targets)
        order = np.random.default_rng(_SPLIT_SEED).permutation(rows)
        if prepared.natural is not None:
            return _split_within(order, prepared.natural, self._test_fraction)
        held_out = round(rows * self._test_fraction)
        return order[:held_out], order[held_out:]

    def _read(self, source: DataSource, name: str, columns: Columns | None) -> TableFile:
        """The table of that name, whole if `columns` is None."""
        return self._table.open(self._place(source, name), columns)

    def _owned(self, prepared: Prepared, source: DataSource) -> Prepared:
        """The rows with the clients that hold them: those that a column names."""
        return prepared

    def _place(self, source: DataSource, name: str) -> Place:
        given = Path(name)
        key = "path" if name == self._table.path else "test_path"
        how = f"task.options.{key} names a .csv or .parquet file there, or by its full path"
        path = given if given.is_file() else source.find(name, how)
        return Place(path, source.private)


def test_rows(
    features: NDArray[np.float32], targets: NDArray[Any], fraction: float
) -> NDArray[np.bool_]:
    """(M,) whether each row is for testing: a function of its own content alone.

    Equal rows go the same way, so that no test row also occurs in training.
    """
    limit = int(fraction * 2.0**64)
    chosen = np.zeros(len(targets), dtype=np.bool_)
    inputs = np.ascontiguousarray(features, dtype="<f4")
    outputs = np.ascontiguousarray(targets, dtype="<i8" if targets.dtype.kind == "i" else "<f4")
    for row in range(len(targets)):
        content = _SPLIT + inputs[row].tobytes() + outputs[row].tobytes()
        digest = hashlib.blake2b(content, digest_size=8).digest()
        chosen[row] = int.from_bytes(digest, "little") < limit
    return chosen


def _split_within(
    order: NDArray[np.int64], natural: NDArray[np.int64], fraction: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(test, train) rows: the same fraction for each client; a single row is for training."""
    grouped = order[np.argsort(natural[order], kind="stable")]
    _, sizes = np.unique(natural, return_counts=True)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held_out = np.minimum(np.round(sizes * fraction), sizes - 1)
    testing = place < np.repeat(held_out, sizes)
    return grouped[testing], grouped[~testing]


def _examples(prepared: Prepared, rows: NDArray[Any] | slice) -> Examples:
    return Examples(
        x=torch.from_numpy(prepared.features[rows]), y=torch.from_numpy(prepared.targets[rows])
    )
