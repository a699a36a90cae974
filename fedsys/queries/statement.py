"""What a run states of its answers, and how that is derived again from the sum it released."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.agreement import agrees
from fedsys.queries.sheet import MOST_COORDINATES, Sheet

__all__ = ["released_of", "same_statement", "statement_of"]


def statement_of(
    sheet: Sheet,
    kind: str,
    answer: NDArray[np.float32],
    *,
    deviation: float,
    rate: float,
    population: int,
) -> dict[str, Any]:
    """``query`` of ``summary.json``.

    Args:
        sheet: the questions.
        kind: ``query`` or ``evaluate``.
        answer: (d,) the noisy sum over q N.
        deviation: standard deviation of the noise in each of its coordinates.
        rate: q.
        population: N.
    """
    answers = sheet.answers(answer, deviation=deviation, rate=rate, population=population)
    return {
        "kind": kind,
        "deviation": deviation,
        "shares": list(sheet.shares),
        "released": [float(value) for value in answer],
        "answers": [each.to_json() for each in answers],
    }


def released_of(stated: object) -> tuple[NDArray[np.float32], str] | None:
    """The vector that a statement says was released, and its SHA-256 as commits state it; None
    where the statement, which is untrusted, holds none."""
    values = stated.get("released") if isinstance(stated, dict) else None
    if not isinstance(values, list) or not 1 <= len(values) <= MOST_COORDINATES:
        return None
    if not all(type(each) in (int, float) and abs(each) < 3e38 for each in values):
        return None
    vector = np.array(values, dtype=np.float32)
    return vector, hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()


def same_statement(stated: Any, derived: Any) -> bool:
    """Equality up to the last bits of floats; texts and structure must be the same."""
    if isinstance(derived, dict):
        return (
            isinstance(stated, dict)
            and set(stated) == set(derived)
            and all(same_statement(stated[key], derived[key]) for key in derived)
        )
    if isinstance(derived, list):
        return (
            isinstance(stated, list)
            and len(stated) == len(derived)
            and all(map(same_statement, stated, derived))
        )
    if type(derived) in (int, float) and type(stated) in (int, float):
        return agrees(stated, derived, relative=1e-6, absolute=1e-9)
    return type(stated) is type(derived) and bool(stated == derived)
