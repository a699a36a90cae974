"""What secure aggregation withstands, and what a round given up costs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedsys.errors import MechanismError
from fedsys.privacy import ledger_header, make_plan, plan_of
from fedsys.privacy.quorum import GRAPH_BITS, live_members, quorum_delta
from tests.privacy.plans import FORTY_ROUNDS

JOB = FORTY_ROUNDS | {"dropout": 0.1}


@pytest.mark.parametrize("dropout", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("n", [40, 300, 3000])
def test_losses_beyond_what_is_withstood_are_rare(n: int, dropout: float) -> None:
    live = live_members(n, corrupt=0.1, dropout=dropout)
    quorum = (n + math.ceil(0.1 * n)) // 2 + 1
    assert live >= quorum
    if live > quorum:
        # with one client more or less, and no more generous than that
        assert stats.binom.sf(n - live - 1, n, dropout) <= 2.0**-GRAPH_BITS
        assert stats.binom.sf(n - live - 2, n, dropout) > 2.0**-GRAPH_BITS


def _dependent(
    rng: np.random.Generator, population: int, rate: float, corrupt: float, dropout: float
) -> float:
    """How often one more client changes whether a round has a sum, by playing rounds."""
    trials = 200_000
    others = rng.binomial(population - 1, rate, trials)
    alive = rng.binomial(others, 1 - dropout)
    own = rng.random(trials) < 1 - dropout

    def lost(size: Any, stay: Any) -> Any:
        table = np.array(
            [live_members(n, corrupt=corrupt, dropout=dropout) for n in range(population + 1)]
        )
        return (table[size] == 0) | (stay < table[size])

    return float((lost(others, alive) != lost(others + 1, alive + own)).mean())


@pytest.mark.parametrize(
    ("population", "rate", "corrupt", "dropout"),
    [(50, 0.2, 0.1, 0.3), (30, 1.0, 0.1, 0.25), (200, 0.05, 0.0, 0.2), (60, 0.03, 0.1, 0.0)],
)
def test_the_charge_bounds_what_a_simulation_sees(
    population: int, rate: float, corrupt: float, dropout: float
) -> None:
    """At parameters where it happens often; five deviations: 1e-6."""
    seen = _dependent(np.random.default_rng(3), population, rate, corrupt, dropout)
    stated = quorum_delta(
        population=population,
        expected_cohort=rate * population,
        rounds=1,
        cap=population + 1,
        corrupt=corrupt,
        dropout=dropout,
    )
    assert 0 < seen <= stated + 5 * math.sqrt(stated / 200_000)


def test_fixed_cohorts_and_many_rounds() -> None:
    cohort: dict[str, Any] = {"population": 500, "cap": 30, "corrupt": 0.1, "dropout": 0.3}
    once = quorum_delta(expected_cohort=30, rounds=1, sampling="fixed", **cohort)
    live = live_members(30, corrupt=0.1, dropout=0.3)
    assert once == pytest.approx(stats.binom.cdf(live - 1, 29, 0.7), rel=1e-6)
    assert quorum_delta(expected_cohort=30, rounds=3, sampling="fixed", **cohort) == pytest.approx(
        3 * once
    )


def test_delta_pays_and_the_header_says_how_much() -> None:
    without, with_quorum = make_plan(**JOB), make_plan(**JOB, corrupt=0.1)
    assert without.delta_quorum == 0
    assert 0 < with_quorum.delta_quorum < 1e-9
    assert with_quorum.delta_abort == without.delta_abort + with_quorum.delta_quorum
    assert with_quorum.delta_released < without.delta_released
    assert with_quorum.delta_server == without.delta_server, "the server sees it anyway"
    header = ledger_header(with_quorum)
    assert header["delta_parts"]["quorum"] == with_quorum.delta_quorum
    assert plan_of(header) == with_quorum
    assert "quorum" not in ledger_header(without)["delta_parts"]


def test_a_job_whose_quorum_is_missed_too_often_is_refused() -> None:
    with pytest.raises(MechanismError, match=r"misses the quorum.*more than a tenth of delta"):
        make_plan(**JOB | {"expected_cohort": 40, "dropout": 0.2, "min_survivors": 2}, corrupt=0.1)
    make_plan(**JOB | {"expected_cohort": 40, "dropout": 0.2})
    with pytest.raises(MechanismError, match="corrupt"):
        make_plan(**JOB, corrupt=1.0)
