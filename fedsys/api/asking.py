"""`query`: questions about clients' data from Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsys import tasks
from fedsys.config import validate
from fedsys.config.overrides import apply_values
from fedsys.errors import FedsysError
from fedsys.queries import Answer, Estimate
from fedsys.queries.answers import scale_of
from fedsys.report import figures
from fedsys.runs.rows import Rows
from fedsys.runs.run import Run
from simulations import harness
from simulations.asking import asking_tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Answers", "answers_of", "query"]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What came back, question by question, and the run that paid for it.

    Attributes:
        run: its folder, with ledger and audit.
        answers: in the order of the questions.
    """

    run: Run
    answers: tuple[Answer, ...] = field(repr=False)

    def __getitem__(self, name: str) -> Answer:
        """The answer to the question of this name; KeyError if there is none."""
        for each in self.answers:
            if each.name == name:
                return each
        raise KeyError(name)

    def __iter__(self) -> Iterator[Answer]:
        """The answers."""
        return iter(self.answers)

    @property
    def rows(self) -> Rows:
        """A row for each estimate: question, label, value, low, high, interval."""
        columns = ("question", "label", "value", "low", "high", "interval")
        found = [
            (answer.name, each.label, each.value, each.low, each.high, answer.interval)
            for answer in self.answers
            for each in answer.estimates
        ]
        return Rows(dict(zip(columns, row, strict=True)) for row in found)

    def plot(self, name: str | None = None) -> Figure:
        """The estimates of one question (by default the first) with their intervals: those of the
        scale that most of them have.

        Raises:
            FedsysError: there is nothing to draw, or Matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise FedsysError("plots need Matplotlib: pip install matplotlib") from None
        answer = self.answers[0] if name is None else self[name]
        scales = Counter(scale_of(each.label) for each in answer.estimates)
        most = scales.most_common(1)[0][0] if scales else ""
        drawn = [e for e in answer.estimates if e.low is not None and scale_of(e.label) == most]
        if not drawn:
            raise FedsysError(f"question {answer.name!r} has no interval to draw")
        figure = Figure(figsize=(6.4, 0.8 + 0.3 * len(drawn)), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(drawn))
        axes.barh(places, [each.value for each in drawn], color="#4477aa", height=0.7)
        for at, each in zip(places, drawn, strict=True):
            axes.plot([each.low or 0.0, each.high or 0.0], [at, at], color="black", linewidth=1.2)
        axes.set_yticks(places, [each.label or answer.name for each in drawn])
        axes.invert_yaxis()
        axes.set_title(answer.name)
        return figure

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{escape(answer.name)}</th><td>{escape(each.label)}</td>"
            f"<td>{figures.plain(each.value)}</td><td>{figures.plain(each.low)} to "
            f"{figures.plain(each.high)}</td></tr>"
            for answer in self.answers
            for each in answer.estimates
        )
        return f"<table>{cells}</table>"


def query(
    task: object,
    questions: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any] | None = None,
    *,
    of: Path | str | None = None,
    out: Path | str | None = None,
    data: Path | str | None = None,
    population: Path | str | None = None,
) -> Answers:
    """Asks virtual clients one round of questions, as ``fedsys query`` does.

    Args:
        task: whose data is asked about: a task, a class that builds one, or a name.
        questions: tables with ``ask`` and ``name``; see `fedsys.queries.questions`.
        settings: further keys, such as ``{"privacy.epsilon": 1.0}``.
        of: folder of a run whose model is evaluated on the clients' rows.
        out: the run's folder; by default the first free ``runs/<name>``.
        data: folder with data files.
        population: folder of all runs on these clients, under one budget.

    Raises:
        FedsysError: with one line that says what is wrong.
    """
    model = None if of is None else Path(of)
    given = dict(settings or {})
    asked: dict[str, Any] = {"questions": [dict(each) for each in questions]}
    tree = asking_tree(asked, "questions", model, partition=given.get("population.partition"))
    options = given.get("task.options", tree.get("task", {}).get("options", {}))
    origin = tasks.Origin.of(task, options)
    apply_values(
        {**given, "task.name": origin.name, "task.options": dict(origin.options)},
        tree,
    )
    result = harness.run(
        validate(tree),
        out=None if out is None else Path(out),
        data=None if data is None else Path(data),
        observer=None,
        origin=origin,
        population=None if population is None else Path(population),
    )
    return answers_of(result.folder)


def answers_of(folder: Path) -> Answers:
    """The answers in a run's folder.

    Raises:
        FedsysError: there is no finished run, or its round gave no answer.
    """
    run = Run.open(folder)
    stated = run.summary.get("query")
    if not isinstance(stated, dict):
        raise FedsysError(f"{folder}: its round gave no answer")
    found = [
        Answer(
            name=each["name"],
            ask=each["ask"],
            estimates=tuple(Estimate(**one) for one in each["estimates"]),
            interval=each["interval"],
            shape=tuple(each["shape"]),
            notes=tuple(each["notes"]),
        )
        for each in stated["answers"]
    ]
    return Answers(run=run, answers=tuple(found))
