"""Progress of a simulation: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedsys.cli.terminal import say
from fedsys.printable import printable

if TYPE_CHECKING:
    from simulations.harness import RoundReport

__all__ = ["describe", "observer"]

_PLAIN_SECONDS = 2.0


@contextmanager
def observer(*, quiet: bool) -> Iterator[Callable[[RoundReport | str], None]]:
    """A callable that shows each round's report, and notices given as text."""
    if quiet:
        yield lambda _event: None
    elif sys.stderr.isatty():
        with _bar() as watch:
            yield watch
    else:
        yield _Plain()


def describe(report: RoundReport) -> str:
    """One round in one line."""
    parts = []
    if "accuracy" in report.metrics:
        parts.append(f"accuracy {report.metrics['accuracy']:.3f}")
    elif report.metrics:
        name, value = next(iter(report.metrics.items()))
        parts.append(f"{name} {value:.3f}")
    if report.epsilon is None or math.isinf(report.epsilon):
        parts.append("no privacy")
    else:
        budget = f" of {report.budget:.2f}" if report.budget is not None else ""
        parts.append(f"epsilon {report.epsilon:.2f}{budget}")
    parts.append(f"{report.clients_per_second:,.0f} clients/s")
    return "  ".join(parts)


class _Plain:
    """Lines on standard error, at most one every two seconds, the first and last always."""

    def __init__(self) -> None:
        self._last = -math.inf

    def __call__(self, event: RoundReport | str) -> None:
        if isinstance(event, str):
            say(event, err=True)
            return
        now = time.monotonic()
        if event.number in (1, event.of) or now - self._last >= _PLAIN_SECONDS:
            self._last = now
            text = f"round {event.number}/{event.of}  {describe(event)}"
            say(text, err=True)


@contextmanager
def _bar() -> Iterator[Callable[[RoundReport | str], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task("setting up", total=None)

        def watch(event: RoundReport | str) -> None:
            if isinstance(event, str):
                progress.console.print(printable(event, 20_000), markup=False, highlight=False)
            else:
                progress.update(
                    bar, completed=event.number, total=event.of, description=describe(event)
                )

        yield watch
