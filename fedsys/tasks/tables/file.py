"""Reads a CSV or parquet file without guessing what its cells mean.

Every cell of a CSV stays text. What the file's first bytes and its header state is relied on: a
byte-order mark, the separator between the header's names. What could only be guessed from the rows,
such as the encoding, the user has to state.
"""

from __future__ import annotations

import contextlib
import csv as csv_module
import io
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fedsys.errors import ConfigError, DataError
from fedsys.tasks.options import nearest
from fedsys.tasks.tables.cells import Column, Place, plain_number

__all__ = [
    "ENCODINGS",
    "MAX_ROWS",
    "SUFFIXES",
    "Format",
    "TableFile",
    "open_table",
    "table_of",
    "tidy_name",
]

MAX_BYTES = 4 << 30
MAX_ROWS = 50_000_000
SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
ENCODINGS = (
    "utf-8",
    "utf-16",
    "latin-1",
    "iso-8859-2",
    "iso-8859-15",
    "cp1250",
    "cp1251",
    "cp1252",
    "shift_jis",
    "euc_jp",
    "euc_kr",
    "gb18030",
    "big5",
)
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_LINE = 1 << 24
_HEADER = 1 << 20
_BLOCK = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a CSV is written, as far as it was stated.

    Attributes:
        delimiter: separator between cells; empty to take it from the header.
        encoding: one of `ENCODINGS`; empty for that of the byte-order mark, or UTF-8.
        decimal: decimal separator, ``.`` or ``,``; empty if it was not stated.
        thousands: separator of groups of three digits; empty for none.
    """

    delimiter: str = ""
    encoding: str = ""
    decimal: str = ""
    thousands: str = ""

    def __post_init__(self) -> None:
        if self.delimiter and self.delimiter not in _SEPARATORS:
            raise ConfigError(
                f"task.options.delimiter = {self.delimiter!r}: allowed are "
                f"{', '.join(map(repr, _SEPARATORS))}"
            )
        if self.encoding and self.encoding not in ENCODINGS:
            raise ConfigError(
                f"task.options.encoding = {self.encoding!r}: allowed are {', '.join(ENCODINGS)}"
                f"{nearest(self.encoding, ENCODINGS)}"
            )
        if self.decimal not in ("", ".", ","):
            raise ConfigError(f"task.options.decimal = {self.decimal!r}: allowed are '.' and ','")
        if self.thousands not in ("", ".", ",", "'", " ") or (
            self.thousands and self.thousands == (self.decimal or ".")
        ):
            raise ConfigError(
                f"task.options.thousands = {self.thousands!r}: allowed are ',', '.', \"'\" and "
                f"' ', but not the decimal separator"
            )


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """An open table.

    Attributes:
        place: the file.
        names: names of the columns that were read, in the file's order.
        table: ``pyarrow.Table`` of those columns.
        format: the file's format, with the delimiter and the encoding filled in.
        kind: what kind of file it is, if not a CSV.
    """

    place: Place
    names: tuple[str, ...]
    table: Any
    format: Format
    kind: str = "parquet"
    _columns: dict[str, Column] = field(default_factory=dict, repr=False, compare=False)

    @property
    def rows(self) -> int:
        """M, the number of rows."""
        return int(self.table.num_rows)

    @property
    def described(self) -> str:
        """What kind of file it is, for people."""
        if not self.format.delimiter:
            return self.kind
        words = f"csv, separated by {_SEPARATORS[self.format.delimiter]}, {self.format.encoding}"
        return words + (", decimal commas" if self.format.decimal == "," else "")

    def column(self, name: str) -> Column:
        """One column.

        Raises:
            DataError: there is no such column; the message lists those that exist.
        """
        found = tidy_name(name)
        if found not in self.names:
            raise _no_column(self.place, found, self.names)
        if found not in self._columns:
            self._columns[found] = Column(
                self.place,
                found,
                self.table.column(self.names.index(found)),
                self.format.decimal or ".",
                self.format.thousands,
            )
        return self._columns[found]


def tidy_name(name: str) -> str:
    """A column's name in composed Unicode (NFC), without spaces at the ends.

    >>> tidy_name(" gro\\u0308\\u00dfe ") == "gr\\u00f6\\u00dfe"
    True
    """
    return unicodedata.normalize("NFC", name).strip()


def open_table(place: Place, form: Format, columns: Iterable[str] | None = None) -> TableFile:
    """Read a file, or some of its columns.

    Args:
        place: the file; its name ends in one of `SUFFIXES`, in upper or lower case.
        form: what was stated about its format.
        columns: the columns to read; a field of a struct is ``column.field``. None for all.

    Raises:
        DataError: the file is unreadable or too large, or a column is missing or appears twice.
    """
    path, wanted = place.path, None if columns is None else [tidy_name(each) for each in columns]
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise place.file(f"the name must end in {', '.join(SUFFIXES)}")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise place.file(f"larger than {MAX_BYTES} bytes; split it")
        if not size:
            raise place.file("is empty; a header and rows are needed")
        if kind in (".parquet", ".pq"):
            return _parquet(place, wanted)
        return _csv(place, form, wanted, "\t" if kind == ".tsv" else "")
    except OSError as error:
        raise place.file(f"cannot be read: {(error.strerror or str(error)).lower()}") from None


def _parquet(place: Place, wanted: list[str] | None) -> TableFile:
    import pyarrow
    from pyarrow import parquet

    try:
        metadata = parquet.read_metadata(place.path)
        if metadata.num_rows > MAX_ROWS:
            raise place.file(f"{metadata.num_rows} rows; at most {MAX_ROWS} are read")
        schema = metadata.schema.to_arrow_schema()
        _once(place, schema.names)
        roots = None
        if wanted is not None:
            roots = [
                name
                for name in schema.names
                if any(tidy_name(name) == each.split(".")[0] or tidy_name(name) == each
                       for each in wanted)
            ]  # fmt: skip
        table = parquet.read_table(place.path, columns=roots)
    except (OSError, pyarrow.ArrowException) as error:
        text = "" if place.private else ": " + " ".join(str(error).split())[:200]
        raise place.file(f"cannot be read as parquet{text}") from None
    return table_of(place, table, wanted, everything=schema.names)


def table_of(
    place: Place,
    table: Any,
    wanted: Iterable[str] | None = None,
    *,
    everything: Iterable[str] | None = None,
    form: Format | None = None,
    kind: str = "parquet",
) -> TableFile:
    """An open table of typed columns, whose structs are read by field.

    Args:
        place: where it is from.
        table: ``pyarrow.Table``.
        wanted: tidy names of the columns to keep; None for all.
        everything: the names of all columns, for errors; None for those of the table.
        form: how numbers in texts are written.
        kind: what kind of file it is.

    Raises:
        DataError: a column is missing or appears twice.
    """
    import pyarrow

    every = table.column_names if everything is None else everything
    while any(pyarrow.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    names = tuple(map(tidy_name, table.column_names))
    _once(place, names)
    if wanted is not None:
        wanted, everything = list(wanted), tuple(map(tidy_name, every))
        for each in wanted:
            if each not in names:
                fields = [name for name in names if name.startswith(each + ".")]
                raise _no_column(place, each, fields or everything)
        table = table.select([names.index(each) for each in dict.fromkeys(wanted)])
        names = tuple(dict.fromkeys(wanted))
    return TableFile(place=place, names=names, table=table, format=form or Format(), kind=kind)


def _csv(place: Place, form: Format, wanted: list[str] | None, usual: str) -> TableFile:
    import pyarrow
    from pyarrow import csv

    encoding, line = _first_line(place, form.encoding)
    delimiter = form.delimiter or usual or _delimiter(place, line)
    try:
        cells = next(csv_module.reader([line], delimiter=delimiter), [])
    except csv_module.Error as error:
        raise place.file(f"its header cannot be read: {error}; is it a table?") from None
    names = [tidy_name(each) for each in cells]
    _check_header(place, names)
    for each in wanted or ():
        if each not in names:
            raise _no_column(place, each, names)
    # The last column is always read: a quotation mark that is never closed swallows all rows up to
    # the file's end, which shows in that column.
    chosen = list(dict.fromkeys([*(wanted if wanted is not None else names), names[-1]]))
    refused: list[Any] = []

    def refuse(row: Any) -> str:
        refused.append(row)
        return "error"

    def read(threads: bool) -> Any:
        return csv.read_csv(
            place.path,
            read_options=csv.ReadOptions(
                column_names=names,
                skip_rows=1,
                block_size=_BLOCK,
                encoding="utf8" if encoding == "utf-8" else encoding,
                use_threads=threads,
            ),
            parse_options=csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse
            ),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pyarrow.string()), include_columns=chosen
            ),
        )

    try:
        table = read(True)
    except (pyarrow.ArrowException, UnicodeError) as error:
        raise _unreadable(place, encoding, len(names), refused, read, error) from None
    if table.num_rows > MAX_ROWS:
        raise place.file(f"{table.num_rows} rows; at most {MAX_ROWS} are read")
    if table.num_rows and (table.column(names[-1])[-1].as_py() or "").endswith("\n"):
        raise place.file(
            f"a quotation mark in row {table.num_rows} is never closed, so that the rest of the "
            f"file is one cell; close it"
        )
    kept = [name for name in names if name in (wanted if wanted is not None else names)]
    return TableFile(
        place=place,
        names=tuple(kept),
        table=table.select(kept),
        format=Format(
            delimiter=delimiter, encoding=encoding, decimal=form.decimal, thousands=form.thousands
        ),
    )


def _first_line(place: Place, said: str) -> tuple[str, str]:
    """(encoding, the header's line)."""
    with place.path.open("rb") as file:
        start = file.read(_HEADER)
    encoding = said or "utf-8"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif start.startswith(b"\xef\xbb\xbf"):
        start, encoding = start[3:], "utf-8"
    try:
        # A character that is cut in two at the end of `start` does no harm.
        text = io.TextIOWrapper(io.BytesIO(start), encoding=encoding, newline="").readline()
    except UnicodeError:
        raise _not_encoded(place, encoding) from None
    if "\x00" in text:
        raise place.file(
            "its header has zero bytes; if it is UTF-16, say encoding = 'utf-16' or save it as "
            "UTF-8"
        )
    line = text.rstrip("\r\n")
    if not line.strip():
        raise place.file("its first line is empty; it has to name the columns")
    if len(re.sub(r'""', "", line)) and line.count('"') % 2:
        raise place.file("its header has a quotation mark that is not closed on its line")
    return encoding, line.split("\r")[0]


def _delimiter(place: Place, header: str) -> str:
    outside = re.sub(r'"[^"]*"', "", header)
    found = [each for each in _SEPARATORS if each in outside]
    if len(found) > 1:
        names = " and ".join(_SEPARATORS[each] for each in found)
        raise place.file(
            f"its header has {names}; say which separates columns, as delimiter = {found[0]!r}"
        )
    return found[0] if found else ","


def _check_header(place: Place, names: list[str]) -> None:
    _once(place, names)
    if names and all(plain_number(name) for name in names):
        raise place.file(
            "its first line holds numbers alone, but it has to name the columns; add a header"
        )


def _once(place: Place, names: Iterable[str]) -> None:
    seen: dict[str, int] = {}
    for at, name in enumerate(names, start=1):
        tidy = tidy_name(name)
        if tidy in seen:
            what = repr(tidy) if tidy else "without a name"
            raise place.file(
                f"column {what} appears twice, as columns {seen[tidy]} and {at}; rename one"
            )
        seen[tidy] = at


def _no_column(place: Place, name: str, names: Iterable[str]) -> DataError:
    there = list(names)
    shown = ", ".join(there[:30]) + (f" and {len(there) - 30} more" if len(there) > 30 else "")
    return place.file(f"has no column {name!r}{nearest(name, there)}; it has {shown}")


def _not_encoded(place: Place, encoding: str) -> DataError:
    """An error that names the first line not in that encoding, and suggests others."""
    where = ""
    with place.path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LINE), b""), start=1):
            try:
                line.decode(encoding)
            except UnicodeError:
                where = f"line {number} "
                break
    return place.file(
        f"{where}is not {encoding}; say how it is encoded, e.g. encoding = 'latin-1' (Western "
        f"Europe) or 'cp1252' (Windows), or save it as UTF-8"
    )


def _unreadable(
    place: Place, encoding: str, columns: int, refused: list[Any], read: Any, error: Exception
) -> DataError:
    """Why pyarrow failed: a row of the wrong length, an encoding, or its own message."""
    import pyarrow

    if refused:
        refused.clear()
        with contextlib.suppress(pyarrow.ArrowException):
            read(False)  # slower, and it counts rows
        first = refused[0]
        row = "" if first.number is None else f"row {first.number - 1} "
        shown = "" if place.private else f": {place.quote(first.text)}"
        return place.file(
            f"{row}has {first.actual_columns} cells where the header has {columns}{shown}; put "
            f"quotation marks around cells that hold the separator"
        )
    if isinstance(error, UnicodeError) or "invalid UTF8" in str(error):
        return _not_encoded(place, encoding)
    text = "" if place.private else ": " + " ".join(str(error).split())[:200]
    return place.file(f"cannot be read as csv{text}")
