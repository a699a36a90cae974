"""The one door for sums: what a plan does not allow is not released, under any host."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsys.config import load
from fedsys.errors import BudgetExceeded, MechanismError
from fedsys.privacy import read_ledger
from fedsys.privacy.randomness import AesCtrStream
from fedsys.run_folder import RunFolder
from server.coordinator import Coordinator, OpenRound, SumRefused, _strength
from server.job import Job, JobFacts
from server.job_opening import JobSpec, start_job
from server.job_settings import plan_for

D = 30
FACTS = JobFacts(population_known="test", roster="test", randomness="test")
SETTINGS = ["cohort.expected=40", "rounds.count=5", "aggregation.dropout=0.05"]
Bad = Callable[[OpenRound, Any], Sequence[int]]


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))


def job_of(folder: Path, *settings: str, clients: int = 400) -> Job:
    config = load(
        "quickstart",
        [*SETTINGS, "aggregation.protocol=ideal", f"population.clients={clients}", *settings],
    )
    plan = plan_for(config, population=clients, layers=(D,))
    weights = np.zeros(D, dtype=np.float32)
    spec = JobSpec(config=config, plan=plan, weights=weights, facts=FACTS)
    return start_job(RunFolder.create(folder), spec)


def finish(job: Job, survivors: Sequence[int]) -> None:
    total = np.zeros(job.coordinator.mechanism.length, dtype=np.uint32)
    job.coordinator.finish_round(total, survivors, diagnostics={})


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda open_, event: open_.cohort[: event.min_survivors - 1], "fewer clients than"),
        (lambda open_, event: (), "fewer clients than"),
        (lambda open_, event: [*open_.cohort, 399], "not asked"),
        (lambda open_, event: [*open_.cohort, open_.cohort[0]], "one of them twice"),
    ],
)
@pytest.mark.parametrize("mechanism", ["distributed-gaussian", "central-gaussian", "none"])
def test_a_sum_that_may_not_be_released_is_refused_and_spent(
    bad: Bad, reason: str, mechanism: str, tmp_path: Path
) -> None:
    job = _job_with(
        tmp_path / "run", mechanism, f"privacy.mechanism={mechanism}", "cohort.min_survivors=8"
    )
    coordinator, stream = job.coordinator, AesCtrStream(bytes(32))
    with job.ledger:
        open_ = coordinator.begin_round(stream)
        while 399 in open_.cohort:
            coordinator.abort_round("test", before_unmask=True)
            open_ = coordinator.begin_round(stream)
        before, spent = coordinator.weights.copy(), coordinator.spent
        with pytest.raises(SumRefused, match=reason):
            finish(job, bad(open_, coordinator.mechanism.event))
        np.testing.assert_array_equal(coordinator.weights, before)
        assert coordinator.spent.outsider >= spent.outsider
        # the round is over: another one can begin, and its sum may be released
        following = coordinator.begin_round(stream)
        assert following.number == open_.number + 1
        finish(job, following.cohort)
    last, good = read_ledger(job.folder.ledger).rounds[-2:]
    assert last.outcome == "abort"
    assert not last.refunds_server, "a sum existed"
    assert not any(character.isdigit() for character in str(last.body["reason"]))
    assert good.outcome == "commit"


def _job_with(folder: Path, mechanism: str, *settings: str) -> Job:
    if mechanism != "none":
        return job_of(folder, *settings)
    config = load("quickstart", [*SETTINGS, "aggregation.protocol=ideal", "population.clients=400"])
    privacy = config.privacy.model_copy(update={"mechanism": "none", "noise_multiplier": None})
    cohort = config.cohort.model_copy(update={"min_survivors": 8})
    config = config.model_copy(update={"privacy": privacy, "cohort": cohort})
    plan = plan_for(config, population=400, layers=(D,))
    weights = np.zeros(D, dtype=np.float32)
    spec = JobSpec(config=config, plan=plan, weights=weights, facts=FACTS)
    return start_job(RunFolder.create(folder), spec)


def test_a_sum_above_the_cap_is_refused(tmp_path: Path) -> None:
    job = job_of(tmp_path / "run")
    coordinator, stream = job.coordinator, AesCtrStream(bytes(32))
    cap = coordinator.mechanism.event.cap
    crowd = tuple(range(cap + 1))
    with job.ledger:
        coordinator._sampler.draw = lambda round, entropy: crowd  # type: ignore[method-assign]
        coordinator.begin_round(stream)
        with pytest.raises(SumRefused, match="more clients than the cap"):
            finish(job, crowd)
        coordinator.begin_round(stream)
        finish(job, crowd[:cap])


def test_a_mechanism_that_nobody_knows_reaches_no_round(tmp_path: Path) -> None:
    """Not even where sums come about in the clear."""
    from simulations.engine.chunk import ChunkTrainer, RoundWork

    job = job_of(tmp_path / "run")
    body = {**job.plan.event().to_json(), "mechanism": "made-up"}
    trainer = ChunkTrainer(None, None)  # type: ignore[arg-type]
    for protocol in ("ideal", "secure", "float"):
        work = RoundWork(
            number=1,
            weights=np.zeros(D, dtype=np.float32),
            seed=b"",
            mechanism=body,
            protocol=protocol,
        )
        with pytest.raises(MechanismError, match="unknown mechanism 'made-up'"):
            trainer.begin(work)
    with job.ledger, pytest.raises(MechanismError, match="mechanism must be one of"):
        job.plan.changed(mechanism="made-up").build_mechanism()


def test_when_a_job_of_the_servers_guarantee_ends_is_public(tmp_path: Path) -> None:
    """A budget below the worst case: the same round number whatever the cohorts were."""
    ends = []
    for seed in range(3):
        job = job_of(
            tmp_path / f"run{seed}",
            "privacy.guarantee=server",
            "privacy.max_participations=5",
            "privacy.noise_multiplier=1.5",
            "privacy.epsilon=5.0",
            "cohort.expected=100",
        )
        stream, rounds = AesCtrStream(bytes([seed]) * 32), 0
        with job.ledger:
            while True:
                try:
                    open_ = job.coordinator.begin_round(stream)
                except BudgetExceeded:
                    break
                finish(job, open_.cohort)
                rounds += 1
        ends.append(rounds)
        assert job.coordinator.spent.server is not None
        assert job.coordinator.spent.server <= 5.0 < math.inf
    assert len(set(ends)) == 1
    assert 0 < ends[0] < 5


@pytest.mark.parametrize(
    "lose",
    [
        lambda coordinator: coordinator.abort_round("cut off", before_unmask=False),
        lambda coordinator: coordinator.abort_round("cut off", before_unmask=True),
    ],
    ids=["opened, maybe", "nothing summed"],
)
def test_a_round_whose_sum_may_exist_counts_as_a_contribution(
    tmp_path: Path, lose: Callable[[Coordinator], None], request: pytest.FixtureRequest
) -> None:
    """A client sends zeros once it contributed as often as the plan lets it; an abort after the
    committee was asked to answer may have opened its update."""
    job = job_of(tmp_path / "run", "privacy.max_participations=1")
    with job.ledger:
        coordinator = job.coordinator
        first = coordinator.begin_round(AesCtrStream(bytes(32)))
        lose(coordinator)
        opened = "opened" in request.node.callspec.id
        assert coordinator.exhausted == (frozenset(first.cohort) if opened else frozenset())


@pytest.mark.parametrize("deviation", [1e-3, 1e170, 1e307])
def test_figures_of_a_paid_round_saturate(deviation: float) -> None:
    class Loud:
        noise_deviation = deviation

    for mean in (np.full(400, 1e160), np.full(400, 1.0)):
        found = _strength(mean, Loud())  # type: ignore[arg-type]
        assert all(math.isfinite(each) for each in found.values())
