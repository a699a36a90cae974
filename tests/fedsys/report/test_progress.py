"""How a run's progress is shown: in a notebook's cell, and as lines."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fedsys.report.progress import describe, observer
from simulations.harness import RoundReport


def report(number: int, epsilon: float | None = 1.5) -> RoundReport:
    return RoundReport(
        number=number,
        of=100,
        metrics={"accuracy": number / 100},
        spent=lambda: epsilon,
        budget=4.0,
        clients_per_second=1000.0,
    )


class Kernel:
    """An IPython that keeps what it was asked to show."""

    def __init__(self, kernel: object) -> None:
        self.shown: list[dict[str, str]] = []
        self.display = SimpleNamespace(display=self._display)
        self._shell = SimpleNamespace(kernel=kernel)

    def get_ipython(self) -> object:
        return self._shell

    def _display(self, page: dict[str, str], *, raw: bool, display_id: bool) -> Kernel:
        assert raw
        assert display_id
        self.update(page, raw=raw)
        return self

    def update(self, page: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(page)


def test_one_line_a_round() -> None:
    assert describe(report(7)) == "accuracy 0.070  epsilon 1.50 of 4.00  1,000 clients/s"
    assert describe(report(7, None)) == "accuracy 0.070  no privacy  1,000 clients/s"


def test_a_notebook_has_one_display_that_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ipython = Kernel(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    with observer(quiet=False) as watch:
        assert ipython.shown[-1]["text/plain"] == "setting up"
        watch("a client is called <b>")
        for number in range(1, 101):
            watch(report(number))
    assert len(ipython.shown) < 20, "not a message a round"
    last = ipython.shown[-1]
    assert last["text/plain"].splitlines() == [
        "a client is called <b>",
        "round 100/100  accuracy 1.000  epsilon 1.50 of 4.00  1,000 clients/s",
    ]
    assert '<progress value="1.000"' in last["text/html"]
    assert "a client is called &lt;b&gt;" in last["text/html"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("ipython", [None, Kernel(kernel=None)])
def test_anywhere_else_there_are_lines(
    ipython: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    with observer(quiet=False) as watch:
        watch("a notice")
        for number in range(1, 101):
            watch(report(number))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "a notice"
    assert lines[1].startswith("round 1/100 ")
    assert lines[-1].startswith("round 100/100 ")
    assert len(lines) < 20


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with observer(quiet=True) as watch:
        watch("a notice")
        watch(report(1))
    assert capsys.readouterr() == ("", "")
