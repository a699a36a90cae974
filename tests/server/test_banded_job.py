"""Correlated noise over rounds: positions, resumes, and the noise that is really released."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsys.config import load
from fedsys.privacy.randomness import AesCtrStream
from fedsys.run_folder import RunFolder
from server.job import Job, JobFacts
from server.job_opening import JobSpec, restore_job, start_job
from server.job_settings import plan_for

D = 40
SETTINGS = [
    "privacy.mechanism=banded-mf", "cohort.sampling=min-separation", "cohort.min_separation=4",
    "privacy.max_participations=3", "cohort.expected=20", "rounds.count=10",
    "aggregation.dropout=0.01",
    "server.strategy=fedavg", "server.learning_rate=1.0", "population.clients=100",
]  # fmt: skip
FACTS = JobFacts(population_known="test", roster="test", randomness="test")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))


def open_job(folder: Path, *, start: bool) -> Job:
    config = load("quickstart", SETTINGS)
    plan = plan_for(config, population=100, layers=(D,))
    make = start_job if start else restore_job
    run = RunFolder.create(folder) if start else RunFolder.open(folder)
    weights = np.zeros(D, dtype=np.float32)
    name = AesCtrStream(bytes(32))  # the job's, on which all that it draws depends
    return make(run, JobSpec(config=config, plan=plan, weights=weights, facts=FACTS, entropy=name))


def take(job: Job, stream: AesCtrStream, *, abort: bool = False) -> NDArray[np.float32]:
    """One round whose clients all send zeros: what is released is the noise alone."""
    coordinator = job.coordinator
    before = coordinator.weights
    open_ = coordinator.begin_round(stream)
    if abort:
        coordinator.abort_round("test", before_unmask=True)
        return np.zeros(D, dtype=np.float32)
    total = np.zeros(D, dtype=np.uint32)
    after = coordinator.finish_round(total, open_.cohort, diagnostics={})
    return after - before


def test_cohorts_keep_their_distance(tmp_path: Path) -> None:
    stream = AesCtrStream(bytes(32))
    cohorts = []
    job = open_job(tmp_path / "run", start=True)
    with job.ledger:
        for _ in range(10):
            cohorts.append(set(job.coordinator.begin_round(stream).cohort))
            job.coordinator.abort_round("test", before_unmask=True)
    for at, cohort in enumerate(cohorts):
        assert len(cohort) == 20
        for other in cohorts[at + 1 : at + 4]:
            assert not cohort & other


def test_a_resumed_job_goes_on_at_its_position(tmp_path: Path) -> None:
    """Interrupted or not, with an aborted round between, the same entropy gives the same noise."""
    releases = {}
    for name, cut in (("whole", False), ("cut", True)):
        stream = AesCtrStream(bytes(range(32)))
        found = []
        for start in (0, 4) if cut else (0,):
            job = open_job(tmp_path / name, start=start == 0)
            with job.ledger:
                rounds = range(start, 4 if cut and start == 0 else 8)
                found += [take(job, stream, abort=number == 2) for number in rounds]
        releases[name] = found
    for whole, cut_ in zip(releases["whole"], releases["cut"], strict=True):
        np.testing.assert_array_equal(whole, cut_)


def test_what_a_checkpoint_remembers_is_for_the_server_alone(tmp_path: Path) -> None:
    job = open_job(tmp_path / "run", start=True)
    with job.ledger:
        take(job, AesCtrStream(bytes(32)))
    (path,) = (tmp_path / "run" / "checkpoints").glob("*.npz")
    assert path.stat().st_mode & 0o077 == 0
