"""Progress of a simulation: a display in a notebook, a bar on a terminal, lines anywhere else."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from fedsys.printable import printable

if TYPE_CHECKING:
    from simulations.harness import RoundReport

__all__ = ["describe", "observer"]

_PLAIN_SECONDS = 2.0
_CELL_SECONDS = 0.25
_NOTICES = 8
_BAR_SECONDS = 1.0
_MOST = 20_000
"""The most characters of a line."""


@contextmanager
def observer(*, quiet: bool) -> Iterator[Callable[[RoundReport | str], None]]:
    """A callable that shows each round's report, and notices passed as text."""
    if quiet:
        yield lambda _event: None
    elif (display := _notebook()) is not None:
        yield _Cell(display)
    elif sys.stderr.isatty():
        with _bar() as watch:
            yield watch
    else:
        yield _Plain()


def describe(report: RoundReport) -> str:
    """One round as one line."""
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


def _notebook() -> Callable[..., Any] | None:
    """IPython's ``display`` where this process is a notebook's kernel, which IPython in a terminal
    is not."""
    ipython = sys.modules.get("IPython")
    if ipython is None or getattr(ipython.get_ipython(), "kernel", None) is None:
        return None
    found: Callable[..., Any] = ipython.display.display
    return found


class _Cell:
    """One display under the notebook's cell, updated during the run; no widgets needed."""

    def __init__(self, display: Callable[..., Any]) -> None:
        self._last = -math.inf
        self._notices: list[str] = []
        self._now, self._done = "setting up", 0.0
        self._handle = display(self._page(), raw=True, display_id=True)

    def __call__(self, event: RoundReport | str) -> None:
        now = time.monotonic()
        if isinstance(event, str):
            self._notices = [*self._notices, printable(event, _MOST)][-_NOTICES:]
        else:
            self._now = f"round {event.number}/{event.of}  {describe(event)}"
            self._done = event.number / event.of
            if event.number not in (1, event.of) and now - self._last < _CELL_SECONDS:
                return
        self._last = now
        self._handle.update(self._page(), raw=True)

    def _page(self) -> dict[str, str]:
        text = "\n".join([*self._notices, self._now])
        lines = "".join(f"<div>{escape(line)}</div>" for line in self._notices)
        bar = f'<progress value="{self._done:.3f}" max="1"></progress>'
        html = f"{lines}<div>{bar} <code>{escape(self._now)}</code></div>"
        return {"text/plain": text, "text/html": html}


class _Plain:
    """Lines on standard error, at most one every two seconds; the first and last always."""

    def __init__(self) -> None:
        self._last = -math.inf

    def __call__(self, event: RoundReport | str) -> None:
        if isinstance(event, str):
            self._say(event)
            return
        now = time.monotonic()
        if event.number in (1, event.of) or now - self._last >= _PLAIN_SECONDS:
            self._last = now
            self._say(f"round {event.number}/{event.of}  {describe(event)}")

    @staticmethod
    def _say(text: str) -> None:
        print(printable(text, _MOST), file=sys.stderr, flush=True)


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
        bar, told = progress.add_task("setting up", total=None), -math.inf

        def watch(event: RoundReport | str) -> None:
            nonlocal told
            if isinstance(event, str):
                progress.console.print(printable(event, _MOST), markup=False, highlight=False)
                return
            progress.update(bar, completed=event.number, total=event.of)
            now = time.monotonic()
            if event.number == event.of or now - told >= _BAR_SECONDS:
                told = now  # an epsilon takes longer than a small round
                progress.update(bar, description=describe(event))

        yield watch
