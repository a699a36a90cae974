"""Reads data files strictly: bounded, never unpickled, every problem one clear line."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.bounded_npz import open_arrays
from fedsys.errors import DataError

__all__ = ["check_labels", "read_npz", "read_table"]

MAX_BYTES = 4 << 30
MAX_ROWS = 50_000_000


def read_npz(path: Path, shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, NDArray[Any]]:
    """The named ``uint8`` arrays of an ``.npz`` file.

    Args:
        path: The file.
        shapes: For each array the shape that it must have; None means any length.

    Raises:
        DataError: it is not such a file, or an array is missing or of another shape or dtype.
    """
    try:
        with (
            path.open("rb") as file,
            open_arrays(file, most=MAX_BYTES, compressed=True) as arrays,
        ):
            missing = [name for name in shapes if name not in arrays.names]
            if missing:
                there = ", ".join(sorted(arrays.names)[:20])
                raise DataError(f"{path}: has no array {missing[0]!r}; it has {there}")
            found = {name: arrays.read(name) for name in shapes}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable .npz file: {error}") from None
    for name, shape in shapes.items():
        array = found[name]
        fits = array.ndim == len(shape) and all(
            want is None or want == have for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.uint8:
            raise DataError(
                f"{path}: array {name!r} is {array.dtype} {array.shape}; expected uint8 "
                f"{tuple('any' if n is None else n for n in shape)}"
            )
    return found


def read_table(
    path: Path,
    columns: tuple[str, ...] | None = None,
    *,
    numbers: Collection[str] = (),
    texts: Collection[str] = (),
) -> Any:
    """A ``pyarrow.Table`` from a ``.parquet`` or ``.csv`` file, all or only some columns.

    Args:
        path: the file.
        columns: the columns to read; None for all.
        numbers: columns of a ``.csv`` to read as numbers, whatever its rows look like.
        texts: columns of a ``.csv`` to read as text; the types of all others are inferred.

    Raises:
        DataError: the file is unreadable or too large, or a column is missing.
    """
    import pyarrow
    from pyarrow import csv, parquet

    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES} bytes; split it")
        if path.suffix == ".parquet":
            metadata = parquet.read_metadata(path)
            if metadata.num_rows > MAX_ROWS:
                raise DataError(f"{path}: {metadata.num_rows} rows; at most {MAX_ROWS} are read")
            names = metadata.schema.to_arrow_schema().names
            _all_there(path, columns or (), names)
            return parquet.read_table(path, columns=None if columns is None else list(columns))
        if path.suffix == ".csv":
            types = dict.fromkeys(texts, pyarrow.string()) | dict.fromkeys(
                numbers, pyarrow.float64()
            )
            table = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=types))
            _all_there(path, columns or (), table.column_names)
            return table if columns is None else table.select(list(columns))
    except (OSError, pyarrow.ArrowException) as error:
        text = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]}: {text}") from None
    raise DataError(f"{path}: the name must end in .parquet or .csv")


def check_labels(
    path: Path, labels: NDArray[Any], classes: int, *, private: bool = False
) -> NDArray[np.int64]:
    """(M,) class indices as ``int64``.

    Raises:
        DataError: a label is not in [0, classes); names its row and, unless `private`, the label.
    """
    wide = labels.astype(np.int64)
    outside = np.flatnonzero((wide < 0) | (wide >= classes))
    if len(outside):
        row = int(outside[0])
        label = "the label" if private else f"label {wide[row]}"
        raise DataError(f"{path}: row {row}: {label} is not in 0 to {classes - 1}")
    return wide


def _all_there(path: Path, wanted: tuple[str, ...], there: list[str]) -> None:
    for name in wanted:
        if name not in there:
            raise DataError(f"{path}: has no column {name!r}; it has {', '.join(there)}")
