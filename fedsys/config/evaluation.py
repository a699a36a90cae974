"""``[evaluation]``: the coordinator's own measurements of the model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fedsys.config.section import Count, Section
from fedsys.improvement import less_is_better

__all__ = ["Evaluation", "Stop"]


class Stop(Section):
    """When a run ends before its last round, because its model no longer improves on the
    coordinator's own test data.

    Those data are outside of every epsilon: they are not the clients'. The number of rounds is then
    chosen from what rounds released, so the epsilon to rely on is that of all planned rounds, which
    summary, report and audit state.

    Attributes:
        metric: The metric to look at, as evaluations call it: ``accuracy``, ``loss``...; empty for
            none.
        patience: Number of evaluations in a row without a better value, after which the run ends.
        better: Whether ``less`` or ``more`` of it is better; ``by-name`` where its name says so.
    """

    metric: Annotated[str, Field(max_length=100)] = ""
    patience: Count = 5
    better: Literal["by-name", "less", "more"] = "by-name"

    @property
    def less(self) -> bool | None:
        """Whether less of the metric is better; None where nothing says so."""
        return less_is_better(self.metric) if self.better == "by-name" else self.better == "less"


class Evaluation(Section):
    """When the model is evaluated, and on what.

    Attributes:
        data: ``test`` evaluates on the task's test examples, ``none`` does not evaluate.
        every: Number of rounds from one evaluation to the next; the last round is always evaluated.
        metrics: Further figures over the whole test set, which no mean over examples gives:
            ``macro-f1``, ``auc``, or ``"package.module:Attr"`` for a function of your own of
            (outputs, targets) that returns a number.
        on_devices_every: Number of rounds of training after which, and after the last, one more
            round asks ``questions`` of the model on clients' held-out examples
            (``population.held_out``). Such rounds come on top of ``rounds.count``, at the same
            cost each, within the same epsilon; 0 asks never.
        questions: What they ask, one table each, with ``ask`` and ``name``; [Ask before you
            train](ask.md) has the questions.
        clients: Whether a simulation also evaluates its last model client by client, on the rows
            that ``population.held_out`` keeps aside, or on those that the client trained on. Those
            figures are of single clients, and no epsilon covers them: they stay in
            ``clients.json`` and in the private report. A job on devices has no such view.
        stop: When the run ends early.
    """

    data: Literal["test", "none"] = "test"
    every: Count = 1
    metrics: Annotated[list[str], Field(max_length=64)] = Field(default_factory=list)
    on_devices_every: Annotated[int, Field(ge=0, le=10**6)] = 0
    questions: list[dict[str, Any]] = Field(default_factory=list)
    clients: bool = False
    stop: Stop = Field(default_factory=Stop)
