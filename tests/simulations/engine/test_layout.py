"""How many processes a job may train in."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedsys.config import Config
from simulations.engine import layout


@pytest.mark.parametrize(
    ("protocol", "dimension", "cores", "processes"),
    [
        ("secure", layout.LARGE, 2, 1),
        ("secure", layout.LARGE, 1, 1),
        ("secure", layout.LARGE, 8, 4),
        ("secure", layout.LARGE - 1, 8, 8),
        ("ideal", layout.LARGE, 8, 8),
        ("float", layout.LARGE, 64, 40),
    ],
)
def test_encrypting_large_vectors_gets_half_of_the_cores(
    configure: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    dimension: int,
    cores: int,
    processes: int,
) -> None:
    monkeypatch.setattr(layout, "cores", lambda: cores)
    config = configure(f"aggregation.protocol={protocol}", "cohort.expected=40")
    assert layout._most_processes(config, dimension) == processes
