"""A table's columns as they were declared before anybody looked: each row is encoded by itself.

Numbers are mapped from their declared range to [-1, 1], and what lies outside counts as its end;
texts become one-hot by the declared values, and a text that was not declared all zeros. Nothing
about a row depends on another row, whether it is a test row included.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import ConfigError, DataError

__all__ = ["DeclaredColumns", "test_rows"]

_MOST_VALUES = 1000
_SPLIT = b"fedsys tabular split v1\x00"


@dataclass(frozen=True, kw_only=True)
class DeclaredColumns:
    """What each column may hold.

    Attributes:
        label: name of the label column.
        classes: texts of the label, in the order of the classes.
        ranges: lowest and highest value of each numeric column.
        values: texts of each categorical column.
    """

    label: str
    classes: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float]]
    values: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, label: str, options: Mapping[str, Any]) -> DeclaredColumns | None:
        """Read ``classes``, ``ranges`` and ``values``; None where none of them is given.

        Raises:
            ConfigError: they are incomplete, or not what they have to be.
        """
        given = [key for key in ("classes", "ranges", "values") if key in options]
        if not given:
            return None
        if "classes" not in given or len(given) < 2:
            raise ConfigError(
                f"task.options.{given[0]}: declared columns need classes (texts of the label) and "
                f"ranges or values (of the columns to learn from); add what is missing"
            )
        for key in ("scaling", "ignore"):
            if key in options:
                raise ConfigError(
                    f"task.options.{key} with declared columns: only columns in ranges and values "
                    f"are used, scaled by their range; leave {key} out"
                )
        ranges, values = _table(options, "ranges"), _table(options, "values")
        both = sorted(set(ranges) & set(values) | ({label} & (set(ranges) | set(values))))
        if both:
            raise ConfigError(f"task.options: column {both[0]!r} is declared twice")
        if not ranges and not values:
            raise ConfigError("task.options.ranges and values are empty: no column to learn from")
        return cls(
            label=label,
            classes=_texts("classes", options["classes"]),
            ranges={name: _range(name, ends) for name, ends in ranges.items()},
            values={name: _texts(f"values.{name}", texts) for name, texts in values.items()},
        )

    @property
    def width(self) -> int:
        """Features of one row."""
        return len(self.ranges) + sum(map(len, self.values.values()))

    def features(self, path: Path, table: Any) -> NDArray[np.float32]:
        """(M, width): numeric columns first, each in the order of declaration.

        Raises:
            DataError: a column is missing, or holds something else than was declared.
        """
        parts = [
            _scaled(path, name, _column(path, name, table), ends)
            for name, ends in self.ranges.items()
        ]
        for name, texts in self.values.items():
            found = _as_texts(path, name, _column(path, name, table))
            parts.append(np.array([[text == each for each in texts] for text in found]))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def labels(self, path: Path, table: Any) -> NDArray[np.int64]:
        """(M,) class of each row.

        Raises:
            DataError: a row has a class that was not declared.
        """
        place = {text: at for at, text in enumerate(self.classes)}
        found = _as_texts(path, self.label, _column(path, self.label, table))
        for row, text in enumerate(found):
            if text not in place:
                raise DataError(
                    f"{path}: row {row}, column {self.label!r}: {text!r} is none of "
                    f"task.options.classes = {list(self.classes)}"
                )
        return np.fromiter((place[text] for text in found), dtype=np.int64, count=len(found))


def test_rows(
    features: NDArray[np.float32], labels: NDArray[np.int64], fraction: float
) -> NDArray[np.bool_]:
    """(M,) whether each row is for testing: a function of its own content alone.

    Equal rows go the same way, so that nobody is tested on what was trained on.
    """
    limit = int(fraction * 2.0**64)
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for row, label in enumerate(labels.tolist()):
        content = _SPLIT + features[row].astype("<f4").tobytes() + label.to_bytes(8, "little")
        digest = hashlib.blake2b(content, digest_size=8).digest()
        chosen[row] = int.from_bytes(digest, "little") < limit
    return chosen


def _table(options: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = options.get(key, {})
    if not isinstance(table, Mapping):
        raise ConfigError(
            f"task.options.{key} = {table!r}: must be a table, one entry a column: "
            + ("{age = [0, 100]}" if key == "ranges" else '{sex = ["f", "m"]}')
        )
    return dict(table)


def _range(name: str, ends: object) -> tuple[float, float]:
    if (
        isinstance(ends, list | tuple)
        and len(ends) == 2
        and all(type(end) in (int, float) and math.isfinite(end) for end in ends)
        and ends[0] < ends[1]
    ):
        return float(ends[0]), float(ends[1])
    raise ConfigError(
        f"task.options.ranges.{name} = {ends!r}: must be [lowest, highest], the lowest first"
    )


def _texts(key: str, texts: object) -> tuple[str, ...]:
    if isinstance(texts, list | tuple) and all(type(each) in (str, int, bool) for each in texts):
        found = tuple(map(str, texts))
        if 2 <= len(found) <= _MOST_VALUES and len(set(found)) == len(found):
            return found
    raise ConfigError(
        f"task.options.{key} = {texts!r}: must be a list of 2 to {_MOST_VALUES} different values"
    )


def _column(path: Path, name: str, table: Any) -> Any:
    if name not in table.column_names:
        there = ", ".join(table.column_names)
        raise DataError(f"{path}: has no column {name!r}; it has {there}")
    return table.column(name)


def _as_texts(path: Path, name: str, column: Any) -> list[str]:
    values = column.to_pylist()
    for row, value in enumerate(values):
        if value is None or value != value:
            raise DataError(f"{path}: row {row}, column {name!r}: empty; fill it in")
    return [str(value) for value in values]


def _scaled(path: Path, name: str, column: Any, ends: tuple[float, float]) -> NDArray[np.float64]:
    from pyarrow import types

    kind = column.type
    if not (types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)):
        raise DataError(
            f"{path}: column {name!r} is {kind}, and task.options.ranges declares numbers; "
            f"declare its texts with task.options.values"
        )
    numbers = column.cast("float64").to_numpy().astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise DataError(
            f"{path}: row {int(bad[0])}, column {name!r}: {numbers[bad[0]]} is not a finite "
            f"number ({len(bad)} such rows); fill it in, or leave the column out"
        )
    low, high = ends
    scaled: NDArray[np.float64] = (2 * (np.clip(numbers, low, high) - low) / (high - low) - 1)[
        :, None
    ]
    return scaled
