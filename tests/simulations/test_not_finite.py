"""Updates that are not finite are counted at each round; a round of nothing else is the last."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedsys import tasks
from fedsys.audit import audit_run
from fedsys.config import Config, load
from fedsys.errors import TrainingError
from fedsys.tasks import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification
from simulations import harness

Configure = Callable[..., Config]


class Damaged(Classification):
    """Ten people with eight readings each; the first readings of some are NaN."""

    name = "damaged"
    preprocessing = "fixed"

    def __init__(self, bad: int) -> None:
        self.bad = bad

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    def clients(self, source: DataSource) -> FederatedData:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(80, 4, generator=generator)
        y = (x.sum(1) > 0).long()
        test = Examples(x=x[40:].clone(), y=y[40:])
        for person in range(self.bad):
            x[8 * person, 0] = torch.nan
        return FederatedData(train=Examples(x=x, y=y), test=test, natural=torch.arange(80) // 8)


SETTINGS = (
    "population.partition=by-column",
    "cohort.expected=10",
    "privacy.mechanism=none",
    "privacy.clip=10",
    "engine.path=loop",
    "engine.chunk=4",
)


def ran(config: Config, task: Damaged, out: Path) -> tuple[list[str], str]:
    """What was told, and the error that ended it."""
    told: list[str] = []

    def observer(event: Any) -> None:
        if isinstance(event, str):
            told.append(event)

    try:
        harness.run(config, out=out, observer=observer, origin=tasks.Origin.of(task))
    except TrainingError as error:
        return told, str(error)
    return told, ""


def counted(folder: Path) -> list[int]:
    lines = (folder / "private.jsonl").read_text().splitlines()
    return [it["not_finite"] for line in lines if "not_finite" in (it := json.loads(line))]


@pytest.mark.parametrize("protocol", ["ideal", "float", "secure"])
def test_some_are_counted_and_told(protocol: str, configure: Configure, tmp_path: Path) -> None:
    config = configure(*SETTINGS, f"aggregation.protocol={protocol}", "privacy.clip=10")
    told, error = ran(config, Damaged(3), tmp_path / "run")
    assert not error
    seen = counted(tmp_path / "run")
    assert seen == [3, 3, 3]
    for number in (1, 2, 3):
        line = f"round {number}: updates of 3 of 10 clients were not finite and counted as zero"
        assert any(each.startswith(line) for each in told)
    assert audit_run(tmp_path / "run").passed


@pytest.mark.parametrize("protocol", ["ideal", "secure"])
def test_everybody_stops_the_run_which_can_go_on(
    protocol: str, configure: Configure, tmp_path: Path
) -> None:
    config = configure(*SETTINGS, f"aggregation.protocol={protocol}")
    _, error = ran(config, Damaged(10), tmp_path / "run")
    assert error == (
        f"round 1: no update was finite (clients that trained: 10); check their data, then go on "
        f"with `fedsys simulate --resume {tmp_path / 'run'}`, or start again with a lower "
        f"local.learning_rate"
    )
    assert counted(tmp_path / "run") == [10]
    mended = tasks.Origin.of(Damaged(0))
    result = harness.resume(tmp_path / "run", origin=mended)
    assert result.rounds == 3
    assert counted(tmp_path / "run") == [10, 0, 0]
    assert audit_run(tmp_path / "run").passed


def test_no_ledger_says_so(configure: Configure, tmp_path: Path) -> None:
    """Who is in a cohort with nothing but NaN is the clients' secret under a mechanism."""
    config = configure(
        *SETTINGS, "privacy.mechanism=distributed-gaussian", "privacy.noise_multiplier=1.0"
    )
    _, error = ran(config, Damaged(10), tmp_path / "run")
    assert error.startswith("round 1: no update was finite")
    ledger = (tmp_path / "run" / "ledger.jsonl").read_text()
    assert '"kind":"commit"' in ledger.replace(" ", "")
    assert "finite" not in ledger


def test_a_buffered_run_counts_them_too(tmp_path: Path) -> None:
    config = load(
        "quickstart",
        [
            *(each for each in SETTINGS if not each.startswith("cohort")),
            "rounds.count=2",
            "rounds.mode=buffered",
            "rounds.buffer=4",
            "rounds.concurrency=8",
            "cohort.sampling=arrivals",
            "cohort.expected=4",
            "privacy.max_participations=4",
            "aggregation.protocol=ideal",
            "faults.seconds_per_example=0.1",
        ],
    )
    _, error = ran(config, Damaged(10), tmp_path / "run")
    assert error.startswith("buffer 1: no update was finite (clients that trained: 4)")
