"""Any table with a label column: CSV or parquet, with a client-id column where it has one.

With *declared columns* every row is prepared by itself, and claims of privacy hold::

    [task.options]
    path = "people.csv"
    label = "income"
    classes = ["low", "high"]                  # texts of the label
    ranges = { age = [0, 100] }                # numbers, mapped to [-1, 1]
    values = { sex = ["f", "m"] }              # texts, one-hot

Without, columns are looked at: numeric columns are standardised, string columns with few values
one-hot encoded, the split drawn over all rows. One client's rows then change everybody else's,
which no epsilon covers: the ledger says so, and the audit refuses the run's claims. That is for
data that need no protection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedsys.errors import ConfigError, DataError
from fedsys.preprocessing import Preprocessing
from fedsys.preprocessing import tabular as declared_by
from fedsys.tasks.base import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification
from fedsys.tasks.declared_columns import DeclaredColumns, test_rows
from fedsys.tasks.files import read_table
from fedsys.tasks.options import Options

__all__ = ["Tabular"]

MAX_CATEGORIES = 64
MAX_CLASSES = 1000
_SPLIT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: int
    natural: NDArray[np.int64] | None
    clients: tuple[str, ...]


class Tabular(Classification):
    """Options: ``path`` and ``label`` (needed), ``client``, ``test_fraction``, ``model``
    (``logistic`` | ``mlp``), ``hidden``; ``classes``, ``ranges``, ``values`` and ``test_path``
    (a file of test rows) where columns are declared, else ``ignore`` (columns to leave out) and
    ``scaling``."""

    name = "tabular"

    def __init__(self, options: Mapping[str, Any]) -> None:
        known = (
            "path",
            "label",
            "client",
            "ignore",
            "test_fraction",
            "model",
            "hidden",
            "scaling",
            "classes",
            "ranges",
            "values",
            "test_path",
        )
        given = Options(self.name, options, known)
        self._file = given.required("path", "the table's file")
        self._label = given.required("label", "the label column's name")
        self._client = given.get("client", "")
        self._ignore = given.names("ignore")
        self._test_fraction = given.fraction("test_fraction", 0.2)
        self._kind = given.choice("model", "logistic", ("logistic", "mlp"))
        self._hidden = given.count("hidden", 64, high=65536)
        self._scaled = given.choice("scaling", "standard", ("standard", "none")) == "standard"
        self._declared = DeclaredColumns.of(self._label, options)
        self._test_file = given.get("test_path", "")
        if self._test_file and self._declared is None:
            raise ConfigError(
                f"task.options.test_path = {self._test_file!r}: a file of test rows needs declared "
                f"columns: add classes, and ranges or values"
            )
        if self._test_file and "test_fraction" in options:
            raise ConfigError(
                "task.options.test_fraction with test_path: the test rows are in a file of their "
                "own; leave one of the two out"
            )
        self.preprocessing: Preprocessing = declared_by(options)
        self._encoded: _Encoded | None = None

    def init_model(self, seed: int) -> nn.Module:
        """Logistic regression from zero, or an MLP. Its width is that of the declared columns, or
        else the table's, which is read (from the current folder or FEDSYS_DATA) where `clients`
        was not called before."""
        if self._declared is not None:
            width, classes = self._declared.width, len(self._declared.classes)
        else:
            table = self._read(DataSource.locate())
            width, classes = table.features.shape[1], table.classes
        with seeded(seed):
            if self._kind == "mlp":
                return nn.Sequential(
                    nn.Linear(width, self._hidden),
                    nn.ReLU(),
                    nn.Linear(self._hidden, classes),
                )
            model = nn.Linear(width, classes)
            nn.init.zeros_(model.weight)
            nn.init.zeros_(model.bias)
            return model

    def clients(self, source: DataSource) -> FederatedData:
        """A random split, the same every time; with a client column, within each client.

        Where columns are declared, a row's own content says whether it is for testing.
        """
        if self._declared is not None:
            return self._prepared(source, self._declared)
        table = self._read(source)
        rows = len(table.labels)
        order = np.random.default_rng(_SPLIT_SEED).permutation(rows)
        if table.natural is None:
            held_out = round(rows * self._test_fraction)
            test, train = order[:held_out], order[held_out:]
        else:
            test, train = _split_within(order, table.natural, self._test_fraction)
        return FederatedData(
            train=_examples(table, train),
            test=_examples(table, test),
            natural=None if table.natural is None else torch.from_numpy(table.natural[train]),
            client_names=table.clients,
        )

    def _prepared(self, source: DataSource, declared: DeclaredColumns) -> FederatedData:
        """Every row by itself; a client that would have no row to train on trains on all."""
        table = self._encode_declared(source, self._file, declared)
        everything = np.arange(len(table.labels))
        if self._test_file:
            tests = self._encode_declared(source, self._test_file, declared)
            held, train = _examples(tests, np.arange(len(tests.labels))), everything
        else:
            testing = test_rows(table.features, table.labels, self._test_fraction)
            if table.natural is not None:
                left = np.bincount(table.natural[~testing], minlength=len(table.clients))
                testing &= left[table.natural] > 0
            held, train = _examples(table, everything[testing]), everything[~testing]
        return FederatedData(
            train=_examples(table, train),
            test=held,
            natural=None if table.natural is None else torch.from_numpy(table.natural[train]),
            client_names=table.clients,
        )

    def _encode_declared(
        self, source: DataSource, name: str, declared: DeclaredColumns
    ) -> _Encoded:
        path = self._find(source, name)
        needs_client = bool(self._client) and name == self._file
        texts = [declared.label, *declared.values, *([self._client] if needs_client else [])]
        table = read_table(
            path, (*texts, *declared.ranges), numbers=declared.ranges.keys(), texts=texts
        )
        if not table.num_rows:
            raise DataError(f"{path}: no rows; at least 1 is needed")
        clients: tuple[str, ...] = ()
        natural = None
        if needs_client:
            clients, natural = _numbered(path, self._client, table.column(self._client))
        return _Encoded(
            features=declared.features(path, table),
            labels=declared.labels(path, table),
            classes=len(declared.classes),
            natural=natural,
            clients=clients,
        )

    def _find(self, source: DataSource, name: str) -> Path:
        given = Path(name)
        key = "path" if name == self._file else "test_path"
        how = f"task.options.{key} names a .csv or .parquet file there, or by its full path"
        return given if given.is_file() else source.find(name, how)

    def _read(self, source: DataSource) -> _Encoded:
        if self._encoded is None:
            path = self._find(source, self._file)
            self._encoded = self._encode(path, read_table(path))
        return self._encoded

    def _encode(self, path: Path, table: Any) -> _Encoded:
        if table.num_rows < 2:
            raise DataError(f"{path}: {table.num_rows} rows; at least 2 are needed")
        special = [self._label, *([self._client] if self._client else []), *self._ignore]
        for name in special:
            if name not in table.column_names:
                there = ", ".join(table.column_names)
                raise DataError(f"{path}: has no column {name!r}; it has {there}")
        columns = [name for name in table.column_names if name not in special]
        if not columns:
            raise DataError(f"{path}: no column is left to learn from besides {special}")
        parts = [_column(path, name, table.column(name), self._scaled) for name in columns]
        values, labels = _numbered(path, self._label, table.column(self._label))
        if len(values) < 2:
            raise DataError(f"{path}: column {self._label!r} holds one class only: {values[0]!r}")
        if len(values) > MAX_CLASSES:
            raise DataError(
                f"{path}: column {self._label!r} has {len(values)} different values, more than "
                f"{MAX_CLASSES}: is it a class?"
            )
        names: tuple[str, ...] = ()
        natural = None
        if self._client:
            names, natural = _numbered(path, self._client, table.column(self._client))
        return _Encoded(
            features=np.concatenate(parts, axis=1),
            labels=labels,
            classes=len(values),
            natural=natural,
            clients=names,
        )


def _column(path: Path, name: str, column: Any, scaled: bool) -> NDArray[np.float32]:
    """(M, 1) a number, or (M, values) one-hot."""
    from pyarrow import types

    kind = column.type
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        numbers = column.cast("float64").to_numpy().astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            raise DataError(
                f"{path}: row {int(bad[0])}, column {name!r}: {numbers[bad[0]]} is not a finite "
                f"number ({len(bad)} such rows); fill it in, or leave the column out with "
                f"task.options.ignore"
            )
        if scaled:
            spread = numbers.std()
            numbers = (numbers - numbers.mean()) / (spread if spread > 0 else 1.0)
        single: NDArray[np.float32] = numbers.astype(np.float32)[:, None]
        return single
    if types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind):
        values, numbered = _numbered(path, name, column)
        if len(values) > MAX_CATEGORIES:
            raise DataError(
                f"{path}: column {name!r} has {len(values)} different texts, more than "
                f"{MAX_CATEGORIES}; leave it out with task.options.ignore"
            )
        one_hot: NDArray[np.float32] = np.eye(len(values), dtype=np.float32)[numbered]
        return one_hot
    raise DataError(
        f"{path}: column {name!r} is {kind}; only numbers and text are understood: leave it out "
        f"with task.options.ignore"
    )


def _numbered(path: Path, name: str, column: Any) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The sorted different values as text, and each row's place among them."""
    values = column.to_pylist()
    for row, value in enumerate(values):
        if value is None or value != value:
            raise DataError(f"{path}: row {row}, column {name!r}: empty; fill it in")
    different = sorted(set(values))
    place = {value: at for at, value in enumerate(different)}
    numbers = np.fromiter((place[value] for value in values), dtype=np.int64, count=len(values))
    return tuple(str(value) for value in different), numbers


def _split_within(
    order: NDArray[np.int64], natural: NDArray[np.int64], fraction: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(test, train): of each client the same fraction; one with a single row keeps it to train."""
    grouped = order[np.argsort(natural[order], kind="stable")]
    _, sizes = np.unique(natural, return_counts=True)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held_out = np.minimum(np.round(sizes * fraction), sizes - 1)
    testing = place < np.repeat(held_out, sizes)
    return grouped[testing], grouped[~testing]


def _examples(table: _Encoded, rows: NDArray[np.int64]) -> Examples:
    return Examples(
        x=torch.from_numpy(table.features[rows]), y=torch.from_numpy(table.labels[rows])
    )
