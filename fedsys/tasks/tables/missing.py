"""What a missing value looks like, and what becomes of its row.

This is the same for every kind of column. An empty cell is always missing, other cells if they are
listed; nothing is guessed to be missing, since ``NA`` is Namibia and -1 may be a temperature.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import ConfigError
from fedsys.tasks.options import nearest
from fedsys.tasks.tables.cells import MARKS, Column, such
from fedsys.tasks.tables.file import tidy_name

__all__ = ["CATEGORY", "DROP", "REFUSE", "Missing"]

REFUSE, DROP, CATEGORY = "refuse", "drop", "category"
_ALL = "*"
_TREATMENTS = (REFUSE, DROP, CATEGORY)


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Options ``missing`` and ``when_missing``.

    Attributes:
        marks: texts that mean a missing value in every column; None if none were stated.
        marks_of: the same for single columns, in place of `marks`.
        treatment: ``refuse`` the table, ``drop`` the row, or make it a ``category`` of its own:
            for a text one more value, for a number the centre and a feature that indicates it.
        treatment_of: the same for single columns, in place of `treatment`.
        goals: label and client columns. A missing label becomes a class of its own only if its
            column is named: those who want that for features rarely want it for labels.
    """

    marks: frozenset[str] | None = None
    marks_of: Mapping[str, frozenset[str]] = field(default_factory=dict)
    treatment: str = REFUSE
    treatment_of: Mapping[str, str] = field(default_factory=dict)
    goals: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: Mapping[str, Any], goals: tuple[str, ...] = ()) -> Missing:
        """Read both options: a value for all columns, or a table by column, ``*`` for all others.

        Raises:
            ConfigError: an option has another form.
        """
        marks, treatments = _by_column(options, "missing"), _by_column(options, "when_missing")
        found = {name: _marks(f"missing.{name}", each) for name, each in marks.items()}
        become = {
            name: _treatment(f"when_missing.{name}", each) for name, each in treatments.items()
        }
        return cls(
            marks=found.pop(_ALL, None),
            marks_of=found,
            treatment=become.pop(_ALL, REFUSE),
            treatment_of=become,
            goals=goals,
        )

    def to_options(self) -> dict[str, Any]:
        """The options that `of` reads."""
        found: dict[str, Any] = {}
        marks = {name: sorted(each) for name, each in self.marks_of.items()}
        if self.marks is not None:
            marks[_ALL] = sorted(self.marks)
        if marks:
            found["missing"] = marks[_ALL] if set(marks) == {_ALL} else marks
        if self.treatment_of:
            found["when_missing"] = {_ALL: self.treatment, **self.treatment_of}
        elif self.treatment != REFUSE:
            found["when_missing"] = self.treatment
        return found

    def becomes(self, column: str) -> str:
        """The treatment of that column's missing cells."""
        if column in self.treatment_of:
            return self.treatment_of[column]
        if column in self.goals and self.treatment == CATEGORY:
            return REFUSE
        return self.treatment

    def of_column(self, column: Column) -> NDArray[np.bool_]:
        """(M,) which cells are missing.

        Raises:
            DataError: a cell is missing, and the treatment is to refuse.
        """
        marks = self._marks_of(column.name) or frozenset()
        found = column.missing(marks)
        if self.becomes(column.name) == REFUSE and found.any():
            row, how_many = int(np.flatnonzero(found)[0]), int(found.sum())
            value = column.at(row)
            what = "" if value is None or value != value else str(value).strip()
            raise column.place.cell(
                column.name,
                row,
                what,
                f"is {'missing' if what else 'empty'}" + such(how_many, len(column)),
                self._remedy(column.name),
            )
        return found

    def check_marks(
        self,
        column: Column,
        texts: list[str],
        codes: NDArray[np.int64],
        declared: Collection[str] = (),
    ) -> None:
        """Refuse common marks of a missing value, unless the user stated what is missing.

        Args:
            column: a column of text.
            texts: the column's distinct texts.
            codes: (M,) each row's index among `texts`.
            declared: texts that are values all the same.

        Raises:
            DataError: there is such a mark; the message names the first cell.
        """
        if self._marks_of(column.name) is not None:
            return
        suspects = [at for at, text in enumerate(texts) if text in MARKS and text not in declared]
        if suspects:
            row = int(np.flatnonzero(np.isin(codes, suspects))[0])
            how_many = int(np.isin(codes, suspects).sum())
            raise column.place.cell(
                column.name,
                row,
                texts[codes[row]],
                "looks like a missing value" + such(how_many, len(column)),
                f"say missing = [{{value}}] and when_missing = 'drop' or 'category'; if it is a "
                f"value like any other, say missing = {{ {column.name} = [] }}",
            )

    def _marks_of(self, column: str) -> frozenset[str] | None:
        return self.marks_of.get(column, self.marks)

    def _remedy(self, column: str) -> str:
        if column in self.goals:
            return (
                f"say when_missing = {{ '*' = '{self.treatment}', {column} = 'drop' }} to leave "
                f"such rows out, or fill it in"
                if self.treatment == CATEGORY
                else "say when_missing = 'drop' to leave such rows out, or fill it in"
            )
        return (
            "say when_missing = 'drop' (leaves such rows out) or 'category' (a value of its own), "
            "or fill it in"
        )


def _by_column(options: Mapping[str, Any], key: str) -> dict[str, Any]:
    if key not in options:
        return {}
    given = options[key]
    if isinstance(given, Mapping):
        return {tidy_name(str(name)): each for name, each in given.items()}
    return {_ALL: given}


def _marks(key: str, given: object) -> frozenset[str]:
    if isinstance(given, list | tuple) and all(type(each) in (str, int, float) for each in given):
        return frozenset(str(each).strip() for each in given)
    raise ConfigError(
        f"task.options.{key.removesuffix('.*')} = {given!r}: must be a list such as ['?', 'NA']"
    )


def _treatment(key: str, given: object) -> str:
    if isinstance(given, str) and given in _TREATMENTS:
        return given
    hint = nearest(given, _TREATMENTS) if isinstance(given, str) else ""
    raise ConfigError(
        f"task.options.{key.removesuffix('.*')} = {given!r}: allowed are "
        f"{', '.join(_TREATMENTS)}{hint}"
    )
