"""The label to predict: one class of several, a number, or any of several labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.tasks.tables.cells import Column
from fedsys.tasks.tables.file import TableFile
from fedsys.tasks.tables.texts import Texts, as_declared

__all__ = ["KINDS", "MISSING_CLASS", "Target", "label_lists"]

KINDS = ("class", "number", "labels")
MISSING_CLASS = "(missing)"
_YES, _NO = ("1", "true", "yes"), ("0", "false", "no")


@dataclass(frozen=True, kw_only=True)
class Target:
    """The label.

    Attributes:
        kind: ``class``, ``number`` or ``labels``.
        columns: the column that holds it; for labels, one column or one per label.
        classes: names of the classes or labels, in order.
        low: for a number, its smallest value, declared or seen.
        high: for a number, its largest value, declared or seen.
        centre: subtracted from a number.
        scale: a number is divided by it, after subtracting the centre.
        clipped: whether a number outside [low, high] is moved to the nearer end.
        separator: separator between labels in one text; empty for a column of lists.
        flag: whether a missing class is one more class.
        decimal: the decimal separator, if the table's format does not say it.
    """

    kind: str
    columns: tuple[str, ...]
    classes: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    centre: float = 0.0
    scale: float = 1.0
    clipped: bool = False
    separator: str = ""
    flag: bool = False
    decimal: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes or labels, including that of a missing class."""
        return (*self.classes, MISSING_CLASS) if self.flag else self.classes

    @property
    def outputs(self) -> int:
        """The number of outputs of a model."""
        return 1 if self.kind == "number" else len(self.names)

    def encode(
        self,
        table: TableFile,
        absent: Mapping[str, NDArray[np.bool_]],
        kept: NDArray[np.bool_],
        texts: Callable[..., Texts],
    ) -> tuple[NDArray[Any], dict[str, int], tuple[float | None, float | None]]:
        """(targets of the kept rows, rows of each class, smallest and largest number).

        Raises:
            DataError: a cell does not fit the declaration.
        """
        first = table.column(self.columns[0])
        missing = absent[self.columns[0]]
        if self.kind == "number":
            if self.decimal:
                first = first.written(self.decimal, first.thousands)
            remedy = "fix it, or say missing = [{value}] and when_missing = 'drop'"
            values = first.numbers(missing, remedy)[kept]
            scaled = (values - self.centre) / self.scale
            scaled = np.clip(scaled, -1, 1) if self.clipped else scaled
            return scaled.astype(np.float32), {}, (float(values.min()), float(values.max()))
        if self.kind == "labels":
            chosen = self._labels(table, absent, texts)[kept]
            counts = chosen.sum(axis=0).astype(np.int64).tolist()
            return chosen, dict(zip(self.classes, counts, strict=True)), (None, None)
        found = texts(first, missing, self.classes)
        places = as_declared(found, self.classes, "task.options.classes")[kept]
        if self.flag:
            places = np.where(places < 0, len(self.classes), places)
        tally = np.bincount(places, minlength=len(self.names)).tolist()
        return places, dict(zip(self.names, tally, strict=True)), (None, None)

    def _labels(
        self,
        table: TableFile,
        absent: Mapping[str, NDArray[np.bool_]],
        texts: Callable[..., Texts],
    ) -> NDArray[np.float32]:
        """(M, labels) of 0 and 1."""
        found = np.zeros((table.rows, len(self.classes)), dtype=np.float32)
        if len(self.columns) > 1:
            for at, name in enumerate(self.columns):
                column = table.column(name)
                different = texts(column, absent[name])
                lower = [text.casefold() for text in different.different]
                for code, text in enumerate(lower):
                    if text not in (*_YES, *_NO, "1.0", "0.0"):
                        raise column.place.cell(
                            name,
                            different.row_of(code),
                            different.different[code],
                            "is neither 0 nor 1, but a label's column has to hold these alone",
                            "fix it, or name one column as the label",
                        )
                yes = np.array([text in (*_YES, "1.0") for text in lower] + [False])
                found[:, at] = yes[different.codes]
            return found
        column = table.column(self.columns[0])
        place = {text: at for at, text in enumerate(self.classes)}
        for row, labels in enumerate(label_lists(column, self.separator)):
            for text in labels:
                if text not in place:
                    raise column.place.cell(
                        column.name, row, text, "is not one of task.options.classes", "declare it"
                    )
                found[row, place[text]] = 1
        return found


def label_lists(column: Column, separator: str) -> list[list[str]]:
    """Each row's labels, from a column of lists or of texts with several labels."""
    if column.kind == "list":
        return [each or [] for each in column.lists()]
    if not separator:
        raise column.place.column(
            column.name,
            "holds one text per row, but target = 'labels' needs several: say what separates "
            "them, e.g. separator = '|', name several columns as the label, or say target = "
            "'class'",
        )
    return [
        [part.strip() for part in (text or "").split(separator) if part.strip()]
        for text in column.texts.to_pylist()
    ]
