"""Figures of single clients: in a simulation's own folder and page, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsys import report
from fedsys.cli.finish import audit_and_report
from fedsys.config import Config
from fedsys.errors import FedsysError
from fedsys.release.publication import publish_run
from server.deployed.fit import require_fit
from simulations import harness
from simulations.per_client import figures_of
from simulations.personal import evaluate_clients

Configure = Callable[..., Config]
CLIENTS = (
    "evaluation.clients=true", "population.partition=dirichlet", "population.clients=90",
    "rounds.count=1",
)  # fmt: skip


def test_a_run_shows_its_clients_in_the_private_page_alone(
    configure: Configure, tmp_path: Path
) -> None:
    said: list[object] = []
    run = harness.run(configure(*CLIENTS), out=tmp_path / "run", observer=said.append).folder
    found = json.loads((run / "clients.json").read_text())
    assert (found["clients"], found["rows"], len(found["evaluated"])) == (90, "trained on", 90)
    accuracy = found["metrics"]["accuracy"]
    wanted = evaluate_clients(
        run,
        lambda model, own, _kept: float((model(own.x).argmax(1) == own.y).float().mean()),
        clients=[3, 40],
    )
    for client, value in wanted.values.items():
        assert accuracy["values"][client] == pytest.approx(value, abs=1e-5)
    assert accuracy["worst_decile"] == pytest.approx(np.quantile(accuracy["values"], 0.1))
    assert any("no epsilon covers it" in str(line) for line in said)
    checked = audit_and_report(run)
    assert checked.passed
    assert "no deployment has it" in (run / "report.html").read_text()
    public = publish_run(run, tmp_path / "public").path
    assert not (public / "clients.json").exists()
    report.build(public, checked, private=False)
    assert "Client by client" not in (public / "report.html").read_text()


@pytest.mark.slow
def test_rows_that_were_held_out_are_preferred(configure: Configure, tmp_path: Path) -> None:
    config = configure(*CLIENTS, "population.held_out=0.3", "privacy.mechanism=none")
    run = harness.run(config, out=tmp_path / "run").folder
    found = json.loads((run / "clients.json").read_text())
    assert found["rows"] == "held out"
    assert 60 < len(found["metrics"]["loss"]["values"]) <= 90


def test_the_worst_decile_is_on_the_worse_side() -> None:
    values = [float(each) for each in range(11)]
    assert figures_of("accuracy", values)["worst_decile"] == 1.0
    assert figures_of("loss", values)["worst_decile"] == 9.0
    assert figures_of("loss", [float("nan")]) == {"mean": None, "worst_decile": None, "values": []}


def test_devices_have_no_such_view(configure: Configure) -> None:
    with pytest.raises(FedsysError, match="a simulation's view"):
        require_fit(configure(*CLIENTS), 90)
