"""A run's folder as a value: what it achieved, what it cost, its model, its rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsys.errors import ConfigError, RunFolderError
from fedsys.privacy import Epsilons
from fedsys.records import AuditResult
from fedsys.report import figures
from fedsys.run_folder import RunFolder
from fedsys.runs.drawing import draw_run
from fedsys.runs.history import history_of
from fedsys.runs.rows import Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from fedsys import tasks

__all__ = ["Run"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's folder and what its summary says.

    Attributes:
        folder: holds everything that the run wrote.
        summary: ``summary.json``.
        metrics: the last evaluation's metrics, by name.
        epsilon: epsilon at ``delta``, by view.
        delta: delta of every epsilon.
        interrupted: whether there are rounds left, for `resume`.
        task: the task that was trained; None where the folder was opened without it.
    """

    folder: Path
    summary: Mapping[str, Any] = field(repr=False)
    metrics: Mapping[str, float]
    epsilon: Epsilons
    delta: float
    interrupted: bool
    task: tasks.Task | None = field(default=None, repr=False)

    @classmethod
    def open(cls, folder: Path | str, *, task: object | None = None) -> Run:
        """Opens a run that was made earlier.

        Args:
            folder: the run's folder.
            task: its custom task, for `model`: an object, a class or a name. Code that a folder
                names is not imported unless it is named here.

        Raises:
            RunFolderError: there is no run with a summary.
        """
        folder, found = Path(folder), None
        if task is not None:
            from fedsys.tasks import Origin

            found = Origin.of(task).task
        stored = RunFolder(folder)
        if not stored.summary.exists():
            raise RunFolderError(f"{folder}: no finished or interrupted run: no summary.json")
        summary = stored.read_summary()
        try:
            privacy = summary["privacy"]
            epsilons = {
                view: math.inf if value == "inf" else value
                for view, value in privacy["epsilon"].items()
            }
            return cls(
                folder=folder,
                summary=summary,
                metrics=summary["metrics"],
                epsilon=Epsilons(**epsilons),
                delta=privacy["delta"],
                interrupted=summary["status"] == "interrupted",
                task=found,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(f"{folder}: summary.json is damaged: {error}") from None

    @property
    def report(self) -> Path:
        """The report's path; the page is written on first use."""
        page = self.folder / "report.html"
        if page.exists():
            return page
        from fedsys import report

        return report.build(self.folder, self.audit(), private=True)

    @cached_property
    def history(self) -> Rows:
        """A row for each round, with outcome, metrics, cohort and epsilon by view, as audited."""
        return history_of(self.folder, self.audit())

    def audit(self, *, key: str | None = None) -> AuditResult:
        """Derives every claim of the run again from its folder.

        Args:
            key: the required signer, as for `fedsys.audit_run`.
        """
        from fedsys.audit import audit_run

        return audit_run(self.folder, key=key)

    def model(self) -> nn.Module:
        """The task's own module with the run's final weights, in evaluation mode.

        Raises:
            RunFolderError: the audit fails, or the run is not finished.
            ConfigError: the run's task is custom code, and was not given.
        """
        from fedsys import tasks
        from fedsys.release.model import ReleasedModel

        released = ReleasedModel.of(self.folder)
        config, task = released.config, self.task
        if task is None:
            if ":" in config.task.name:
                raise ConfigError(
                    f"{self.folder}: its task {config.task.name} is custom code; if you trust it, "
                    f"open the run with it: Run.open(folder, task=...)"
                )
            task = tasks.load(config.task.name, config.task.options)
        found = task

        def sample() -> tasks.Examples:
            return tasks.read_data(found, tasks.DataSource.locate()).test

        return released.fill(tasks.init_model(found, config.job.seed, sample))

    def plot(self, metric: str | None = None) -> Figure:
        """A metric over the rounds (by default accuracy, or the first), and epsilon next to it.

        Raises:
            FedsysError: there is nothing to draw, or no such metric.
        """
        budget = self.summary.get("privacy", {}).get("budget")
        return draw_run(
            self.history,
            title=self.folder.name,
            metric=metric,
            budget=budget if isinstance(budget, (int, float)) else None,
        )

    def _repr_html_(self) -> str:
        cells = [(name, figures.metric(name, value)) for name, value in self.metrics.items()]
        cells += [
            (f"ε {view}", figures.epsilon(getattr(self.epsilon, view)))
            for view in ("outsider", "participant", "server")
        ]
        cells += [
            ("δ", figures.small(self.delta)),
            ("rounds", str(self.summary.get("rounds", ""))),
            ("status", str(self.summary.get("status", ""))),
            ("folder", str(self.folder)),
        ]
        rows = (f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in cells)
        return f"<table>{''.join(rows)}</table>"
