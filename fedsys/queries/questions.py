"""What may be asked: each question's keys, their ranges and defaults.

A question is a table with ``ask``, which says what is asked, and ``name``. Everything that decides
how much a device can contribute (bounds, bins, vocabularies, rows) is declared, because a value
that was looked up in the data would itself reveal them.

>>> (asked,) = parse([{"ask": "mean", "name": "age", "column": "age", "low": 0, "high": 100}])
>>> asked.rows, asked.weight
(1, 1.0)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedsys.errors import ConfigError
from fedsys.queries.axes import (
    MOST_BINS,
    Axis,
    Edges,
    Finite,
    Range,
    Share,
    Text,
    Values,
    finite,
    increasing,
    require_range,
)

__all__ = [
    "ASKED_MECHANISMS",
    "ASKED_SAMPLINGS",
    "EVALUATED",
    "KINDS",
    "Question",
    "parse",
    "to_json",
]

EVALUATED = frozenset({"predicted", "confidence", "loss", "accuracy"})
"""Columns that an evaluation adds to each row, besides the task's other metrics."""

ASKED_MECHANISMS = ("distributed-gaussian", "central-gaussian", "local-gaussian", "none")
"""Mechanisms whose noise covers all of a vector by itself, so that they can answer questions."""
ASKED_SAMPLINGS = ("poisson", "fixed")
"""How the cohort of a round that asks may be drawn."""


_MOST_QUESTIONS = 64
_MOST_COLUMNS = 32
_MOST_TEXT = 1 << 17
_STEP = re.compile(r"[a-z0-9_]+")  # a key or a place; pydantic names its validators there too


class Question(BaseModel):
    """What every question has.

    Attributes:
        name: names the answer.
        weight: how much its error counts; see `fedsys.queries.sheet`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    ask: str
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]
    weight: Annotated[float, AfterValidator(finite), Field(ge=1e-6, le=1e6)] = 1.0

    @property
    def columns_used(self) -> tuple[str, ...]:
        """Names of the columns that the question reads."""
        return ()

    @property
    def bins_used(self) -> int | None:
        """The number of bins, for a question that has some."""
        return None


class _OverRows(Question):
    """A question about rows.

    Attributes:
        rows: R: a device with more rows counts as R rows; with 1, every device counts once.
    """

    rows: Annotated[int, Field(ge=1, le=10**6)] = 1


class _OverColumn(_OverRows):
    column: Text
    low: Finite
    high: Finite

    @model_validator(mode="after")
    def _check_range(self) -> _OverColumn:
        require_range(self.low, self.high)
        return self

    @property
    def columns_used(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)


class Count(_OverRows):
    """The number of rows; with ``rows = 1`` the number of devices that hold any."""

    ask: Literal["count"]


class Sum(_OverColumn):
    """The sum of a column."""

    ask: Literal["sum"]


class Mean(_OverColumn):
    """The mean of a column."""

    ask: Literal["mean"]


class Variance(_OverColumn):
    """The mean, variance and standard deviation of a column."""

    ask: Literal["variance"]


class Histogram(_OverRows):
    """Rows by bin of a column.

    Attributes:
        l2: the largest L2 norm of a device's counts, besides their sum, which is at most ``rows``.
    """

    ask: Literal["histogram"]
    column: Text
    edges: Edges | None = None
    values: Values | None = None
    l2: Annotated[float, AfterValidator(finite), Field(ge=1e-6, le=1e6)] | None = None

    @model_validator(mode="after")
    def _check_axis(self) -> Histogram:
        _ = self.axis
        return self

    @property
    def axis(self) -> Axis:
        """The column's bins."""
        return Axis(column=self.column, edges=self.edges, values=self.values)

    @property
    def columns_used(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    @property
    def bins_used(self) -> int | None:
        """Its bins."""
        return self.axis.bins


class Labels(_OverRows):
    """Rows by class: a histogram of the column ``label`` over 0 to ``classes`` - 1."""

    ask: Literal["labels"]
    classes: Annotated[int, Field(ge=2, le=MOST_BINS)]
    l2: Annotated[float, AfterValidator(finite), Field(ge=1e-6, le=1e6)] | None = None

    @property
    def axis(self) -> Axis:
        """The classes."""
        return Axis(column="label", values=tuple(range(self.classes)))

    @property
    def columns_used(self) -> tuple[str, ...]:
        """The label."""
        return ("label",)

    @property
    def bins_used(self) -> int | None:
        """Its classes."""
        return self.classes


class Crosstab(_OverRows):
    """Rows by bins of two columns."""

    ask: Literal["crosstab"]
    axes: tuple[Axis, Axis]
    l2: Annotated[float, AfterValidator(finite), Field(ge=1e-6, le=1e6)] | None = None

    @property
    def columns_used(self) -> tuple[str, ...]:
        """Both columns."""
        return tuple(axis.column for axis in self.axes)

    @property
    def bins_used(self) -> int | None:
        """The cells."""
        return self.axes[0].bins * self.axes[1].bins


class Confusion(_OverRows):
    """Rows by true and predicted class (for evaluations)."""

    ask: Literal["confusion"]
    classes: Annotated[int, Field(ge=2, le=64)]

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """The label and the prediction."""
        every = tuple(range(self.classes))
        return Axis(column="label", values=every), Axis(column="predicted", values=every)

    @property
    def columns_used(self) -> tuple[str, ...]:
        """The label and the prediction."""
        return ("label", "predicted")

    @property
    def bins_used(self) -> int | None:
        """The cells."""
        return self.classes**2


class Examples(Question):
    """Devices by their number of rows."""

    ask: Literal["examples"]
    edges: Edges

    @model_validator(mode="after")
    def _check_edges(self) -> Examples:
        increasing(self.edges)
        return self

    @property
    def bins_used(self) -> int | None:
        """Its bins."""
        return len(self.edges) - 1


class Devices(Question):
    """Devices by the mean of a column over their own rows: for whom is a model bad?

    Attributes:
        low: left end of the first bin.
        high: right end of the last bin.
        bins: number of bins of equal width.
        quantiles: quantiles over devices to report; 0.1 is where the worst decile ends.
    """

    ask: Literal["devices"]
    column: Text = "accuracy"
    low: Finite = 0.0
    high: Finite = 1.0
    bins: Annotated[int, Field(ge=2, le=1024)] = 10
    quantiles: Annotated[tuple[Share, ...], Field(max_length=32)] = (0.1, 0.5)

    @model_validator(mode="after")
    def _check_range(self) -> Devices:
        require_range(self.low, self.high)
        return self

    @property
    def columns_used(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    @property
    def bins_used(self) -> int | None:
        """Its bins."""
        return self.bins


class Quantiles(_OverColumn):
    """Quantiles and the distribution function of a column, by a hierarchical histogram.

    Attributes:
        quantiles: which quantiles.
        branching: children of a node.
        levels: levels of nodes; there are ``branching ** levels`` bins of equal width.
    """

    ask: Literal["quantiles"]
    quantiles: Annotated[tuple[Share, ...], Field(min_length=1, max_length=32)] = (0.25, 0.5, 0.75)
    branching: Annotated[int, Field(ge=2, le=16)] = 4
    levels: Annotated[int, Field(ge=1, le=10)] = 3

    @model_validator(mode="after")
    def _check_size(self) -> Quantiles:
        if self.branching**self.levels > 1024:
            raise ValueError(
                f"branching = {self.branching} and levels = {self.levels} give "
                f"{self.branching**self.levels} bins; at most 1024 are allowed"
            )
        return self

    @property
    def bins_used(self) -> int | None:
        """Its bins."""
        return int(self.branching**self.levels)


class Top(_OverRows):
    """The most frequent values of a declared vocabulary.

    Attributes:
        values: the vocabulary.
        most: how many to report.
    """

    ask: Literal["top"]
    column: Text
    values: Values
    most: Annotated[int, Field(ge=1, le=1000)] = 10

    @model_validator(mode="after")
    def _check_axis(self) -> Top:
        _ = self.axis
        return self

    @property
    def axis(self) -> Axis:
        """The vocabulary."""
        return Axis(column=self.column, values=self.values)

    @property
    def columns_used(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    @property
    def bins_used(self) -> int | None:
        """The vocabulary's size."""
        return len(self.values)


class Correlation(_OverRows):
    """The correlation matrix of several columns."""

    ask: Literal["correlation"]
    columns: Annotated[tuple[Range, ...], Field(min_length=2, max_length=_MOST_COLUMNS)]

    @property
    def columns_used(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(each.column for each in self.columns)


class Calibration(_OverRows):
    """Confidence against accuracy, by bin of confidence (for evaluations)."""

    ask: Literal["calibration"]
    bins: Annotated[int, Field(ge=2, le=100)] = 10

    @property
    def columns_used(self) -> tuple[str, ...]:
        """Confidence and whether the prediction is right."""
        return ("confidence", "accuracy")

    @property
    def bins_used(self) -> int | None:
        """Its bins."""
        return self.bins


KINDS: dict[str, type[Question]] = {
    "count": Count,
    "sum": Sum,
    "mean": Mean,
    "variance": Variance,
    "histogram": Histogram,
    "crosstab": Crosstab,
    "labels": Labels,
    "examples": Examples,
    "devices": Devices,
    "quantiles": Quantiles,
    "top": Top,
    "correlation": Correlation,
    "confusion": Confusion,
    "calibration": Calibration,
}
"""What can be asked, by the value of ``ask``."""


def parse(tables: Sequence[Any]) -> tuple[Question, ...]:
    """Read questions that somebody else may have written.

    Args:
        tables: one mapping for each question, as TOML or JSON has it.

    Raises:
        ConfigError: one line that names the question, the key, its value and what is allowed.
    """
    if not 1 <= len(tables) <= _MOST_QUESTIONS:
        raise ConfigError(f"questions: {len(tables)} are asked; allowed are 1 to {_MOST_QUESTIONS}")
    try:
        length = len(json.dumps(tables, default=str))
    except (RecursionError, ValueError):  # nested far too deeply, or within itself
        raise ConfigError("questions: tables within tables without an end") from None
    if length > _MOST_TEXT:
        raise ConfigError(f"questions: {length} characters; at most {_MOST_TEXT} are allowed")
    asked = tuple(_question(number, table) for number, table in enumerate(tables, start=1))
    seen: set[str] = set()
    for each in asked:
        if each.name in seen:
            raise ConfigError(f"questions: two have the name {each.name!r}; give each its own")
        seen.add(each.name)
        if (each.bins_used or 0) > MOST_BINS:
            raise ConfigError(
                f"question {each.name!r} has {each.bins_used} cells; at most {MOST_BINS} are "
                f"allowed"
            )
    return asked


def _question(number: int, table: Any) -> Question:
    where = f"questions[{number}]"
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: is {type(table).__name__}, not a table")
    kind = table.get("ask")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise ConfigError(f"{where}.ask = {str(kind)[:80]!r}: allowed are {', '.join(KINDS)}")
    try:
        return model.model_validate(_frozen(table))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        steps = (str(part) for part in problem["loc"])
        path = ".".join([where, *(step for step in steps if _STEP.fullmatch(step))])
        if problem["type"] == "extra_forbidden":
            known = ", ".join(model.model_fields)
            raise ConfigError(f"{path}: unknown key; ask = {kind!r} has {known}") from None
        shown = repr(problem["input"])
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        said = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path} = {shown}: {said[0].lower()}{said[1:]}") from None


def _frozen(value: Any) -> Any:
    """Lists as tuples, which a strict model wants."""
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def to_json(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Plain values, from which `parse` makes equal questions."""
    return [each.model_dump(mode="json", exclude_none=True) for each in questions]
