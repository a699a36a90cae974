"""Random kills and pauses for a while: nothing is lost, nothing leaks, the job goes on.

``FEDSYS_SOAK_SECONDS`` says for how long; an hour, with its figures, is
``python -m simulations.testbed --fault kill,pause --minutes 60``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from simulations.testbed.faults import FAULTS
from simulations.testbed.federation import COORDINATOR, Federation
from simulations.testbed.resources import longest_lives
from simulations.testbed.trial import Trial

SECONDS = float(os.environ.get("FEDSYS_SOAK_SECONDS", "90"))
AGENTS = 5

pytestmark = [pytest.mark.slow, pytest.mark.timeout(int(SECONDS) + 900)]


def test_kills_and_pauses_lose_and_leak_nothing(tmp_path: Path) -> None:
    with Federation.make(tmp_path, AGENTS) as federation:
        trial = Trial(federation, [FAULTS["kill"], FAULTS["pause"]], seed=20)
        report = trial.run(seconds=SECONDS)
    assert report.passed, report.broken
    assert len(report.strikes) > 5
    # the agent that was spared, and the coordinator while it was, were watched all the time
    ages = {life[0].name: life[-1].age - life[0].age for life in longest_lives(report.samples)}
    assert ages[f"a{AGENTS - 1}"] > SECONDS * 0.9
    assert ages[COORDINATOR] > SECONDS / 4
