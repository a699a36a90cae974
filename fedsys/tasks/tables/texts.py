"""A column's distinct texts, and whether they were declared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsys.tasks.tables.cells import Column

__all__ = ["Texts", "alike", "as_declared", "ordered"]

_SHOWN = 8


@dataclass(frozen=True)
class Texts:
    """A column of text.

    Attributes:
        column: the column.
        different: its distinct texts.
        codes: (M,) each row's index among them; -1 where a value is missing.
    """

    column: Column
    different: tuple[str, ...]
    codes: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        column: Column,
        found: Sequence[str],
        codes: NDArray[np.int64],
        renamed: Mapping[str, str],
    ) -> Texts:
        """The texts after replacing those in `renamed`."""
        texts = [renamed.get(text, text) for text in found]
        different = tuple(dict.fromkeys(texts))
        if len(different) == len(found):
            return cls(column, different, codes)
        place = {text: at for at, text in enumerate(different)}
        moved = np.array([*(place[text] for text in texts), -1], dtype=np.int64)
        return cls(column, different, moved[codes])

    def counts(self) -> NDArray[np.int64]:
        """(D,) the number of rows of each text."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.different))

    def row_of(self, code: int) -> int:
        """The first row that has a text."""
        return int(np.flatnonzero(self.codes == code)[0])


def as_declared(
    texts: Texts, declared: Sequence[str], key: str, other: bool = False
) -> NDArray[np.int64]:
    """(M,) each row's index among the declared texts; -1 where its value is missing.

    A number may be written 0.0 where 0 is declared. With `other`, a text that was not declared
    is -1 too.

    Raises:
        DataError: a text was not declared; the message names its first row.
    """
    place = {text: at for at, text in enumerate(declared)}
    known = np.full(len(texts.different) + 1, -1, dtype=np.int64)
    for code, text in enumerate(texts.different):
        at = place.get(text, place.get(_whole(text)))
        if at is None and not other:
            near = next((each for each in declared if alike(each) == alike(text)), None)
            listed = ", ".join(map(repr, declared[:_SHOWN]))
            name = texts.column.name
            remedy = (
                f"did you mean {near!r}? Say rename = {{ {name} = {{ {{value}} = {near!r} }} }}"
                if near is not None
                else "fix it, declare it, or replace it by a declared text with rename"
            )
            raise texts.column.place.cell(
                name,
                texts.row_of(code),
                text,
                f"is not one of {key} = [{listed}{', ...' if len(declared) > _SHOWN else ''}]",
                remedy,
            )
        known[code] = -1 if at is None else at
    found: NDArray[np.int64] = known[texts.codes]
    return found


def alike(text: str) -> str:
    """A text without case, punctuation at its ends, and repeated spaces.

    >>> alike("<=50K.") == alike(" <=50k") and alike(">50K") != alike("<=50K")
    True
    """
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"^[\s.,;:!'\"]+|[\s.,;:!'\"]+$", "", words) or words


def ordered(texts: Sequence[str]) -> list[str]:
    """The texts, sorted by value if all are whole numbers, else alphabetically.

    >>> ordered(["10", "9"]), ordered(["10", "9", "a"])
    (['9', '10'], ['10', '9', 'a'])
    """
    if all(re.fullmatch(r"-?\d+", text) for text in texts):
        return sorted(texts, key=lambda text: (int(text), text))
    return sorted(texts)


def _whole(text: str) -> str:
    return re.sub(r"\.0*$", "", text) if re.fullmatch(r"[+-]?\d+\.0*", text) else text
