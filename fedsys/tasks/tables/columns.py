"""How rows of a table become features and targets: explicit, and the same for every row.

A `Columns` is either declared in ``[task.options]`` without looking at the data, or inferred from
the rows. Numbers become ``(value - centre) / scale``; texts become one-hot; a missing value that is
a category of its own gets a feature that indicates it. Given a `Columns`, the encoding of a row
depends on no other row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import ConfigError, DataError
from fedsys.tasks.tables.cells import Column
from fedsys.tasks.tables.file import TableFile
from fedsys.tasks.tables.missing import CATEGORY, DROP, REFUSE, Missing
from fedsys.tasks.tables.reading import ColumnRead, Reading
from fedsys.tasks.tables.targets import KINDS, Target
from fedsys.tasks.tables.texts import Texts, as_declared, ordered

__all__ = ["CategoryColumn", "Columns", "NumberColumn", "Prepared"]

_MEND = (
    "fix it, say missing = [{value}] and when_missing = 'drop' or 'category', or leave the "
    "column out"
)


@dataclass(frozen=True, kw_only=True)
class NumberColumn:
    """A number or a date; one feature, and a second one if missing values are a category.

    Attributes:
        name: the column's name.
        low: its smallest value, declared or seen; for a date in days since 1970-01-01.
        high: its largest value, declared or seen.
        centre: subtracted from values.
        scale: values are divided by it, after subtracting the centre.
        clipped: whether values outside [low, high] are moved to the nearer end.
        date: format of dates as for `datetime.strptime`, empty for ISO 8601; None for a number.
        decimal: the decimal separator, if the table's format does not say it.
        flag: whether a missing value becomes the centre, with a second feature that indicates it.
    """

    name: str
    low: float
    high: float
    centre: float
    scale: float
    clipped: bool
    date: str | None = None
    decimal: str = ""
    flag: bool = False

    @property
    def width(self) -> int:
        """Features."""
        return 2 if self.flag else 1

    def values(self, column: Column, missing: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(M,) float64 numbers or days, NaN where `missing`."""
        if self.date is not None:
            return column.days(missing, self.date, _MEND)
        if self.decimal:
            column = column.written(self.decimal, column.thousands)
        return column.numbers(missing, _MEND)

    def fill(
        self,
        features: NDArray[np.float32],
        column: Column,
        missing: NDArray[np.bool_],
        kept: NDArray[np.bool_],
    ) -> ColumnRead:
        """Write (M', width) features of the kept rows."""
        values, absent = self.values(column, missing)[kept], missing[kept]
        seen = values[~absent]
        outside = int(((seen < self.low) | (seen > self.high)).sum()) if self.clipped else 0
        if 2 * outside > len(seen) > 0:
            raise column.place.column(
                self.name,
                f"has {outside} of {len(seen)} values outside its declared range "
                f"[{self.low:g}, {self.high:g}]: is it in another unit? Fix the data, or "
                f"task.options.ranges",
            )
        scaled = (values - self.centre) / self.scale
        with np.errstate(over="ignore"):
            features[:, 0] = np.clip(scaled, -1, 1) if self.clipped else scaled
        if not np.isfinite(self.scale) or not np.isfinite(features[~absent, 0]).all():
            raise column.place.column(
                self.name, "holds numbers too large for float32; declare its range, or rescale it"
            )
        if self.flag:
            features[absent, 0] = 0
            features[:, 1] = absent
        low, high = (float(seen.min()), float(seen.max())) if len(seen) else (None, None)
        return ColumnRead(
            name=self.name,
            kind="number" if self.date is None else "date",
            low=low if self.date is None or low is None else _day(low),
            high=high if self.date is None or high is None else _day(high),
            missing=int(absent.sum()),
            outside=outside,
        )


@dataclass(frozen=True, kw_only=True)
class CategoryColumn:
    """A text, one-hot encoded.

    Attributes:
        name: the column's name.
        values: the texts that it may have.
        other: whether other texts are allowed, encoded as all zeros.
        flag: whether a missing value is one more category.
    """

    name: str
    values: tuple[str, ...]
    other: bool = False
    flag: bool = False

    @property
    def width(self) -> int:
        """Features."""
        return len(self.values) + int(self.flag)

    def fill(
        self,
        features: NDArray[np.float32],
        texts: Texts,
        kept: NDArray[np.bool_],
    ) -> ColumnRead:
        """Write (M', width) features of the kept rows."""
        places = as_declared(texts, self.values, f"task.options.values.{self.name}", self.other)
        codes = places[kept]
        known = np.flatnonzero(codes >= 0)
        features[known, codes[known]] = 1
        absent = texts.codes[kept] < 0
        if self.flag:
            features[absent, -1] = 1
        counts = np.bincount(codes[known], minlength=len(self.values))
        others = int((codes < 0).sum() - absent.sum())
        return ColumnRead(
            name=self.name,
            kind="category",
            counts=dict(zip(self.values, counts.tolist(), strict=True))
            | ({"(other)": others} if others else {}),
            missing=int(absent.sum()),
        )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Encoded rows: the M' of the file's M rows that were kept.

    Attributes:
        features: (M', width) ``float32``.
        targets: (M',) ``int64`` classes, (M',) ``float32`` scaled numbers, or (M', labels)
            ``float32`` of 0 and 1.
        natural: (M',) ``int64`` each row's client, if a column names them.
        clients: the clients' names.
        kept: (M,) whether each row of the file was kept.
        reading: what was read, for people.
    """

    features: NDArray[np.float32]
    targets: NDArray[Any]
    natural: NDArray[np.int64] | None
    clients: tuple[str, ...]
    kept: NDArray[np.bool_]
    reading: Reading


@dataclass(frozen=True, kw_only=True)
class Columns:
    """All columns that are used.

    Attributes:
        target: the label.
        features: the columns to predict it from, in this order.
        client: the column that names each row's client; may be empty.
        missing: what missing values look like and become.
        renamed: by column, texts to replace and their replacements.
        notes: notes for the reading.
    """

    target: Target
    features: tuple[NumberColumn | CategoryColumn, ...]
    client: str = ""
    missing: Missing = field(default_factory=Missing)
    renamed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """The number of features of a row."""
        return sum(each.width for each in self.features)

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the columns to read."""
        client = (self.client,) if self.client else ()
        return (*self.target.columns, *client, *(each.name for each in self.features))

    def without_client(self) -> Columns:
        """The same columns, for a table that need not name clients."""
        return replace(self, client="")

    def texts(
        self, column: Column, missing: NDArray[np.bool_], declared: Collection[str] = ()
    ) -> Texts:
        """A column's texts, without missing values and with renamed texts replaced.

        Raises:
            DataError: a text looks like a missing value, but is neither declared nor listed in
                ``missing``.
        """
        found, codes = column.coded(missing)
        renamed = self.renamed.get(column.name, {})
        self.missing.check_marks(column, found, codes, {*declared, *renamed})
        return Texts.of(column, found, codes, renamed)

    def prepare(self, table: TableFile, *, labelled: bool = True) -> Prepared:
        """Encode every row.

        Args:
            table: the table, with the columns that are used.
            labelled: whether targets are wanted; a table to be scored has none, and names no
                clients.

        Raises:
            DataError: a column or a cell does not fit; the message names column and row.
        """
        if not table.rows:
            raise table.place.file("no rows; at least 1 is needed")
        needed = self.used if labelled else tuple(each.name for each in self.features)
        absent = {name: self._absent(table, name) for name in dict.fromkeys(needed)}
        kept, dropped = self._kept(table, absent)
        places: dict[str, ColumnRead] = {}
        features = np.zeros((int(kept.sum()), self.width), dtype=np.float32)
        at = 0
        for each in self.features:
            column, part = table.column(each.name), features[:, at : at + each.width]
            if isinstance(each, NumberColumn):
                places[each.name] = each.fill(part, column, absent[each.name], kept)
            else:
                texts = self.texts(column, absent[each.name], each.values)
                places[each.name] = each.fill(part, texts, kept)
            at += each.width
        targets: NDArray[Any] = np.zeros(len(features), dtype=np.int64)
        counts: dict[str, int] = {}
        ends: tuple[float | None, float | None] = (None, None)
        clients: tuple[str, ...] = ()
        natural = None
        if labelled:
            targets, counts, ends = self.target.encode(table, absent, kept, self.texts)
            if self.client:
                texts = self.texts(table.column(self.client), absent[self.client])
                clients, natural = _clients(texts, kept)
        reading = Reading(
            file=table.place.path.name,
            described=table.described,
            rows=table.rows,
            dropped=dropped,
            clients=len(clients) if labelled and self.client else None,
            target=self.target.kind,
            label=self.target.columns,
            classes=counts,
            low=ends[0],
            high=ends[1],
            columns=tuple(places.values()),
            width=self.width,
            notes=self.notes,
            preparation=self.to_json(),
        )
        return Prepared(
            features=features,
            targets=targets,
            natural=natural,
            clients=clients,
            kept=kept,
            reading=reading,
        )

    def _absent(self, table: TableFile, name: str) -> NDArray[np.bool_]:
        column = table.column(name)
        absent = self.missing.of_column(column)
        treatment = self.missing.becomes(name)
        if treatment != REFUSE and absent.all():
            raise table.place.column(name, "has no value in any row; leave it out")
        barred = (self.client, *(self.target.columns if self.target.kind != "class" else ()))
        if treatment == CATEGORY and name in barred and absent.any():
            row = int(np.flatnonzero(absent)[0])
            raise table.place.cell(
                name,
                row,
                "",
                "is empty, and neither a client nor such a label can be unknown",
                f"say when_missing = {{ {name} = 'drop' }}",
            )
        return absent

    def _kept(
        self, table: TableFile, absent: Mapping[str, NDArray[np.bool_]]
    ) -> tuple[NDArray[np.bool_], dict[str, int]]:
        kept = np.ones(table.rows, dtype=np.bool_)
        dropped: dict[str, int] = {}
        for name, missing in absent.items():
            if self.missing.becomes(name) == DROP and (kept & missing).any():
                dropped[name] = int((kept & missing).sum())
                kept &= ~missing
        if not kept.any():
            worst = max(dropped, key=lambda name: dropped[name])
            raise table.place.file(
                f"no row is left, since each lacks a value, most often in column {worst!r}; leave "
                f"such columns out, or say when_missing = 'category'"
            )
        return kept, dropped

    def to_json(self) -> dict[str, Any]:
        """Plain values, which `from_json` reads."""
        return {
            "version": 1,
            "target": asdict(self.target),
            "features": [
                {"kind": "number" if isinstance(each, NumberColumn) else "category"} | asdict(each)
                for each in self.features
            ],
            "client": self.client,
            "renamed": {name: dict(texts) for name, texts in self.renamed.items()},
            **self.missing.to_options(),
        }

    @classmethod
    def from_json(cls, body: Any, where: str) -> Columns:
        """The inverse of `to_json`, for untrusted input.

        Raises:
            DataError: `body` is not of the form that `to_json` writes.
        """
        kinds = {"number": NumberColumn, "category": CategoryColumn}
        try:
            if body["version"] != 1:
                raise ValueError(f"version {body['version']!r}")
            features = []
            for given in body["features"]:
                entry = dict(given)
                made = kinds[entry.pop("kind")](**_typed(entry))
                features.append(made)
            target, client = Target(**_typed(dict(body["target"]))), str(body["client"])
            if target.kind not in KINDS or not target.columns:
                raise ValueError(f"target {target.kind!r} of {len(target.columns)} columns")
            return cls(
                target=target,
                features=tuple(features),
                client=client,
                missing=Missing.of(body, (*target.columns, client)),
                renamed={
                    str(name): {str(old): str(new) for old, new in texts.items()}
                    for name, texts in body["renamed"].items()
                },
            )
        except (ConfigError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"[:200]
            raise DataError(f"{where}: not a preparation of a table: {reason}") from None


_TYPES: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "low": (float, int),
    "high": (float, int),
    "centre": (float, int),
    "scale": (float, int),
    "clipped": (bool,),
    "date": (str, type(None)),
    "decimal": (str,),
    "flag": (bool,),
    "other": (bool,),
    "separator": (str,),
    "kind": (str,),
}


def _typed(entry: dict[str, Any]) -> dict[str, Any]:
    """Check the types of an entry's values; lists become tuples of text."""
    found: dict[str, Any] = {}
    for key, value in entry.items():
        if isinstance(value, (list, tuple)):
            if not all(type(each) is str for each in value):
                raise ValueError(f"{key} holds something other than text")
            found[key] = tuple(value)
        elif key in _TYPES and type(value) in _TYPES[key]:
            found[key] = value
        else:
            raise ValueError(f"{key} is of the wrong type")
    if not found.get("scale", 1.0) > 0:
        raise ValueError("scale is not above 0")
    return found


def _clients(texts: Texts, kept: NDArray[np.bool_]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The clients of the kept rows, sorted, and (M',) each kept row's index among them."""
    codes = texts.codes[kept]
    there = np.unique(codes)
    names = ordered([texts.different[code] for code in there])
    place = {name: at for at, name in enumerate(names)}
    numbers = np.zeros(len(texts.different), dtype=np.int64)
    for code in there:
        numbers[code] = place[texts.different[code]]
    return tuple(names), numbers[codes]


def _day(days: float) -> str:
    return str(np.datetime64(int(np.floor(days)), "D"))
