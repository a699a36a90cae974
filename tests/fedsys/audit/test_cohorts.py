"""Cohorts in ``private.jsonl`` are held against the sampling that the plan promises."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedsys.audit.cohorts import Cohorts
from fedsys.audit.sampling_tests import unlikely
from fedsys.privacy import Ledger, Signer, ledger_header, make_plan, read_ledger
from fedsys.privacy.plan import PrivacyPlan
from fedsys.privacy.sampling.cohorts import cyclic_group


def plan_for(**changes: Any) -> PrivacyPlan:
    parameters: dict[str, Any] = {
        "mechanism": "banded-mf",
        "population": 400,
        "expected_cohort": 40,
        "rounds": 12,
        "dimension": 10,
        "clip": 1.0,
        "delta": 1e-5,
        "noise_multiplier": 2.0,
        "min_separation": 4,
        "cap": 100,
        "min_survivors": 1,
        "dropout": 0.0,
    }
    return make_plan(**parameters | changes)


def checked(folder: Path, plan: PrivacyPlan, cohorts: Sequence[Sequence[int]]) -> Cohorts:
    """What an audit finds in a ledger with these cohorts."""
    paths = folder / "ledger.jsonl", folder / "private.jsonl"
    with Ledger.create(*paths, signer=Signer.generate(), header=ledger_header(plan)) as ledger:
        for number, cohort in enumerate(cohorts, start=1):
            ledger.reserve(number, {"event": plan.event().to_json()})
            ledger.commit(number, {}, sampled=cohort, survivors=cohort)
    found = Cohorts(paths[1], read_ledger(paths[0]), plan)
    found.finish()
    assert found.problems == []
    return found


def in_turn(rounds: int) -> list[list[int]]:
    """Half of each round's cyclic group, another half each time."""
    return [
        [int(k) for k in cyclic_group(t, 4, 400)[(t - 1) // 4 % 3 :: 2]]
        for t in range(1, rounds + 1)
    ]


def test_cyclic_groups_take_turns(tmp_path: Path) -> None:
    found = checked(tmp_path, plan_for(), in_turn(12))
    assert found.broken == []
    assert found.opened == 12
    assert found.counts is not None
    assert {members for members, _ in found.counts.sizes} == {100}


def test_who_is_asked_out_of_turn_is_named(tmp_path: Path) -> None:
    cohorts = in_turn(12)
    cohorts[5] = sorted({*cohorts[5], 2})  # of the third group; round 6 is the second's
    found = checked(tmp_path, plan_for(), cohorts)
    assert found.broken == ["round 6: 1 invited clients are not in the round's cyclic group"]


def test_a_group_that_is_asked_whole_is_not_sampled(tmp_path: Path) -> None:
    plan = plan_for()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = [[int(k) for k in cyclic_group(t, 4, 400)] for t in range(1, 13)]
    for folder, cohorts in (("a", whole), ("b", in_turn(4) * 3)):
        counts = checked(tmp_path / folder, plan, cohorts).counts
        assert counts is not None
        assert unlikely(counts) is not None


@pytest.mark.parametrize("sampling", ["fixed", "min-separation"])
def test_a_cohort_of_another_size_than_all_have_is_named(tmp_path: Path, sampling: str) -> None:
    plan = plan_for(
        mechanism="central-gaussian" if sampling == "fixed" else "banded-mf",
        sampling=sampling, expected_cohort=2, max_participations=12, min_separation=2,
    )  # fmt: skip
    found = checked(tmp_path, plan, [[1, 2], [3, 4], [5, 6, 7]])
    assert found.broken == ["round 3: 3 clients were invited; every cohort has 2"]


@pytest.mark.parametrize(("apart", "broken"), [(4, False), (3, True)])
def test_a_client_returns_after_the_separation(tmp_path: Path, apart: int, broken: bool) -> None:
    plan = plan_for(sampling="min-separation", max_participations=3, expected_cohort=2)
    cohorts: list[list[int]] = [[10 * t, 10 * t + 1] for t in range(1, 10)]
    cohorts[apart][0] = 10
    found = checked(tmp_path, plan, cohorts)
    assert bool(found.broken) == broken
    if broken:
        assert found.broken == ["round 4: a client was invited again within 4 rounds"]
