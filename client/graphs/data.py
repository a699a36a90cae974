"""The owner's examples as arrays, from a file or from the owner's own module, without torch.

``FILE.npz`` has arrays ``x`` and ``y``. ``FILE.csv`` and ``FILE.parquet`` have a column ``y``; all
other columns, in the file's order, are x. ``module:function`` names a function that takes no
arguments and returns x and y.
"""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.bounded_npz import open_arrays
from fedsys.current_folder import importable_here
from fedsys.errors import ConfigError, DataError
from fedsys.graphs import TensorType, TrainingGraph
from fedsys.installation import how_to_install

__all__ = ["read_examples"]

_MOST = 1 << 35
"""Bytes of an .npz file's arrays: far above any data set, so more is a damaged directory."""

Array = NDArray[Any]


def read_examples(source: str, graph: TrainingGraph) -> tuple[Array, Array]:
    """x (M, ...) and y (M, ...) in the dtypes that the graph takes.

    Args:
        source: the value of ``--data``.
        graph: states the shape and dtype of a row.

    Raises:
        ConfigError: the source is of an unknown kind.
        DataError: it cannot be read, or its rows do not fit the graph; the message names row and
            column and quotes no value.
    """
    x, y = _arrays(source)
    if len(x) != len(y):
        raise DataError(f"--data {source}: {len(x)} rows of x but {len(y)} of y; give one y per x")
    if not len(x):
        raise DataError(f"--data {source}: there are no examples")
    return _as(source, "x", x, graph.inputs["x"]), _as(source, "y", y, graph.inputs["y"])


def _arrays(source: str) -> tuple[Array, Array]:
    path = Path(source)
    if path.suffix == ".npz":
        return _from_npz(path)
    if path.suffix == ".csv":
        return _from_csv(path)
    if path.suffix == ".parquet":
        return _from_parquet(path)
    if ":" in source:
        return _from_module(source)
    raise ConfigError(
        f"--data {source}: with --graph, give FILE.npz (arrays x and y), FILE.csv or FILE.parquet "
        f"(a column y, all others are x), or MODULE:FUNCTION that returns x and y"
    )


def _from_npz(path: Path) -> tuple[Array, Array]:
    try:
        with path.open("rb") as file, open_arrays(file, most=_MOST, compressed=True) as arrays:
            return arrays.read("x"), arrays.read("y")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"--data {path}: {reason}") from None


def _from_csv(path: Path) -> tuple[Array, Array]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            names = next(lines, [])
            rows = [_numbers(path, names, number, line) for number, line in enumerate(lines, 2)]
    except OSError as error:
        raise DataError(f"--data {path}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"--data {path}: not a CSV in UTF-8 ({type(error).__name__})") from None
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    return _columns(path, names, table)


def _numbers(path: Path, names: list[str], number: int, line: list[str]) -> list[float]:
    if len(line) != len(names):
        raise DataError(
            f"--data {path}: line {number} has {len(line)} columns, the header {len(names)}"
        )
    found = []
    for name, text in zip(names, line, strict=True):
        try:
            found.append(float(text))
        except ValueError:
            raise DataError(
                f"--data {path}: line {number}, column {name!r}: not a number"
            ) from None
    return found


def _columns(path: Path, names: list[str], table: Array) -> tuple[Array, Array]:
    if names.count("y") != 1:
        raise DataError(f"--data {path}: exactly one column must be called y, the target")
    at = names.index("y")
    return np.delete(table, at, axis=1), table[:, at]


def _from_parquet(path: Path) -> tuple[Array, Array]:
    try:
        from pyarrow import ArrowException
        from pyarrow import parquet as reader
    except ImportError:
        raise ConfigError(
            f"--data {path}: pyarrow is not installed; install it: {how_to_install('parquet')}; or "
            f"give a .npz or .csv file"
        ) from None
    try:
        table = reader.read_table(path)
        columns = [np.asarray(table.column(name), dtype=np.float64) for name in table.column_names]
    except (ArrowException, OSError, TypeError, ValueError) as error:
        raise DataError(f"--data {path}: not a table of numbers ({type(error).__name__})") from None
    whole = np.stack(columns, axis=1) if columns else np.zeros((0, 0))
    return _columns(path, list(table.column_names), whole)


def _from_module(source: str) -> tuple[Array, Array]:
    module, _, name = source.partition(":")
    try:
        with importable_here():
            x, y = getattr(importlib.import_module(module), name)()
    except (Exception, SystemExit) as error:  # whatever the owner's code raises
        raise DataError(f"--data {source}: {type(error).__name__}: {error}") from error
    return np.asarray(x), np.asarray(y)


def _as(source: str, name: str, array: Array, wanted: TensorType) -> Array:
    """The rows in the graph's dtype: floats are rounded, every other conversion must be exact."""
    row = wanted.shape[1:]
    if array.shape[1:] != row:
        raise DataError(
            f"--data {source}: a row of {name} has the shape {list(array.shape[1:])}, but the "
            f"graph takes {list(row)}"
        )
    if array.dtype.kind not in "biuf":
        raise DataError(f"--data {source}: {name} has elements that are not numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0]
        raise DataError(f"--data {source}: row {bad} of {name} (from 0) is not finite")
    if array.dtype == wanted.dtype:
        return array
    with np.errstate(all="ignore"):
        made: Array = array.astype(wanted.dtype)
        rounds = array.dtype.kind == "f" and wanted.dtype.kind == "f"
        same = np.isfinite(made) if rounds else made.astype(array.dtype) == array
    if not same.all():
        bad = np.flatnonzero(~same.reshape(len(array), -1).all(axis=1))[0]
        raise DataError(
            f"--data {source}: row {bad} of {name} (from 0) has a value that {wanted.dtype.name} "
            f"cannot hold"
        )
    return made
