"""One column's cells as text, numbers or days; an error names the row and quotes its cell.

A column is converted as a whole or not at all: ``12O`` in a column of numbers is an error, not a
missing value, and ids keep their leading zeros.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import DataError

__all__ = ["ISO_DATE", "MARKS", "NUMBER", "Column", "Place", "plain_number", "such"]

MARKS = frozenset(
    ("?", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "#N/A", "<NA>", "-", "--", ".")
)
"""Common marks of a missing value; never taken for one unless the user says so."""

NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
ISO_DATE = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:?\d\d)?)?$"

_EXACT = 2.0**53
_QUOTED = 40
_SECONDS_OF_A_DAY = 86400.0


@dataclass(frozen=True)
class Place:
    """A file, for errors about it.

    Attributes:
        path: the file's path.
        private: whether errors must not quote the file's contents: so on a device, whose logs
            travel further than its data may.
    """

    path: Path
    private: bool = False

    def cell(self, column: str, row: int, value: object, problem: str, remedy: str) -> DataError:
        """An error about one cell.

        Args:
            column: the column's name.
            row: the row, counted from 0; the message counts from 1, below the header.
            value: the cell's value.
            problem: text that continues "VALUE ".
            remedy: text that may contain ``{value}``, for the value in quotes.
        """
        quoted = "the cell" if self.private or value in (None, "") else self.quote(value)
        advice = remedy.replace("{value}", "..." if self.private else self.quote(value))
        return DataError(
            f"{self.path}: column {column!r}, row {row + 1}: {quoted} {problem}; {advice}"
        )

    def column(self, column: str, problem: str) -> DataError:
        """An error about a whole column; `problem` may quote cells only if `private` is False."""
        return DataError(f"{self.path}: column {column!r} {problem}")

    def file(self, problem: str) -> DataError:
        """An error about the whole file."""
        return DataError(f"{self.path}: {problem}")

    def quote(self, value: object) -> str:
        """The value in quotes, shortened if it is long; dots if nothing may be quoted."""
        if self.private:
            return "..."
        text = str(value)
        return repr(text if len(text) <= _QUOTED else text[:_QUOTED] + "...")


@dataclass(frozen=True)
class Column:
    """A column of a file.

    Attributes:
        place: the file.
        name: the column's name.
        array: the cells as a ``pyarrow.ChunkedArray``: text as in the CSV, or a parquet type.
        decimal: the decimal separator of numbers in text.
        thousands: the separator of groups of three digits; empty if there is none.
    """

    place: Place
    name: str
    array: Any
    decimal: str = "."
    thousands: str = ""
    _missing: dict[frozenset[str], NDArray[np.bool_]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.array)

    def written(self, decimal: str, thousands: str = "") -> Column:
        """The same cells, with other separators in numbers."""
        return replace(self, decimal=decimal, thousands=thousands)

    @property
    def kind(self) -> str:
        """``text``, ``number``, ``date``, ``boolean`` or ``list``; else Arrow's type name."""
        from pyarrow import types

        kind = self.array.type
        if types.is_dictionary(kind):
            kind = kind.value_type
        for name, tests in {
            "boolean": (types.is_boolean,),
            "number": (types.is_integer, types.is_floating, types.is_decimal),
            "date": (types.is_date, types.is_timestamp),
            "text": (types.is_string, types.is_large_string, types.is_binary,
                     types.is_large_binary, types.is_string_view, types.is_null),
            "list": (types.is_list, types.is_large_list, types.is_fixed_size_list),
        }.items():  # fmt: skip
            if any(test(kind) for test in tests):
                return name
        return str(kind)

    @cached_property
    def texts(self) -> Any:
        """A ``ChunkedArray`` of text without spaces at the ends, null where the file has null.

        Raises:
            DataError: the column holds lists, bytes that are not text, or integers that a
                floating-point number cannot represent.
        """
        import pyarrow
        from pyarrow import compute, types

        array = self.array
        if types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        if types.is_floating(array.type):
            return self._integral(array.cast("float64", safe=False))
        if self.kind == "list" or types.is_nested(array.type):
            raise self.place.column(
                self.name,
                "holds lists, one per row; leave it out with task.options.ignore (as a label: say "
                "target = 'labels')",
            )
        try:
            array = array.cast(pyarrow.large_string() if _large(array.type) else pyarrow.string())
        except pyarrow.ArrowException:
            raise self.place.column(
                self.name, f"holds {self.array.type}, which is not text; leave it out"
            ) from None
        spaced = compute.match_substring_regex(array, r"^\s|\s$|^[^\x00-\x7f]|[^\x00-\x7f]$")
        # Usually there is nothing to trim, and no need to copy the column.
        return compute.utf8_trim_whitespace(array) if compute.any(spaced).as_py() else array

    def _integral(self, array: Any) -> Any:
        """Floating-point numbers as text. 3.0 becomes ``3``: integers are stored as floats where
        the column has a missing value."""
        import pyarrow

        chunks = []
        for chunk in array.chunks:
            numbers = chunk.to_numpy(zero_copy_only=False)
            finite = np.isfinite(numbers)
            whole = finite & (np.floor(numbers) == numbers)
            if (np.abs(numbers[whole]) >= _EXACT).any():
                raise self.place.column(
                    self.name,
                    "holds floating-point numbers beyond 2^53, where different ids become the same "
                    "number; write them as text or integers",
                )
            texts = [
                None if missing else str(int(number)) if is_whole else repr(float(number))
                for number, is_whole, missing in zip(numbers, whole, ~finite, strict=True)
            ]
            chunks.append(pyarrow.array(texts, pyarrow.string()))
        return pyarrow.chunked_array(chunks, pyarrow.string())

    def matches(self, pattern: str) -> NDArray[np.bool_]:
        """(M,) whether each text matches; False if it is null."""
        from pyarrow import compute

        found = compute.match_substring_regex(self.texts, pattern)
        return _flags(compute.fill_null(found, False))

    def missing(self, marks: Iterable[str]) -> NDArray[np.bool_]:
        """(M,) whether each cell is empty, null, NaN in a number column, or one of `marks`."""
        key = frozenset(marks)
        if key not in self._missing:
            self._missing[key] = self._find_missing(key)
        return self._missing[key]

    def _find_missing(self, marks: frozenset[str]) -> NDArray[np.bool_]:
        import pyarrow
        from pyarrow import compute

        if self.kind == "number":
            found = _flags(compute.is_null(self.array, nan_is_null=True))
            wanted = [float(mark) for mark in marks if plain_number(mark)]
            if wanted:
                found |= np.isin(_numpy(self.array.cast("float64", safe=False)), wanted)
            return found
        if self.kind in ("text", "boolean"):
            texts = self.texts
            empty = pyarrow.array(sorted({"", *marks}), texts.type)
            found = compute.or_kleene(compute.is_null(texts), compute.is_in(texts, empty))
            return _flags(compute.fill_null(found, True))
        return _flags(compute.is_null(self.array))

    def numbers(self, missing: NDArray[np.bool_], remedy: str) -> NDArray[np.float64]:
        """(M,) ``float64``, NaN where `missing`.

        Raises:
            DataError: a cell is not a finite number; `remedy` may contain ``{value}``.
        """
        import pyarrow

        if self.kind in ("number", "boolean"):
            array = self.array.cast("uint8") if self.kind == "boolean" else self.array
            values = _numpy(array.cast("float64", safe=False))
        elif self.kind == "text":
            texts = self.digits(missing)
            try:
                values = _numpy(texts.cast("float64", safe=False))
            except pyarrow.ArrowInvalid:
                raise self._no_number(missing, remedy) from None
        else:
            raise self.place.column(
                self.name, f"is declared a number and holds {self.kind}s ({self.array.type})"
            )
        values = np.where(missing, np.nan, values)
        bad = np.flatnonzero(~np.isfinite(values) & ~missing)
        if len(bad):
            row = int(bad[0])
            raise self._cell(row, self.at(row), "is not a finite number", remedy, len(bad))
        return values

    def digits(self, missing: NDArray[np.bool_]) -> Any:
        """Texts with a decimal point and without thousands separators; null if missing.

        A cell that does not use the column's separators becomes a text that is not a number.
        """
        import pyarrow
        from pyarrow import compute

        texts = compute.if_else(pyarrow.array(missing), None, self.texts)
        if self.decimal == "." and not self.thousands:
            return texts
        point, between = re.escape(self.decimal), re.escape(self.thousands)
        grouped = rf"|\d{{1,3}}({between}\d{{3}})+" if self.thousands else ""
        form = rf"^[+-]?((\d+{grouped})({point}\d*)?|{point}\d+)([eE][+-]?\d+)?$"
        good = compute.match_substring_regex(texts, form)
        if self.thousands:
            texts = compute.replace_substring(texts, self.thousands, "")
        texts = compute.replace_substring(texts, self.decimal, ".")
        return compute.if_else(compute.fill_null(good, True), texts, "no number")

    def numeric(self, missing: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(M,) which texts are numbers, by the column's separators; False where `missing`."""
        from pyarrow import compute

        good = compute.match_substring_regex(self.digits(missing), NUMBER)
        return _flags(compute.fill_null(good, False))

    def _no_number(self, missing: NDArray[np.bool_], remedy: str) -> DataError:
        bad = np.flatnonzero(~self.numeric(missing) & ~missing)
        row = int(bad[0]) if len(bad) else 0
        return self._cell(row, self.at(row), "is not a number", remedy, len(bad))

    def days(self, missing: NDArray[np.bool_], form: str, remedy: str) -> NDArray[np.float64]:
        """(M,) days since 1970-01-01, NaN where `missing`.

        Args:
            missing: (M,) cells to skip.
            form: format of dates in text, as for `datetime.strptime`; empty for ISO 8601.
            remedy: text that may contain ``{value}``.

        Raises:
            DataError: a cell is not a date.
        """
        import pyarrow
        from pyarrow import compute

        if self.kind == "date":
            found = self.array.cast(pyarrow.timestamp("us"), safe=False)
            return np.where(missing, np.nan, _days(found))
        if self.kind != "text":
            raise self.place.column(self.name, f"is declared a date and holds {self.array.type}")
        texts = compute.if_else(pyarrow.array(missing), None, self.texts)
        if form:
            found = compute.strptime(texts, format=form, unit="us", error_is_null=True)
        else:
            found = _iso(texts)
        values = _days(found)
        bad = np.flatnonzero(np.isnan(values) & ~missing)
        if len(bad):
            row = int(bad[0])
            how = f"is not a date written {form}" if form else "is not a date written 2024-12-31"
            raise self._cell(row, self.at(row), how, remedy, len(bad))
        return np.where(missing, np.nan, values)

    def coded(self, missing: NDArray[np.bool_]) -> tuple[list[str], NDArray[np.int64]]:
        """The distinct texts in the order of their first row, and (M,) each row's index among
        them, -1 where `missing`."""
        import pyarrow
        from pyarrow import compute

        texts = compute.if_else(pyarrow.array(missing), None, self.texts)
        encoded = texts.dictionary_encode().unify_dictionaries()
        if not encoded.num_chunks:
            return [], np.empty(0, dtype=np.int64)
        codes = [
            compute.fill_null(chunk.indices, -1).to_numpy(zero_copy_only=False)
            for chunk in encoded.chunks
        ]
        return encoded.chunk(0).dictionary.to_pylist(), np.concatenate(codes).astype(np.int64)

    def lists(self) -> list[list[str] | None]:
        """Each row's list as texts; None if the cell is null."""
        found: list[list[str] | None] = []
        for cell in self.array.to_pylist():
            if cell is None:
                found.append(None)
            elif any(isinstance(each, (list, dict)) or each is None for each in cell):
                raise self.place.column(self.name, "holds lists of lists, or lists with nulls")
            else:
                found.append([str(each).strip() for each in cell])
        return found

    def at(self, row: int) -> Any:
        """The value of a row, counted from 0."""
        return self.array[row].as_py()

    def _cell(self, row: int, value: object, problem: str, remedy: str, cells: int) -> DataError:
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str):
            value = value.strip()
        return self.place.cell(self.name, row, value, problem + such(cells, len(self)), remedy)


def such(cells: int, of: int) -> str:
    """In brackets, the number of cells like the one that is named; empty if it is the only one."""
    return f" ({cells} such cells of {of})" if cells > 1 else ""


def plain_number(text: str) -> bool:
    """Whether a text is a finite number with a decimal point and without separators."""
    return bool(re.match(NUMBER, text)) and math.isfinite(float(text))


def _large(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_large_string(kind) or types.is_large_binary(kind))


def _flags(array: Any) -> NDArray[np.bool_]:
    return np.array(_numpy(array), dtype=np.bool_)


def _numpy(array: Any) -> NDArray[Any]:
    found: NDArray[Any] = array.to_numpy()
    return found


def _iso(texts: Any) -> Any:
    """Timestamps without a time zone from ISO 8601 texts; null if a text is not one."""
    import pyarrow
    from pyarrow import compute

    fits = compute.fill_null(compute.match_substring_regex(texts, ISO_DATE), False)
    texts = compute.if_else(fits, texts, None)
    zoned = compute.fill_null(compute.match_substring_regex(texts, r"(Z|[+-]\d\d:?\d\d)$"), False)
    zoned = compute.and_(
        zoned, compute.fill_null(compute.greater(compute.utf8_length(texts), 10), False)
    )
    plain, moved = compute.if_else(zoned, None, texts), compute.if_else(zoned, texts, None)
    kind = pyarrow.timestamp("us")
    try:
        return compute.coalesce(
            plain.cast(kind), moved.cast(pyarrow.timestamp("us", "UTC")).cast(kind)
        )
    except pyarrow.ArrowInvalid:
        # Some day does not exist, such as 2024-02-31: convert one by one, so that it can be named.
        return pyarrow.chunked_array([[_moment(each) for each in texts.to_pylist()]], kind)


def _moment(text: str | None) -> Any:
    import datetime as dt

    if text is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.astimezone(dt.UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _days(moments: Any) -> NDArray[np.float64]:
    raw = _numpy(moments).astype("datetime64[us]")
    values = raw.astype(np.int64) / 1e6 / _SECONDS_OF_A_DAY
    return np.where(np.isnat(raw), np.nan, values)
