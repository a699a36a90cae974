"""A description of a table that was read: printed before the first round, and stored with the run.

It counts rows and names values, so it stays with those who hold the data: it is never published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["ColumnRead", "Reading"]

_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class ColumnRead:
    """One column.

    Attributes:
        name: the column's name.
        kind: ``number``, ``date`` or ``category``.
        low: the smallest number or the first date; None if there is none.
        high: the largest number or the last date; None if there is none.
        counts: for a category, the number of rows by text.
        missing: number of rows without a value that were kept.
        outside: number of rows outside the declared range.
    """

    name: str
    kind: str
    low: float | str | None = None
    high: float | str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    missing: int = 0
    outside: int = 0

    def line(self) -> str:
        """One line for people."""
        if self.kind == "category":
            words = f"{self.name}: {_categories(len(self.counts))}, {_listed(self.counts)}"
        else:
            words = f"{self.name}: {self.kind}, {_plain(self.low)} to {_plain(self.high)}"
        if self.missing:
            words += f"; {self.missing} missing"
        if self.outside:
            words += f"; {self.outside} outside its range, taken as its ends"
        return words


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A table that was read.

    Attributes:
        file: the file's name.
        described: the file's format.
        rows: number of rows in the file.
        dropped: rows that were left out for a missing value, by the first column that lacked one.
        clients: number of clients, if a column names them.
        target: ``class``, ``number`` or ``labels``.
        label: the label's column or columns.
        classes: number of rows of each class, or with each label.
        low: smallest number to predict.
        high: largest number to predict.
        columns: the columns of which features are made.
        width: number of features of a row.
        notes: possible mistakes that were not refused.
        preparation: how rows become features, as `Columns.to_json` writes it.
    """

    file: str
    described: str
    rows: int
    dropped: Mapping[str, int]
    clients: int | None
    target: str
    label: tuple[str, ...]
    classes: Mapping[str, int]
    low: float | None
    high: float | None
    columns: tuple[ColumnRead, ...]
    width: int
    notes: tuple[str, ...] = ()
    preparation: Mapping[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Text for people, one fact per line."""
        left_out = sum(self.dropped.values())
        first = f"read {self.file} ({self.described}): {self.rows - left_out} rows"
        if self.clients is not None:
            first += f" of {self.clients} clients"
        if left_out:
            why = ", ".join(f"{count} without {name}" for name, count in self.dropped.items())
            first += f"; {left_out} of {self.rows} left out: {why}"
        label = ", ".join(self.label)
        if self.target == "number":
            goal = f"  label {label}: a number, {_plain(self.low)} to {_plain(self.high)}"
        elif self.target == "labels":
            goal = f"  label {label}: any of {len(self.classes)}, {_listed(self.classes)}"
        else:
            goal = f"  label {label}: {len(self.classes)} classes, {_listed(self.classes)}"
        shown = [f"  {column.line()}" for column in self.columns[: 4 * _SHOWN]]
        if len(self.columns) > len(shown):
            shown.append(f"  and {len(self.columns) - len(shown)} columns more")
        return [first, goal, *shown, *(f"  note: {note}" for note in self.notes)]

    def summary(self) -> str:
        """One line for a log, without values."""
        left_out = sum(self.dropped.values())
        return (
            f"read {self.file} ({self.described}): {self.rows - left_out} of {self.rows} rows, "
            f"{len(self.columns)} columns, {self.width} features"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``data.json``."""
        return {"version": 1, **asdict(self)}


def _listed(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{text} ({count})" for text, count in list(counts.items())[:_SHOWN])
    return " ".join(shown.split()) + (", ..." if len(counts) > _SHOWN else "")


def _categories(number: int) -> str:
    return "1 category" if number == 1 else f"{number} categories"


def _plain(value: float | str | None) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
