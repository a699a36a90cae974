"""Infers the columns of a table from its rows if these are unambiguous; else asks, in one line.

Everything here looks at all rows, so that one client's row changes how the others are prepared:
privacy claims do not cover what is inferred. `fedsys task schema` writes it down for people to
edit, and what they declare is covered.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedsys.tasks.tables.cells import MARKS, Column, plain_number
from fedsys.tasks.tables.columns import CategoryColumn, Columns, NumberColumn
from fedsys.tasks.tables.evidence import (
    as_numbers,
    bad_number,
    check_ids,
    check_units,
    looks_like_dates,
)
from fedsys.tasks.tables.file import TableFile, tidy_name
from fedsys.tasks.tables.missing import CATEGORY, DROP, Missing
from fedsys.tasks.tables.targets import Target, label_lists
from fedsys.tasks.tables.texts import Texts, alike, ordered

__all__ = ["MAX_CATEGORIES", "MAX_CLASSES", "Wanted", "inferred"]

MAX_CATEGORIES = 64
MAX_CLASSES = 1000
_MOST_CODES = 100
_SENTINELS = (-1.0, -9.0, -99.0, -999.0, -9999.0)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user stated about a table whose columns are not declared.

    Attributes:
        label: the column, or columns, to predict.
        target: ``class``, ``number`` or ``labels``; empty to infer it.
        client: the column that names clients; may be empty.
        ignored: columns to leave out.
        kinds: by column, ``number``, ``text`` or ``date``.
        dates: by column, the format of its dates.
        missing: what missing values look like and become.
        renamed: by column, texts to replace and their replacements.
        separator: separator between labels in one text.
        scaled: whether numbers are standardised.
    """

    label: tuple[str, ...]
    target: str = ""
    client: str = ""
    ignored: tuple[str, ...] = ()
    kinds: Mapping[str, str]
    dates: Mapping[str, str]
    missing: Missing
    renamed: Mapping[str, Mapping[str, str]]
    separator: str = ""
    scaled: bool = True


def inferred(table: TableFile, wanted: Wanted) -> Columns:
    """The columns as inferred from the rows.

    Raises:
        DataError: the rows are ambiguous; names the column, the row and its cell, and says which
            option decides.
    """
    return _Inference(table, wanted).columns()


class _Inference:
    def __init__(self, table: TableFile, wanted: Wanted) -> None:
        self._table = table
        self._wanted = wanted
        self._place = table.place
        self._notes: list[str] = []
        self._bare = Columns(
            target=Target(kind="class", columns=wanted.label),
            features=(),
            client=wanted.client,
            missing=wanted.missing,
            renamed=wanted.renamed,
        )

    def columns(self) -> Columns:
        """All columns."""
        wanted, names = self._wanted, self._table.names
        if self._table.rows < 2:
            raise self._place.file(f"{self._table.rows} rows; at least 2 are needed")
        client = (wanted.client,) if wanted.client else ()
        special = [tidy_name(name) for name in (*wanted.label, *client, *wanted.ignored)]
        for name in (*special, *wanted.kinds, *wanted.dates):
            self._table.column(name)  # raises DataError if there is no such column
        left = [name for name in names if name not in special and not self._is_index(name)]
        if not left:
            raise self._place.file(f"there is no column to learn from besides {special}")
        kept = self._kept([*special[: len(wanted.label) + len(client)], *left])
        target = self._target(kept)
        if client:
            self._check_clients()
        features = tuple(self._feature(name, kept) for name in left)
        return replace(self._bare, target=target, features=features, notes=tuple(self._notes))

    def _is_index(self, name: str) -> bool:
        """Whether a column is the row numbers that pandas writes, or the empty column that comes
        of a separator at every line's end."""
        if re.fullmatch(r"__index_level_\d+__", name):
            self._notes.append(f"column {name!r} is the index that pandas stored and was left out")
            return True
        if name not in ("", "Unnamed: 0"):
            return False
        column = self._table.column(name)
        if not name and column.missing(()).all():
            self._notes.append("the column without a name or a value was left out")
            return True
        if column.texts.to_pylist() == [str(row) for row in range(len(column))]:
            what = repr(name) if name else "without a name"
            self._notes.append(f"the column {what} counts rows and was left out")
            return True
        if name:
            return False
        raise self._place.file(
            "a column has no name; give it one in the header, or leave it out with "
            "task.options.ignore = ['']"
        )

    def _kept(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """(M,) rows that are not dropped for a missing value: the rows to infer from."""
        kept = np.ones(self._table.rows, dtype=np.bool_)
        for name in names:
            if self._wanted.missing.becomes(name) == DROP:
                kept &= ~self._wanted.missing.of_column(self._table.column(name))
        return kept if kept.any() else ~kept

    def _flag(self, name: str, missing: NDArray[np.bool_]) -> bool:
        return self._wanted.missing.becomes(name) == CATEGORY and bool(missing.any())

    def _absent(self, column: Column) -> NDArray[np.bool_]:
        """(M,) which cells are missing; a column without any value is refused."""
        marks = MARKS if self._wanted.missing.marks is None else self._wanted.missing.marks
        if column.missing(marks).all():
            raise self._place.column(
                column.name,
                "has no value in any row; leave it out with task.options.ignore",
            )
        return self._wanted.missing.of_column(column)

    # The label

    def _target(self, kept: NDArray[np.bool_]) -> Target:
        wanted = self._wanted
        if len(wanted.label) > 1:
            if wanted.target not in ("", "labels"):
                raise self._place.file(
                    f"target = {wanted.target!r} has one column; several are target = 'labels'"
                )
            return Target(kind="labels", columns=wanted.label, classes=wanted.label)
        column = self._table.column(wanted.label[0])
        if column.kind not in ("text", "number", "boolean", "date", "list"):
            raise self._place.column(
                column.name, f"holds {column.array.type}, which cannot be a label"
            )
        if wanted.target == "labels":
            return self._labels(column)
        if column.kind == "list":
            raise self._place.column(
                column.name,
                "holds lists; say target = 'labels' where a row has any of several labels",
            )
        if column.kind == "date" and wanted.target != "class":
            raise self._place.column(
                column.name, "holds dates, which cannot be a label; say target = 'class' if so"
            )
        missing = self._absent(column)
        numeric = None if wanted.target == "class" else self._as_numbers(column, missing)
        if wanted.target == "number" or (
            numeric is not None and self._is_quantity(column, numeric, missing)
        ):
            return self._number_target(numeric if numeric is not None else column, missing, kept)
        said = wanted.target or wanted.kinds.get(column.name, "")
        if numeric is None and not said and column.kind == "text":
            if looks_like_dates(column, missing):
                raise self._place.column(
                    column.name, "holds dates, which cannot be a label; say target = 'class' if so"
                )
            texts, codes = column.coded(missing)
            check_units(column, texts, codes, "target = 'class'")
        return self._class_target(column, missing)

    def _is_quantity(self, column: Column, numeric: Column, missing: NDArray[np.bool_]) -> bool:
        """Whether a label of numbers is to be predicted as a number; raises if that is unclear."""
        numbers = numeric.numbers(missing, "fix it")
        check_ids(
            column,
            np.where(missing, 0.0, numbers),
            "say target = 'class' if it denotes a class, or target = 'number' if it is to be "
            "predicted as a number",
        )
        values = numbers[~missing]
        different = np.unique(values)
        if (different != np.floor(different)).any() or (np.abs(different) >= 2**53).any():
            return True
        whole, count = different.astype(np.int64), len(different)
        if count <= 2:
            return False
        contiguous = bool((np.diff(whole) == 1).all())
        if whole[0] == -1 and contiguous and count <= _MOST_CODES:
            row = int(np.flatnonzero(values == -1)[0])
            row = int(np.flatnonzero(~missing)[row])
            raise self._place.cell(
                column.name,
                row,
                "-1",
                f"besides classes 0 to {whole[-1]} looks like an unknown label "
                f"({int((values == -1).sum())} such rows of {len(column)})",
                f"say missing = {{ {column.name} = [{{value}}] }} and when_missing = 'drop', or "
                f"classes that hold it, or target = 'class'",
            )
        if contiguous and whole[0] in (0, 1) and count <= _MOST_CODES and 2 * count <= len(values):
            return False
        if count > _MOST_CODES or 2 * count > len(values):
            return True
        low, high = (self._place.quote(whole[0]), self._place.quote(whole[-1]))
        raise self._place.column(
            column.name,
            f"holds {count} different whole numbers from {low} to {high}: say target = 'class' "
            f"if they denote classes, or target = 'number' if they are to be predicted as a number",
        )

    def _number_target(
        self, column: Column, missing: NDArray[np.bool_], kept: NDArray[np.bool_]
    ) -> Target:
        remedy = "fix it, or say missing = [{value}] and when_missing = 'drop'"
        values = column.numbers(missing, remedy)[kept & ~missing]
        if not len(values) or values.min() == values.max():
            raise self._place.column(column.name, "holds one number only")
        return Target(
            kind="number",
            columns=(column.name,),
            low=float(values.min()),
            high=float(values.max()),
            centre=float(values.mean()) if self._wanted.scaled else 0.0,
            scale=float(values.std()) if self._wanted.scaled else 1.0,
            decimal=column.decimal if column.decimal == "," else "",
        )

    def _class_target(self, column: Column, missing: NDArray[np.bool_]) -> Target:
        texts = self._bare.texts(column, missing)
        classes = ordered(texts.different)
        self._check_alike(texts)
        flag = self._flag(column.name, missing)
        if len(classes) + flag < 2:
            raise self._place.column(
                column.name, f"holds one class only: {self._place.quote(classes[0])}"
            )
        if len(classes) > MAX_CLASSES:
            raise self._place.column(
                column.name,
                f"has {len(classes)} different values, more than {MAX_CLASSES}: is it a class? "
                f"Say target = 'number' if it is a number",
            )
        once = int((texts.counts() == 1).sum())
        if 2 * once > len(classes) > 20:
            self._notes.append(f"{once} of {len(classes)} classes have a single row")
        return Target(kind="class", columns=(column.name,), classes=tuple(classes), flag=flag)

    def _check_alike(self, texts: Texts) -> None:
        """Refuse classes that differ only in case, spaces, punctuation or number format."""
        seen: dict[str, str] = {}
        for text in ordered(texts.different):
            key = _same_number(text) or alike(text)
            other = seen.setdefault(key, text)
            if other == text:
                continue
            code, name = texts.different.index(text), texts.column.name
            keep = self._place.quote(other)
            raise self._place.cell(
                name,
                texts.row_of(code),
                text,
                f"and {keep} are two classes that differ only in case, spaces or punctuation",
                f"say rename = {{ {name} = {{ {{value}} = {keep} }} }} if they are one, or list "
                f"both in classes",
            )

    def _labels(self, column: Column) -> Target:
        if column.kind not in ("list", "text"):
            raise self._place.column(
                column.name,
                "holds one value per row, but target = 'labels' needs several: name several "
                "columns as the label",
            )
        self._wanted.missing.of_column(column)
        found = label_lists(column, self._wanted.separator)
        classes = ordered(sorted({text for labels in found for text in labels}))
        if not 2 <= len(classes) <= MAX_CLASSES:
            raise self._place.column(
                column.name,
                f"holds {len(classes)} different labels; 2 to {MAX_CLASSES} are allowed",
            )
        return Target(
            kind="labels",
            columns=(column.name,),
            classes=tuple(classes),
            separator=self._wanted.separator,
        )

    # The client

    def _check_clients(self) -> None:
        column = self._table.column(self._wanted.client)
        if column.kind not in ("text", "number", "boolean", "date"):
            raise self._place.column(
                column.name,
                f"holds {column.array.type}, which cannot name a client; a field of a struct is "
                f"{column.name}.FIELD",
            )
        texts = self._bare.texts(column, self._absent(column))
        for one, other in _two_ways(texts.different):
            self._notes.append(
                f"clients {self._place.quote(one)} and {self._place.quote(other)} differ only in "
                f"how a number is written; ids are text, so these are two clients"
            )
            break
        for one, other in _two_forms(texts.different):
            self._notes.append(
                f"clients {self._place.quote(one)} and {self._place.quote(other)} look alike and "
                f"are two Unicode forms of one text; ids are text, so these are two clients"
            )
            break

    # Features

    def _feature(self, name: str, kept: NDArray[np.bool_]) -> NumberColumn | CategoryColumn:
        column = self._table.column(name)
        said = "date" if name in self._wanted.dates else self._wanted.kinds.get(name, "")
        if column.kind not in ("text", "number", "boolean", "date"):
            raise self._place.column(
                name,
                f"is {column.array.type}; only numbers, dates and text are understood: leave it "
                f"out with task.options.ignore",
            )
        missing = self._absent(column)
        if said == "text" or (not said and column.kind == "boolean"):
            return self._category(column, missing)
        if said == "date" or (said == "" and looks_like_dates(column, missing)):
            return self._date(column, missing, kept)
        numeric = self._as_numbers(column, missing)
        if numeric is None:
            texts, codes = column.coded(missing)
            check_units(column, texts, codes, f"kinds = {{ {name} = 'text' }}")
            return self._category(column, missing)
        values = numeric.numbers(missing, bad_number(column.name))
        if not said:
            check_ids(column, values)
        values = values[kept & ~missing]
        self._notice(column, values)
        low, high, centre, scale = self._spread(values)
        return NumberColumn(
            name=name,
            low=low,
            high=high,
            centre=centre,
            scale=scale,
            decimal=numeric.decimal if numeric.decimal == "," else "",
            flag=self._flag(name, missing),
            clipped=False,
        )

    def _as_numbers(self, column: Column, missing: NDArray[np.bool_]) -> Column | None:
        said = self._wanted.kinds.get(column.name, "")
        goal = column.name in self._wanted.label
        return as_numbers(column, missing, self._table.format, said, goal)

    def _spread(self, values: NDArray[np.float64]) -> tuple[float, float, float, float]:
        """(smallest, largest, centre, scale)."""
        if not len(values):
            return 0.0, 0.0, 0.0, 1.0
        low, high = float(values.min()), float(values.max())
        if not self._wanted.scaled:
            return low, high, 0.0, 1.0
        with np.errstate(over="ignore"):
            deviation = float(values.std())
        return low, high, float(values.mean()), deviation if deviation > 0 else 1.0

    def _notice(self, column: Column, values: NDArray[np.float64]) -> None:
        if not len(values):
            return
        low = float(values.min())
        if low == values.max():
            self._notes.append(f"column {column.name!r} has the same value in every row")
        elif low in _SENTINELS and not (values[values != low] < 0).any():
            cells = int((values == low).sum())
            self._notes.append(
                f"column {column.name!r}: {low:g} in {cells} rows and nothing else below 0; if it "
                f"stands for a missing value, say missing = {{ {column.name} = ['{low:g}'] }}"
            )
        if column.name.lower().endswith("id") and (values == np.floor(values)).all():
            self._notes.append(
                f"column {column.name!r} is taken as a number; if it holds ids, leave it out with "
                f"ignore, or say kinds = {{ {column.name} = 'text' }}"
            )

    def _date(
        self, column: Column, missing: NDArray[np.bool_], kept: NDArray[np.bool_]
    ) -> NumberColumn:
        form = self._wanted.dates.get(column.name, "")
        remedy = (
            "fix it, say missing = [{value}] and when_missing = 'drop' or 'category', or leave "
            "the column out with ignore"
        )
        values = column.days(missing, form, remedy)[kept & ~missing]
        low, high, centre, scale = self._spread(values)
        return NumberColumn(
            name=column.name,
            low=low,
            high=high,
            centre=centre,
            scale=scale,
            date=form,
            flag=self._flag(column.name, missing),
            clipped=False,
        )

    def _category(self, column: Column, missing: NDArray[np.bool_]) -> CategoryColumn:
        texts = self._bare.texts(column, missing)
        flag = self._flag(column.name, missing)
        if len(texts.different) == 1 and not flag:
            self._notes.append(f"column {column.name!r} has the same text in every row")
        if len(texts.different) > MAX_CATEGORIES:
            raise self._place.column(
                column.name,
                f"has {len(texts.different)} different texts, more than {MAX_CATEGORIES}; leave "
                f"it out with task.options.ignore",
            )
        twins = len(texts.different) - len({alike(text) for text in texts.different})
        if twins:
            self._notes.append(
                f"column {column.name!r} has {twins} categories that differ from another only in "
                f"case, spaces or punctuation; rename can merge them"
            )
        return CategoryColumn(name=column.name, values=tuple(ordered(texts.different)), flag=flag)


def _same_number(text: str) -> str:
    """The same text for 1 and 1.0; empty if `text` is not a number, or has no float of its own."""
    if not plain_number(text) or text.lstrip("+-").startswith("00"):
        return ""
    return repr(float(text)) if abs(float(text)) < 2**53 else ""


def _two_ways(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of ids that are the same number in two forms, such as 7 and 7.0."""
    seen: dict[float, str] = {}
    for name in names:
        if plain_number(name) and not (len(name) > 1 and name[0] == "0" and name[1].isdigit()):
            value = float(name)
            if seen.setdefault(value, name) != name and abs(value) < 2**53:
                yield seen[value], name


def _two_forms(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of ids that are one text in two Unicode forms, as two systems write an accent."""
    seen: dict[str, str] = {}
    for name in names:
        one = seen.setdefault(unicodedata.normalize("NFC", name), name)
        if one != name:
            yield one, name
