"""SCAFFOLD and FedNova learn where clients differ, against FedAvg on the same clients.

The figures of whole runs are in simulations/RESULTS.md. A quick run has fewer rounds; seeds are
fixed, and margins are well below what these seeds reach.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsys.config import load
from simulations import harness

FEDAVG = ("local.procedure=train", "server.strategy=fedavg")


def accuracy(recipe: str, out: Path, *settings: str) -> float:
    config = load(recipe, [*settings, "engine.processes=1", "evaluation.every=100"])
    return harness.run(config, out=out).metrics["accuracy"]


@pytest.mark.parametrize(
    ("recipe", "rounds", "margin"),
    [
        ("scaffold", 8, 0.05),
        pytest.param("scaffold", 20, 0.05, marks=pytest.mark.slow),
        pytest.param("fednova", 40, 0.05, marks=pytest.mark.slow),
    ],
)
def test_it_beats_fedavg_where_clients_differ(
    recipe: str, rounds: int, margin: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    count = f"rounds.count={rounds}"
    own = accuracy(recipe, tmp_path / "own", count)
    plain = accuracy(recipe, tmp_path / "plain", count, *FEDAVG)
    assert own > plain + margin
