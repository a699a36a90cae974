"""A compiled step is compared with an eager one, by a backend that needs no compiler."""

from __future__ import annotations

import pytest

from simulations.benchmarks import compiled_step


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch
def test_both_kinds_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["task.options.layers=1", "task.options.hidden=16", "task.options.sequence=8"]
    settings = [word for setting in small for word in ("--set", setting)]
    compiled_step.main(["--backend", "eager", "--steps", "1", "--turns", "2", *settings])
    shown = capsys.readouterr().out
    for kind in ("eager", "compiled"):
        (line,) = [line for line in shown.splitlines() if line.startswith(f"{kind}: ")]
        assert float(line.split()[1]) > 0


def test_a_work_without_characters_is_refused() -> None:
    with pytest.raises(SystemExit, match="--work W2"):
        compiled_step.measure("W2", [], steps=1, turns=1, backend="eager")
