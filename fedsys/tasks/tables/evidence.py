"""Decides whether a column of text holds numbers or dates: by evidence, never by guess."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsys.tasks.tables.cells import ISO_DATE, MARKS, NUMBER, Column, such
from fedsys.tasks.tables.file import Format

__all__ = ["as_numbers", "bad_number", "check_ids", "check_units", "looks_like_dates"]

_EXACT = 2.0**53

_ZEROS = r"^[+-]?0\d"
_COMMA = r"^[+-]?\d+(,\d+)?([eE][+-]?\d+)?$"
_GROUPED = r"^[+-]?([1-9]\d{0,2}(,\d{3})*|0)$"
_MIXED = r"^[+-]?\d{1,3}(,\d{3})+\.\d+$"
_UNIT = r"^[^\w]*\d[\d.,' ]*\s?(%|[^\W\d]{1,3}|[€$£¥°])?\)?$"
_COMPACT = r"^(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])$"
_WIDE = r"^[+-]?\d{16,}$"
_FEW = 10
_DATES = r"^\d{1,4}[./-]\d{1,2}[./-]\d{1,4}$"


def as_numbers(
    column: Column, missing: NDArray[np.bool_], form: Format, said: str, goal: bool = False
) -> Column | None:
    """The column with its decimal separator determined; None if its cells are clearly not numbers.

    Args:
        column: the column to examine.
        missing: (M,) cells to skip.
        form: the file's format.
        said: the kind that the user stated, such as ``number``; may be empty.
        goal: whether the column is the label.

    Raises:
        DataError: all but a few cells are numbers, or the cells could be read in two ways.
    """
    if column.kind != "text":
        return column if column.kind == "number" else None
    there = ~missing
    good = column.matches(NUMBER) & there
    if form.decimal or form.thousands:
        good = column.numeric(missing)
    elif not good[there].all():
        commas = (column.matches(_COMMA) | column.matches(_MIXED) | column.matches(NUMBER)) & there
        if commas[there].all():
            return _commas(column, there, form)
    if said == "number":
        return column
    if not good.any():
        return None
    zeros = column.matches(_ZEROS) & good
    if zeros.any():
        row = int(np.flatnonzero(zeros)[0])
        raise column.place.cell(
            column.name,
            row,
            str(column.at(row)).strip(),
            "has a leading zero: a number, or a code",
            f"say kinds = {{ {column.name} = 'text' }} or 'number', or leave the column out with "
            f"ignore",
        )
    bad = there & ~good
    # Numbers, or texts some of which look like numbers? Numbers, if most cells are, or if all other
    # cells are common marks of a missing value.
    if bad.any() and 2 * int(good.sum()) <= int(there.sum()):
        texts, codes = column.coded(~bad)
        if not all(texts[code] in MARKS for code in np.unique(codes[codes >= 0])):
            return None
    if not bad.any():
        return column
    row, cells = int(np.flatnonzero(bad)[0]), int(bad.sum())
    raise column.place.cell(
        column.name,
        row,
        str(column.at(row)).strip(),
        "is not a number" + such(cells, len(column)),
        bad_number(column.name, goal),
    )


def bad_number(name: str, goal: bool = False) -> str:
    """The remedy for a cell that is not a number.

    Args:
        name: the column's name.
        goal: whether the column is the label.
    """
    if goal:
        return (
            f"say missing = {{ {name} = [{{value}}] }} and when_missing = 'drop' to leave such "
            f"rows out, or target = 'class' if it is one"
        )
    return (
        "say missing = [{value}] and when_missing = 'drop' (leaves such rows out) or 'category', "
        f"leave the column out with ignore, or say kinds = {{ {name} = 'text' }}"
    )


def check_units(
    column: Column, texts: Sequence[str], codes: NDArray[np.int64], otherwise: str
) -> None:
    """Refuse to make categories or classes of numbers that carry a unit or use unknown separators.

    Args:
        column: a column of text.
        texts: the column's distinct texts.
        codes: (M,) each row's index among `texts`.
        otherwise: the option that says that they are texts.

    Raises:
        DataError: there are more than a few texts, most of them such numbers.
    """
    like = [at for at, text in enumerate(texts) if re.match(_UNIT, text)]
    if len(texts) > _FEW and 2 * len(like) > len(texts):
        row = int(np.flatnonzero(np.isin(codes, like))[0])
        raise column.place.cell(
            column.name,
            row,
            texts[codes[row]],
            f"looks like a number with extra text ({len(like)} of {len(texts)} different texts do)",
            f"write the number alone, say how it is written (decimal, thousands), or say "
            f"{otherwise}",
        )


def check_ids(
    column: Column,
    values: NDArray[np.float64],
    remedy: str = "leave the column out with ignore",
) -> None:
    """Refuse to treat whole numbers beyond 2^53 as quantities: they are probably ids, and different
    ones would become the same float64.

    Args:
        column: where they are.
        values: its numbers, one per row.
        remedy: what to do about one.

    Raises:
        DataError: there is such a number; the message names the first.
    """
    wide = np.abs(np.nan_to_num(values)) >= _EXACT
    if not wide.any():
        return
    if column.kind == "text":
        wide &= column.matches(_WIDE)
    elif column.array.type.bit_width != 64 or "int" not in str(column.array.type):
        return
    if wide.any():
        row = int(np.flatnonzero(wide)[0])
        raise column.place.cell(
            column.name,
            row,
            str(column.at(row)).strip(),
            "is a whole number beyond 2^53, an id more likely than a quantity",
            remedy,
        )


def _commas(column: Column, there: NDArray[np.bool_], form: Format) -> Column:
    """Numbers with commas, as decimal commas if some comma cannot separate thousands."""
    fraction = column.matches(r",") & there
    pointed = column.matches(r"\.") & there
    decimal = fraction & ~column.matches(_GROUPED)
    if decimal.any() and not pointed.any() and form.delimiter != ",":
        return column.written(",")
    row = int(np.flatnonzero(fraction)[0])
    raise column.place.cell(
        column.name,
        row,
        str(column.at(row)).strip(),
        "is not a number as it is written",
        "say thousands = ','" if pointed.any() else "say decimal = ',' or thousands = ','",
    )


def looks_like_dates(column: Column, missing: NDArray[np.bool_]) -> bool:
    """Whether most cells are dates in ISO 8601.

    Raises:
        DataError: they look like dates in which day and month cannot be told apart.
    """
    if column.kind == "date":
        return True
    if column.kind != "text":
        return False
    there = int((~missing).sum())
    if there > 1 and int((column.matches(_COMPACT) & ~missing).sum()) == there:
        row = int(np.flatnonzero(~missing)[0])
        raise column.place.cell(
            column.name,
            row,
            str(column.at(row)).strip(),
            "looks like a date without separators, as do all the others",
            f"say dates = {{ {column.name} = '%Y%m%d' }} or kinds = {{ {column.name} = 'number' }}",
        )
    iso = column.matches(ISO_DATE) & ~missing
    if there and 2 * int(iso.sum()) > there:
        return True
    looks = column.matches(_DATES) & ~missing
    if there and 2 * int(looks.sum()) > there:
        row = int(np.flatnonzero(looks)[0])
        raise column.place.cell(
            column.name,
            row,
            str(column.at(row)).strip(),
            "looks like a date, but it is not stated which part is the month",
            f"say dates = {{ {column.name} = '%d.%m.%Y' }} as it is written, or leave the column "
            f"out with ignore",
        )
    return False
