"""``[task.options]`` of a table: the declaration of its columns, or hints for inferring them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsys.errors import ConfigError
from fedsys.preprocessing import tabular as declared_by
from fedsys.tasks.options import Options
from fedsys.tasks.tables.cells import Place
from fedsys.tasks.tables.columns import CategoryColumn, Columns, NumberColumn
from fedsys.tasks.tables.file import Format, TableFile, open_table, tidy_name
from fedsys.tasks.tables.inference import MAX_CLASSES, Wanted, inferred
from fedsys.tasks.tables.missing import CATEGORY, Missing
from fedsys.tasks.tables.targets import KINDS, Target

__all__ = ["KNOWN", "TableOptions", "declaration"]

KNOWN = (
    "path",
    "label",
    "target",
    "client",
    "classes",
    "ranges",
    "values",
    "other",
    "dates",
    "missing",
    "when_missing",
    "rename",
    "separator",
    "delimiter",
    "encoding",
    "decimal",
    "thousands",
    "ignore",
    "kinds",
    "scaling",
    "test_path",
    "test_fraction",
)
_DECLARING = ("classes", "ranges", "values")
_INFERRING = ("scaling", "ignore", "kinds")
_KINDS_OF_FEATURES = ("number", "text", "date")


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """The options of a table.

    Attributes:
        path: the file's path, as given.
        test_path: the path of a file of test rows; may be empty.
        form: the format of a CSV.
        declared: the columns if they are declared, else None.
        wanted: what was stated for inferring them otherwise.
    """

    path: str
    test_path: str
    form: Format
    declared: Columns | None
    wanted: Wanted

    @classmethod
    def of(cls, given: Options, options: Mapping[str, Any]) -> TableOptions:
        """Read the options.

        Args:
            given: the task's options.
            options: the same, raw.

        Raises:
            ConfigError: an option is invalid, or contradicts another.
        """
        path, label = given.required("path", "the table's file"), _label(options)
        client = tidy_name(given.get("client", ""))
        missing = Missing.of(options, (*label, client) if client else label)
        wanted = Wanted(
            label=label,
            target=given.choice("target", "", ("", *KINDS)),
            client=client,
            ignored=tuple(map(tidy_name, given.names("ignore"))),
            kinds=_kinds(options),
            dates=_texts_by_column(options, "dates", "{born = '%d.%m.%Y'}"),
            missing=missing,
            renamed=_renamed(options),
            separator=given.get("separator", ""),
            scaled=given.choice("scaling", "standard", ("standard", "none")) == "standard",
        )
        if client in (*label, *wanted.ignored) and client:
            raise ConfigError(f"task.options.client = {client!r}: is label or ignored too")
        return cls(
            path=path,
            test_path=given.get("test_path", ""),
            form=Format(
                delimiter=given.get("delimiter", ""),
                encoding=given.get("encoding", ""),
                decimal=given.get("decimal", ""),
                thousands=given.get("thousands", ""),
            ),
            declared=_declared(options, wanted),
            wanted=wanted,
        )

    def open(self, place: Place, columns: Columns | None, *, labelled: bool = True) -> TableFile:
        """Read the columns that are used, or all if `columns` is None."""
        if columns is None:
            return open_table(place, self.form)
        used = columns.used if labelled else tuple(each.name for each in columns.features)
        return open_table(place, self.form, used)

    def columns(self, table: TableFile) -> Columns:
        """The columns, as declared or as inferred from the rows."""
        return self.declared if self.declared is not None else inferred(table, self.wanted)


def declaration(columns: Columns, form: Format) -> dict[str, Any]:
    """Options that declare inferred columns, for people to edit.

    Ranges are those of the rows, widened to two digits; constant columns are left out.
    """
    target = columns.target
    ranges: dict[str, Any] = {}
    dates: dict[str, str] = {}
    values = {}
    for each in columns.features:
        if isinstance(each, CategoryColumn):
            if len(each.values) > 1 or each.flag:
                values[each.name] = list(each.values)
        elif each.low < each.high:
            ends = _widened(each.low, each.high)
            ranges[each.name] = ends if each.date is None else [_day(end) for end in ends]
            if each.date:
                dates[each.name] = each.date
    if target.kind == "number":
        ranges[target.columns[0]] = _widened(target.low, target.high)
    found: dict[str, Any] = {
        "label": target.columns[0] if len(target.columns) == 1 else list(target.columns),
        "target": target.kind,
    }
    if columns.client:
        found["client"] = columns.client
    if target.kind != "number" and len(target.columns) == 1:
        found["classes"] = list(target.classes)
    decimal = [*(each.decimal for each in columns.features if isinstance(each, NumberColumn)),
               target.decimal]  # fmt: skip
    found |= {
        "ranges": ranges,
        "values": values,
        "dates": dates,
        "rename": {name: dict(texts) for name, texts in columns.renamed.items()},
        "separator": target.separator,
        "encoding": "" if form.encoding == "utf-8" else form.encoding,
        "delimiter": "" if form.delimiter == "," else form.delimiter,
        "decimal": form.decimal or next(filter(None, decimal), ""),
        "thousands": form.thousands,
        **columns.missing.to_options(),
    }
    return {key: value for key, value in found.items() if value or key in ("label", "missing")}


def _label(options: Mapping[str, Any]) -> tuple[str, ...]:
    given = options.get("label")
    if isinstance(given, str) and given.strip():
        return (tidy_name(given),)
    if isinstance(given, list | tuple) and given and all(isinstance(each, str) for each in given):
        found = tuple(map(tidy_name, given))
        if len(set(found)) == len(found):
            return found
    if given is None:
        raise ConfigError(
            "task.options.label is missing: task tabular needs the label column's name"
        )
    raise ConfigError(
        f"task.options.label = {given!r}: must be a column's name, or a list of columns of 0 and 1"
    )


def _declared(options: Mapping[str, Any], wanted: Wanted) -> Columns | None:
    given = [key for key in _DECLARING if key in options]
    if not given:
        if "other" in options:
            raise ConfigError("task.options.other: is for declared columns only; see values")
        return None
    if declared_by(options) == "data-dependent":
        raise ConfigError(
            f"task.options.{given[0]}: declared columns need classes (the texts of the label; for "
            f"a number to predict, its entry in ranges) and ranges or values (of the columns to "
            f"learn from); add what is missing"
        )
    for key in _INFERRING:
        if key in options:
            raise ConfigError(
                f"task.options.{key} with declared columns: only columns in ranges and values are "
                f"used, scaled by their range; leave {key} out"
            )
    ranges = {tidy_name(name): ends for name, ends in _table(options, "ranges").items()}
    values = {tidy_name(name): each for name, each in _table(options, "values").items()}
    target = _target(options, wanted, ranges)
    if target.kind == "number":
        ranges.pop(target.columns[0])
    twice = sorted((set(ranges) & set(values)) | (set(wanted.label) & {*ranges, *values}))
    if twice:
        raise ConfigError(f"task.options: column {twice[0]!r} is declared twice")
    if wanted.client and wanted.client in (*ranges, *values):
        raise ConfigError(f"task.options: column {wanted.client!r} names clients and is a feature")
    if not ranges and not values:
        raise ConfigError("task.options.ranges and values are empty: no column to learn from")
    missing, other = wanted.missing, _other(options, values)
    for name in wanted.dates:
        if name not in ranges:
            raise ConfigError(f"task.options.dates.{name}: add the column to ranges")
    numbers = [
        _number(name, ends, wanted.dates.get(name), missing.becomes(name) == CATEGORY)
        for name, ends in ranges.items()
    ]
    categories = [
        CategoryColumn(
            name=name,
            values=_texts(f"values.{name}", texts),
            other=name in other,
            flag=missing.becomes(name) == CATEGORY,
        )
        for name, texts in values.items()
    ]
    return Columns(
        target=target,
        features=(*numbers, *categories),
        client=wanted.client,
        missing=missing,
        renamed=wanted.renamed,
    )


def _target(options: Mapping[str, Any], wanted: Wanted, ranges: Mapping[str, Any]) -> Target:
    label, said = wanted.label, wanted.target
    if "classes" in options and said == "number":
        raise ConfigError("task.options.classes with target = 'number': leave one of the two out")
    if len(label) > 1:
        if said not in ("", "labels") or "classes" in options:
            raise ConfigError(
                "task.options.label is a list of columns of 0 and 1, which are the labels: leave "
                "classes and target out"
            )
        return Target(kind="labels", columns=label, classes=label)
    if "classes" not in options:
        if said not in ("", "number"):
            raise ConfigError(f"task.options.target = {said!r} needs classes")
        low, high = _range(label[0], ranges[label[0]])
        if isinstance(ranges[label[0]][0], str):
            raise ConfigError(f"task.options.ranges.{label[0]}: a date cannot be the label")
        return Target(
            kind="number",
            columns=label,
            low=low,
            high=high,
            centre=(low + high) / 2,
            scale=(high - low) / 2,
            clipped=True,
        )
    return Target(
        kind=said or "class",
        columns=label,
        classes=_texts("classes", options["classes"]),
        separator=wanted.separator if said == "labels" else "",
        flag=said != "labels" and wanted.missing.becomes(label[0]) == CATEGORY,
    )


def _number(name: str, ends: object, date: str | None, flag: bool) -> NumberColumn:
    low, high = _range(name, ends)
    if isinstance(ends, list | tuple) and isinstance(ends[0], str):
        date = date or ""
    elif date is not None:
        raise ConfigError(
            f"task.options.ranges.{name}: a date's range is written ['1920-01-01', '2025-12-31']"
        )
    return NumberColumn(
        name=name,
        low=low,
        high=high,
        centre=(low + high) / 2,
        scale=(high - low) / 2,
        clipped=True,
        date=date,
        flag=flag,
    )


def _range(name: str, ends: object) -> tuple[float, float]:
    if isinstance(ends, list | tuple) and len(ends) == 2:
        if all(type(end) in (int, float) and math.isfinite(end) for end in ends):
            low, high = float(ends[0]), float(ends[1])
        else:
            low, high = (_days(end) for end in ends)
        if low < high:
            return low, high
    raise ConfigError(
        f"task.options.ranges.{name} = {ends!r}: must be [lowest, highest], the lowest first; "
        f"dates are written '2024-12-31'"
    )


def _days(end: object) -> float:
    """Days since 1970-01-01; NaN if `end` is not a date."""
    try:
        return float(np.datetime64(end, "D").astype(np.int64)) if isinstance(end, str) else math.nan
    except ValueError:
        return math.nan


def _day(days: float) -> str:
    return str(np.datetime64(math.floor(days), "D"))


def _widened(low: float, high: float) -> list[float]:
    """The ends, widened to two digits of the range's size, so that they reveal no row's value.

    >>> _widened(17.0, 90.0), _widened(-0.137, 2.24)
    ([10.0, 90.0], [-0.2, 2.3])
    """
    step = 10.0 ** (math.floor(math.log10(high - low)) - (1 if high - low < 10 else 0))
    digits = max(0, -math.floor(math.log10(step)))
    return [
        round(math.floor(low / step) * step, digits),
        round(math.ceil(high / step) * step, digits),
    ]


def _table(options: Mapping[str, Any], key: str, example: str = "") -> dict[str, Any]:
    table = options.get(key, {})
    if not isinstance(table, Mapping):
        usual = "{age = [0, 100]}" if key == "ranges" else '{sex = ["f", "m"]}'
        raise ConfigError(
            f"task.options.{key} = {table!r}: must be a table, one entry per column: "
            f"{example or usual}"
        )
    return dict(table)


def _texts(key: str, texts: object) -> tuple[str, ...]:
    if isinstance(texts, list | tuple) and all(type(each) in (str, int, bool) for each in texts):
        found = tuple(str(each).lower() if type(each) is bool else str(each) for each in texts)
        if 2 <= len(found) <= MAX_CLASSES and len(set(found)) == len(found):
            return found
    raise ConfigError(
        f"task.options.{key} = {texts!r}: must be a list of 2 to {MAX_CLASSES} different values"
    )


def _texts_by_column(options: Mapping[str, Any], key: str, example: str) -> dict[str, str]:
    found = _table(options, key, example)
    for name, text in found.items():
        if not isinstance(text, str):
            raise ConfigError(f"task.options.{key}.{name} = {text!r}: must be text: {example}")
    return {tidy_name(name): text for name, text in found.items()}


def _kinds(options: Mapping[str, Any]) -> dict[str, str]:
    found = _texts_by_column(options, "kinds", "{zip = 'text'}")
    for name, kind in found.items():
        if kind not in _KINDS_OF_FEATURES:
            raise ConfigError(
                f"task.options.kinds.{name} = {kind!r}: allowed are {', '.join(_KINDS_OF_FEATURES)}"
            )
    return found


def _renamed(options: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    example = "{income = {'<=50K.' = '<=50K'}}"
    found = {}
    for name, texts in _table(options, "rename", example).items():
        if not isinstance(texts, Mapping) or not all(isinstance(v, str) for v in texts.values()):
            raise ConfigError(
                f"task.options.rename.{name} = {texts!r}: must be a table of texts: {example}"
            )
        found[tidy_name(name)] = dict(texts)
    return found


def _other(options: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[str, ...]:
    given = options.get("other", [])
    if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
        raise ConfigError(f"task.options.other = {given!r}: must be a list of columns in values")
    found = tuple(map(tidy_name, given))
    for name in found:
        if name not in values:
            raise ConfigError(f"task.options.other: column {name!r} is not in values")
    return found
