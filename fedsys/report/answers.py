"""Answers of a round that asked: as tables with bars on the page, and as text on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Annotated, Any

from markupsafe import Markup
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fedsys.printable import printable
from fedsys.queries.answers import scale_of
from fedsys.report import figures

__all__ = [
    "AnswerStated",
    "DeviceEvaluation",
    "QueryStated",
    "Shown",
    "print_answers",
    "shown",
]

Text = Annotated[str, BeforeValidator(lambda value: printable(value))]
LARGEST = 1e100
"""The largest number that a page shows: sums and differences of such ones are numbers as well."""
Number = Annotated[float, Field(allow_inf_nan=False, ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
_MOST_ROWS = 512
_WIDTH, _HEIGHT = 240, 16
_INTERVALS = {
    "exact": "95 % intervals",
    "conservative": "intervals of at least 95 %",
    "asymptotic": "95 % intervals, for sums well above the noise",
}


class _Tolerant(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class EstimateStated(_Tolerant):
    """One estimate, as ``summary.json`` has it."""

    label: Text = ""
    value: Number
    low: Number | None = None
    high: Number | None = None


class AnswerStated(_Tolerant):
    """One question's answer."""

    name: Text
    ask: Text
    interval: Text = "exact"
    estimates: Annotated[list[EstimateStated], Field(max_length=20_000)] = Field(
        default_factory=list
    )
    notes: Annotated[list[Text], Field(max_length=20)] = Field(default_factory=list)


class QueryStated(_Tolerant):
    """``query`` of ``summary.json``."""

    kind: Text = "query"
    answers: Annotated[list[AnswerStated], Field(max_length=64)] = Field(default_factory=list)


class DeviceEvaluation(QueryStated):
    """A line of ``answers.jsonl``: what devices said of the model between rounds of training."""

    round: Count
    trained: Count


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One answer on the page.

    Attributes:
        name: the question's name.
        ask: what was asked.
        interval: what its intervals promise.
        rows: label, estimate, interval, and a bar with the interval on it.
        more: rows that are left out.
        notes: what a reader should know.
    """

    name: str
    ask: str
    interval: str
    rows: Sequence[tuple[str, str, str, Markup]]
    more: int
    notes: Sequence[str]


def shown(query: QueryStated | None) -> list[Shown]:
    """The answers for a page."""
    found = []
    for answer in [] if query is None else query.answers:
        rows = answer.estimates[:_MOST_ROWS]
        found.append(
            Shown(
                name=answer.name,
                ask=answer.ask,
                interval=_INTERVALS.get(answer.interval, answer.interval),
                rows=[
                    (each.label or answer.name, figures.plain(each.value), _ends(each), bar)
                    for each, bar in zip(rows, _bars(rows), strict=True)
                ],
                more=len(answer.estimates) - len(rows),
                notes=answer.notes,
            )
        )
    return found


def _ends(each: EstimateStated) -> str:
    if each.low is None or each.high is None:
        return figures.UNKNOWN
    return f"{figures.plain(each.low)} to {figures.plain(each.high)}"


def _bars(rows: Sequence[EstimateStated]) -> list[Markup]:
    """A bar from 0 to each estimate, and a line for its interval; those of one scale share it."""
    scales: dict[str, list[int]] = {}
    for place, each in enumerate(rows):
        scales.setdefault(scale_of(each.label), []).append(place)
    found = [Markup()] * len(rows)
    for places in scales.values():
        for place, bar in zip(places, _drawn([rows[at] for at in places]), strict=True):
            found[place] = bar
    return found


def _drawn(rows: Sequence[EstimateStated]) -> list[Markup]:
    marks = [0.0]
    for each in rows:
        marks += [each.value, *(end for end in (each.low, each.high) if end is not None)]
    low, high = min(marks), max(marks)
    unit = (_WIDTH - 4) / max(high - low, 1e-300)

    def at(value: float) -> float:
        return round(2 + (value - low) * unit, 1)

    found = []
    for each in rows:
        start, end = sorted((at(0.0), at(each.value)))
        middle = _HEIGHT / 2
        line = ""
        if each.low is not None and each.high is not None:
            a, b = at(each.low), at(each.high)
            ends = f"M{a} 4V{_HEIGHT - 4}M{b} 4V{_HEIGHT - 4}"
            line = f'<path class="interval" d="M{a} {middle}H{b}{ends}"/>'
        found.append(
            Markup(
                f'<svg class="bar" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
                f'height="{_HEIGHT}" aria-hidden="true"><rect x="{start}" y="2" '
                f'width="{max(end - start, 0.5):.1f}" height="{_HEIGHT - 4}"/>{line}</svg>'
            )
        )
    return found


def print_answers(stated: Any, *, file: IO[str] | None = None) -> None:
    """Print answers as aligned text: label, estimate, ends of the interval.

    Args:
        stated: ``query`` of a ``summary.json``.
        file: where to print; standard output if None.
    """
    target = file if file is not None else sys.stdout
    for answer in shown(QueryStated.model_validate(stated)):
        print(f"{answer.name} ({answer.ask}; {answer.interval})", file=target)
        width = max((len(label) for label, *_ in answer.rows), default=0)
        for label, value, ends, _ in answer.rows:
            print(f"  {label:<{width}}  {value:>10}  ({ends})", file=target)
        for note in answer.notes:
            print(f"  note: {note}", file=target)
