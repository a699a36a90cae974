"""Cohorts that code of a job's own chooses: what it is given, and what it may return."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsys.audit import audit_run
from fedsys.config import load
from fedsys.errors import ConfigError, MechanismError
from fedsys.privacy import AesCtrStream, PrivacyPlan, guaranteed_epsilon, make_plan
from fedsys.privacy.sampling.drawing import Chooser, CohortSampler
from simulations import harness

NAME = "tests.fedsys.privacy.sampling.test_drawing:by_turns"
CHOSEN = (f"cohort.sampling={NAME}", "privacy.max_participations=2")
QUICK = (
    "aggregation.protocol=ideal",
    "population.clients=60",
    "cohort.expected=20",
    "rounds.count=3",
    "evaluation.every=3",
)


def by_turns(
    round: int, left: NDArray[np.int64], size: int, numbers: np.random.Generator
) -> Sequence[int]:
    """As a user would write one: clients that have turns left, in an order of its own."""
    cohort: list[int] = numbers.permutation(left)[:size].tolist()
    return cohort


def plan_of(**changes: Any) -> PrivacyPlan:
    choices: dict[str, Any] = {
        "mechanism": "central-gaussian",
        "population": 30,
        "expected_cohort": 10,
        "rounds": 6,
        "dimension": 5,
        "clip": 1.0,
        "delta": 1e-5,
        "dropout": 0.0,
        "noise_multiplier": 4.0,
        "sampling": "chosen",
        "max_participations": 2,
    }
    return make_plan(**choices | changes)


def draw(choose: Chooser, round: int = 1, plan: PrivacyPlan | None = None) -> tuple[int, ...]:
    return CohortSampler(plan or plan_of(), choose).draw(round, AesCtrStream(bytes(32)))


def test_every_client_has_as_many_turns_as_are_paid_for_and_no_more() -> None:
    seen: list[int] = []

    def greedy(
        round: int, left: NDArray[np.int64], size: int, numbers: np.random.Generator
    ) -> NDArray[np.int64]:
        seen.append(len(left))
        return left[:size]

    sampler = CohortSampler(plan_of(), greedy)
    cohorts = [sampler.draw(number, AesCtrStream(bytes(32))) for number in range(1, 7)]
    assert seen == [30, 30, 20, 20, 10, 10]
    counts = np.bincount(np.concatenate(cohorts))
    assert counts.tolist() == [2] * 30
    with pytest.raises(MechanismError, match="0 clients may take part, 10 are needed"):
        sampler.draw(7, AesCtrStream(bytes(32)))
    resumed = CohortSampler(plan_of(), greedy)
    resumed.note(1, cohorts[0])
    resumed.note(2, None)  # a crash took it: anybody may have been in it
    assert 0 not in resumed.draw(3, AesCtrStream(bytes(32)))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (
            lambda left: left[:9],
            r"returned int64 of shape \(9,\); a cohort is cohort.expected = 10",
        ),
        (lambda left: left[:10] / 2, "returned float64"),
        (lambda left: [0] * 10, "returned a client twice"),
        (lambda left: [*range(9), 30], "clients that it was not given"),
        (lambda left: 1 / 0, "failed: ZeroDivisionError: division by zero"),
        (lambda left: None, "returned object"),
    ],
)
def test_what_is_no_cohort_is_one_clear_line(returned: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        draw(lambda _, left, *__: returned(left))
    assert "\n" not in str(refusal.value)


def test_nothing_is_claimed_from_how_it_chooses() -> None:
    """The cost is that of clients in as many rounds as they may be, and of a replaced one."""
    chosen, worst = plan_of(), plan_of(sampling="min-separation", min_separation=1)
    assert guaranteed_epsilon(chosen) == guaranteed_epsilon(worst)
    drawn, every = plan_of(sampling="fixed"), plan_of(max_participations=6)
    assert guaranteed_epsilon(every) > guaranteed_epsilon(drawn)
    with pytest.raises(MechanismError, match="'chosen' needs max_participations"):
        plan_of(max_participations=None)
    with pytest.raises(ConfigError, match=r"rounds.count = 6 cohorts of 10 clients .* need 60"):
        CohortSampler(plan_of(max_participations=1), by_turns)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["cohort.sampling=poison"], r"allowed are poisson, .* \(did you mean poisson\?\)"),
        (["cohort.sampling=chosen"], "allowed are poisson"),
        ([CHOSEN[0]], "counts as being in privacy.max_participations rounds: set it"),
        ([*CHOSEN, "cohort.min_separation=2"], "no distance between rounds is claimed"),
        ([*CHOSEN, "privacy.mechanism=banded-mf"], "with privacy.mechanism = 'banded-mf'"),
    ],
)
def test_configurations_that_claim_otherwise_are_refused(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load("quickstart", settings)


def test_a_run_is_audited_and_says_what_it_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    config = load("quickstart", [*QUICK, *CHOSEN, "privacy.noise_multiplier=3"])
    run = harness.run(config, out=tmp_path / "run").folder
    found = audit_run(run)
    assert found.passed, [each for each in found.claims if each.holds is False]
    by_name = {each.name: each for each in found.claims}
    assert "code of the job's own" in by_name["Cohorts drawn as committed to"].claimed
    with pytest.raises(ConfigError, match=f"if you trust it, add --code {NAME}"):
        harness.resume(run)


def test_a_sampler_that_is_not_there_or_fails_is_refused_before_anything_is_spent(
    tmp_path: Path,
) -> None:
    lost = load("quickstart", [*QUICK, "cohort.sampling=nowhere:at_all", CHOSEN[1]])
    with pytest.raises(ConfigError, match=r"cohort.sampling = 'nowhere:at_all' cannot be loaded"):
        harness.run(lost, out=tmp_path / "run")
    failing = load("quickstart", [*QUICK, f"cohort.sampling={__name__}:plan_of", CHOSEN[1]])
    with pytest.raises(ConfigError, match="the job's own code failed: TypeError"):
        harness.run(failing, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
