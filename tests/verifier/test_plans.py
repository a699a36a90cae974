"""Plans and outcomes that no short simulation meets: both implementations say the same of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsys.privacy import Ledger, make_plan, read_ledger, replay
from fedsys.privacy.ledger import read_private
from fedsys.privacy.noise import rounding_distance
from fedsys.privacy.plan import PrivacyPlan
from tests.fedsys.privacy.ledger.ledgers import create
from tests.fedsys.privacy.plans import FORTY_ROUNDS
from tests.verifier import chain, private, views
from tests.verifier.delta import check_parts, parts, tau
from tests.verifier.plan import Plan
from tests.verifier.verify import TOLERANCE

PLANS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "colluders": {"colluders": 3},
    "secure, everybody": {"corrupt": 0.1, "dropout": 0.05},
    "secure, drawn": {
        "population": 4000,
        "expected_cohort": 400,
        "corrupt": 0.1,
        "dropout": 0.1,
        "colluders": 2,
        "rounds": 3,
    },
    "secure, fixed": {"corrupt": 0.2, "dropout": 0.02, "sampling": "fixed"},
    "secure, large": {
        "population": 50_000,
        "expected_cohort": 1500,
        "corrupt": 0.05,
        "dropout": 0.1,
        "rounds": 2,
        "sampling": "fixed",
    },
    "nobody lost": {"corrupt": 0.1, "dropout": 0.0},
    "server": {"guarantee": "server", "max_participations": 5, "colluders": 4},
    "server, with a coin": {
        "guarantee": "server",
        "max_participations": 3,
        "participation": 0.5,
        "noise_multiplier": 2.0,
    },
    "central": {"mechanism": "central-gaussian", "noise": "once"},
    "local, with a coin": {"mechanism": "local-gaussian", "participation": 0.3},
    "coarse": {
        "encoding": "narrow",
        "modulus_bits": 9,
        "noise_multiplier": 4.0,
        "expected_cohort": 60,
    },
    "coarse and little": {"encoding": "narrow", "modulus_bits": 8, "noise": "once"},
    "fixed": {"sampling": "fixed", "dropout": 0.05},
    "fixed, with little of delta": {"sampling": "fixed", "noise_multiplier": 9.0, "delta": 1e-13},
    "tiny delta": {"noise_multiplier": 6.0, "delta": 1e-14},
    "min-separation": {"sampling": "min-separation", "min_separation": 4, "max_participations": 3},
    "chosen": {"sampling": "chosen", "max_participations": 3},
    "separated, with a coin": {
        "sampling": "min-separation",
        "min_separation": 4,
        "max_participations": 9,
        "participation": 0.2,
        "noise_multiplier": 3.0,
    },
    "banded": {
        "mechanism": "banded-mf",
        "sampling": "min-separation",
        "min_separation": 8,
        "max_participations": 5,
    },
    "banded, cyclic": {"mechanism": "banded-mf", "min_separation": 4, "expected_cohort": 90},
    "buffers": {
        "sampling": "arrivals",
        "expected_cohort": 50,
        "cap": 50,
        "min_survivors": 50,
        "max_participations": 4,
        "colluders": 2,
    },
    "examples": {
        "mechanism": "example-gaussian",
        "unit": "example",
        "example_rate": 0.02,
        "steps": 5,
        "noise_multiplier": 1.5,
        "max_participations": 4,
    },
    "float": {"encoding": "float", "noise": "once"},
}


def _cohort(plan: PrivacyPlan, number: int, dice: np.random.Generator) -> list[int]:
    """Somebody who may be asked in this round, and nobody too often."""
    clients, size = np.arange(plan.population), round(plan.expected_cohort)
    if plan.sampling in ("min-separation", "chosen", "arrivals"):
        start = (number - 1) * size  # never twice
        return [int(each) for each in clients[start : start + size]]
    if plan.mechanism == "banded-mf":
        groups = plan.min_separation or 1
        clients = clients[clients % groups == (number - 1) % groups]
    crowd = clients[: max(size + 20, len(clients) // 6)]
    return sorted(int(each) for each in dice.choice(crowd, size, replace=False))


def _write(ledger: Ledger, plan: PrivacyPlan, rounds: int) -> None:
    """Commits, both kinds of aborts, and a round that nobody concluded."""
    dice = np.random.default_rng(7)
    lost = plan.expected_cohort if plan.sampling == "arrivals" else plan.min_survivors
    for number in range(1, rounds + 1):
        ledger.reserve(number, {"event": plan.event().to_json()})
        cohort = _cohort(plan, number, dice)
        if number in (2, 3):
            ledger.abort(number, {"reason": "x"}, sampled=cohort, before_unmask=number == 2)
        else:
            few = cohort[: round(max(lost, len(cohort) - number))]
            ledger.commit(number, {}, sampled=cohort, survivors=few)


@pytest.mark.parametrize("name", PLANS)
def test_delta_events_and_epsilons_are_the_same(name: str, tmp_path: Path) -> None:
    plan = make_plan(**FORTY_ROUNDS | PLANS[name])
    with create(tmp_path, plan) as ledger:
        _write(ledger, plan, min(6, plan.rounds))
        if plan.rounds > 6:
            ledger.reserve(7, {"event": plan.event().to_json()})  # lost
    spent = replay(
        read_ledger(tmp_path / "ledger.jsonl"), read_private(tmp_path / "private.jsonl")[0]
    )[1]

    found = chain.read(tmp_path / "ledger.jsonl")
    mine = Plan(found.header)
    derived = parts(mine)
    check_parts(found.header, derived)
    for each in found.rounds:
        mine.check_event(each.event, first=each.number == 1)
    cohorts = private.read(tmp_path / "private.jsonl", found, mine)
    assert views.outsider(found, mine, derived) == _near(spent.outsider)
    assert views.participant(found, mine, derived, cohorts) == _near(spent.participant)
    assert views.server(found, mine, derived, cohorts) == _near(spent.server)


def _near(epsilon: float | None) -> Any:
    assert epsilon is not None
    return epsilon if math.isinf(epsilon) else pytest.approx(epsilon, rel=TOLERANCE)


@pytest.mark.parametrize(
    "changes",
    [
        {"cap": 10, "min_survivors": 20},
        {"noise_multiplier": 0.001},
        {"guarantee": "server"},
        {"guarantee": "server", "max_participations": 1, "colluders": 100},
        {"mechanism": "central-gaussian", "guarantee": "server", "max_participations": 1},
        {"sampling": "min-separation"},
        {"sampling": "chosen"},
        {"sampling": "arrivals", "max_participations": 2},
        {"unit": "example"},
        {"mechanism": "magic"},
        {"encoding": "float"},
        {"noise": "once", "mechanism": "local-gaussian"},
        {"population": 1 << 29},
        {"expected_cohort": 2000},
        {"cap": 2000},
        {"population": True},
        {"extra": 1},
    ],
    ids=str,
)
def test_what_is_no_plan_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    plan = make_plan(**FORTY_ROUNDS)
    with create(tmp_path, plan) as ledger:
        ledger.close("completed")
    header = chain.read(tmp_path / "ledger.jsonl").header
    assert Plan(header).cap == plan.cap
    with pytest.raises(chain.Refused):
        Plan(header | {"plan": header["plan"] | changes, "unit": changes.get("unit", "client")})


@pytest.mark.parametrize(
    ("sigma", "fewest", "most"), [(0.8, 2, 9000), (1.3, 7, 1 << 28), (2.5, 10**5, 10**6)]
)
def test_many_numbers_of_terms_have_the_same_bound(sigma: float, fewest: int, most: int) -> None:
    assert tau(sigma, fewest, most) == pytest.approx(rounding_distance(sigma, fewest, most))
