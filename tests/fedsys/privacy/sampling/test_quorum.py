"""What secure aggregation withstands, and what a round given up costs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
from scipy import stats

from fedsys.errors import MechanismError
from fedsys.privacy import PrivacyPlan, ledger_header, make_plan, plan_of
from fedsys.privacy.sampling import quorum
from fedsys.privacy.sampling.quorum import RARE_BITS, Cohorts, Withstood, quorum_delta, withstood
from secure_agg import SecAggParams
from tests.fedsys.privacy.plans import FORTY_ROUNDS

JOB = FORTY_ROUNDS | {"dropout": 0.1}
NO_FEWER = 0  # min_survivors that charges nothing elsewhere


def cohorts(**values: Any) -> Cohorts:
    usual: dict[str, Any] = {"rounds": 1, "min_survivors": NO_FEWER, "corrupt": 0.1, "dropout": 0.1}
    usual |= values
    usual.setdefault("cap", usual["population"] + 1)
    return Cohorts(**usual)


@pytest.mark.parametrize("dropout", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("n", [20, 40, 80, 100])
def test_everybodys_committee_withstands_losses_unless_they_are_rare(
    n: int, dropout: float
) -> None:
    found = withstood(n, corrupt=0.1, dropout=dropout)
    assert found is not None
    assert found.committee is None
    room = n - ((n + math.ceil(0.1 * n)) // 2 + 1)
    assert found.losses <= room
    if found.losses < room:
        # with one client more or less, and no more generous than that
        assert stats.binom.sf(found.losses - 1, n, dropout) <= 2.0**-RARE_BITS
        assert stats.binom.sf(found.losses - 2, n, dropout) > 2.0**-RARE_BITS


@pytest.mark.parametrize("corrupt", [0.0, 0.1])
@pytest.mark.parametrize("n", [101, 150, 263, 1000, 1001, 4000, 10_000])
def test_drawn_committees_are_given_up_as_rarely(n: int, corrupt: float) -> None:
    asked = cohorts(population=n, expected=n, corrupt=corrupt)
    committee = asked.committee(n)
    assert committee is not None
    assert committee.size < n
    # without errors to correct, all who are to stay must: their number is 2^-30 safe, and a little
    assert asked.given_up(n - 1, [n]) <= 2.0 ** (-RARE_BITS if corrupt else -34)


@pytest.mark.parametrize(
    ("n", "corrupt", "dropout", "served"),
    [
        (1, 0.0, 0.0, False),
        (2, 0.0, 0.0, True),
        (2, 0.0, 0.1, False),
        (3, 0.0, 0.1, True),
        (3, 0.1, 0.1, False),
        (3, 0.1, 0.0, True),
        (4, 0.1, 0.1, True),
        (5, 0.1, 0.1, True),
        (10, 0.1, 0.1, True),
        (5000, 0.2, 0.28, False),
        (10_000, 0.1, 0.1, True),
        (10_001, 0.1, 0.1, False),
    ],
)
def test_who_can_be_served(n: int, corrupt: float, dropout: float, served: bool) -> None:
    found = withstood(n, corrupt=corrupt, dropout=dropout)
    assert (found is not None) is served
    if found is not None:
        assert found.losses >= math.floor(dropout * n)


@pytest.mark.parametrize("n", [4, 12, 100, 101, 500])
@pytest.mark.parametrize("colluders", [0, 3, 40])
def test_what_is_charged_is_the_committee_that_runs(n: int, colluders: int) -> None:
    asked = withstood(n, corrupt=0.1, dropout=0.1, colluders=colluders)
    charged = cohorts(population=n, expected=n, colluders=colluders).committee(n)
    assert (asked is None) is (charged is None)
    if asked is None or charged is None:
        return
    params = SecAggParams.derive(
        n=n,
        corrupt=0.1,
        dropout=asked.losses / n,
        modulus_bits=32,
        dimension=10,
        colluders=colluders,
        committee=asked.committee,
    )
    assert (params.committee, params.needed) == (charged.size, charged.needed)


def _given_up_in_either(asked: Cohorts, sizes: dict[int, Withstood]) -> float:
    """P[the round with the client or the one without is given up, and enough others stay], by
    looking at every cohort, every loss and every committee; the client itself is lost."""

    def given_up(cohort: list[int], stays: frozenset[int]) -> float:
        if len(cohort) not in sizes:
            return 1.0
        committee = asked.committee(len(cohort))
        assert committee is not None
        drawn = list(itertools.combinations(cohort, committee.size))
        return sum(len(stays & set(each)) < committee.needed for each in drawn) / len(drawn)

    client, others = 0, range(1, asked.population)
    rate, found = asked.expected / asked.population, 0.0
    for present in itertools.product((False, True), repeat=len(others)):
        cohort = [other for other, there in zip(others, present, strict=True) if there]
        chance = rate ** len(cohort) * (1 - rate) ** (len(others) - len(cohort))
        for lost in itertools.product((False, True), repeat=len(cohort)):
            stays = frozenset(m for m, gone in zip(cohort, lost, strict=True) if not gone)
            if len(stays) < asked.min_survivors:
                continue
            losses = asked.dropout ** sum(lost) * (1 - asked.dropout) ** len(stays)
            without, with_it = given_up(cohort, stays), given_up([client, *cohort], stays)
            drawn = any(size.committee is not None for size in sizes.values())
            either = 1 - (1 - without) * (1 - with_it) if drawn else max(without, with_it)
            found += chance * losses * either
    return found


@pytest.mark.parametrize("least", [0, 2, 3])
@pytest.mark.parametrize(
    ("population", "expected", "corrupt", "dropout"),
    [(8, 5.0, 0.0, 0.2), (9, 7.0, 0.1, 0.1), (7, 7.0, 0.0, 0.3), (8, 4.0, 0.1, 0.0)],
)
def test_the_charge_is_exact_where_everybody_is_on_the_committee(
    population: int, expected: float, corrupt: float, dropout: float, least: int
) -> None:
    asked = cohorts(
        population=population,
        expected=expected,
        corrupt=corrupt,
        dropout=dropout,
        min_survivors=least,
    )
    sizes = {n: withstood(n, corrupt=corrupt, dropout=dropout) for n in range(population + 1)}
    served = {n: found for n, found in sizes.items() if found is not None}
    exact = _given_up_in_either(asked, served)
    assert quorum_delta(asked) == pytest.approx(exact, rel=1e-9, abs=1e-15)
    assert exact > 0 or dropout == 0


@pytest.mark.parametrize("least", [0, 2])
@pytest.mark.parametrize(("size", "losses"), [(4, 1), (5, 1), (5, 2)])
def test_the_charge_bounds_what_drawn_committees_do(
    size: int, losses: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    population, dropout = 8, 0.05
    asked = cohorts(
        population=population,
        expected=7.5,
        corrupt=0.0,
        dropout=dropout,
        min_survivors=least,
    )

    def small(n: int, **_promised: Any) -> Withstood | None:
        return Withstood(losses=losses, committee=size) if n > size else None

    monkeypatch.setattr(quorum, "withstood", small)
    served = {n: Withstood(losses=losses, committee=size) for n in range(size + 1, population + 1)}
    exact = _given_up_in_either(asked, served)
    stated = quorum_delta.__wrapped__(asked)
    assert 0 < exact <= stated <= 2.5 * exact


def test_fixed_cohorts_and_many_rounds() -> None:
    fixed: dict[str, Any] = {"population": 500, "expected": 30.0, "sampling": "fixed"}
    once = quorum_delta(cohorts(**fixed, dropout=0.3))
    committee = cohorts(**fixed, dropout=0.3).committee(30)
    assert committee is not None
    assert once == pytest.approx(stats.binom.cdf(committee.needed - 1, 29, 0.7), rel=1e-6)
    assert quorum_delta(cohorts(**fixed, dropout=0.3, rounds=3)) == pytest.approx(3 * once)


def test_few_survivors_are_not_charged_twice() -> None:
    fixed: dict[str, Any] = {"population": 500, "expected": 30.0, "sampling": "fixed"}
    charges = [quorum_delta(cohorts(**fixed, min_survivors=least)) for least in (0, 12, 17, 18)]
    assert charges == sorted(charges, reverse=True)
    assert charges[-1] == 0, "that many survivors are a quorum"


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


def test_large_cohorts_cost_next_to_nothing() -> None:
    large = JOB | {"population": 200_000, "expected_cohort": 2000, "rounds": 1000}
    assert make_plan(**large, corrupt=0.1).delta_quorum < 1e-9


SMALL: list[tuple[dict[str, Any], str]] = [
    ({"expected_cohort": 40, "dropout": 0.2, "min_survivors": 2}, "cohort to 114, or lower"),
    ({"expected_cohort": 20, "sampling": "fixed"}, "cohort to 44, or lower dropout to 0.02"),
    ({"expected_cohort": 20, "population": 25, "sampling": "fixed"}, "lower dropout to 0.02"),
]


@pytest.mark.parametrize(("job", "said"), SMALL)
def test_a_job_whose_quorum_is_missed_too_often_is_refused_with_a_remedy(
    job: dict[str, Any], said: str
) -> None:
    with pytest.raises(
        MechanismError, match=r"misses the quorum.*more than a tenth of delta"
    ) as no:
        make_plan(**JOB | job, corrupt=0.1)
    assert said in str(no.value)
    make_plan(**JOB | job)  # where nothing is charged for a quorum
    changed = JOB | job
    changed.pop("min_survivors", None)
    words = str(no.value).split()
    if "cohort to" in str(no.value):
        larger = int(words[words.index("to", words.index("raise")) + 1].rstrip(","))
        make_plan(**changed | {"expected_cohort": larger}, corrupt=0.1)
    lower = float(words[words.index("to", words.index("lower")) + 1])
    plan = make_plan(**changed | {"dropout": lower, "min_survivors": 2}, corrupt=0.1)
    assert plan.delta_quorum <= plan.delta / 10


def test_where_nothing_helps_the_message_says_so() -> None:
    """Without one of three there are two, of whom one may collude."""
    asked = cohorts(population=3, expected=3.0, sampling="poisson", corrupt=0.3, rounds=40)
    assert "no cohort of these 3 clients" in quorum.remedy(asked, 0.0)


def test_where_nobody_is_lost_a_cohort_that_can_be_summed_costs_nothing() -> None:
    three = cohorts(population=3, expected=3.0, sampling="poisson", corrupt=0.0, rounds=40)
    three = dataclasses.replace(three, dropout=0.0, min_survivors=2, cap=3)
    assert quorum.quorum_delta(three) == 0
    assert quorum.quorum_delta(dataclasses.replace(three, corrupt=0.1)) == 1


def test_corrupt_is_a_fraction() -> None:
    with pytest.raises(MechanismError, match="corrupt"):
        make_plan(**JOB, corrupt=1.0)
    assert PrivacyPlan.from_json(make_plan(**JOB, corrupt=0.1).to_json()).corrupt == 0.1
