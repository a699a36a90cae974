"""Every question's error against that of OpenDP's central mechanism, which knows nothing of ours.

OpenDP is given the sensitivity of a question's sums. With noise 5 % below ours its own Gaussian
mechanism spends more zero-concentrated privacy than our plan, and with ours no more. Its epsilon
for our noise lies above ours, because it converts by a bound where we account exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsys.privacy.planning import make_plan
from fedsys.queries import Sheet, parse
from tests.fedsys.queries.test_sheet import EVERY, rows_of

DEVICES, EPSILON, DELTA = 1000, 1.0, 1e-5


@pytest.fixture(scope="module")
def dp() -> Any:
    found = pytest.importorskip(
        "opendp.prelude", reason="needs OpenDP: python -m pip install opendp==0.16.0"
    )
    found.enable_features("contrib")
    return found


def central(dp: Any, scale: float) -> Any:
    """OpenDP's mechanism for a vector of sums held by a trusted curator."""
    domain = dp.vector_domain(dp.atom_domain(T=float, nan=False))
    return dp.m.make_gaussian(domain, dp.l2_distance(T=float), scale=scale)


@pytest.mark.parametrize("protocol", ["secure", "ideal", "float"])
@pytest.mark.parametrize("table", EVERY, ids=lambda table: str(table["name"]))
def test_the_error_is_within_five_percent_of_the_oracle(
    dp: Any, table: dict[str, Any], protocol: str
) -> None:
    sheet = Sheet.of(parse([table]), population=DEVICES)
    (block,) = sheet.blocks
    plan = make_plan(
        mechanism="distributed-gaussian",
        population=DEVICES,
        expected_cohort=float(DEVICES),
        rounds=1,
        dimension=sheet.dimension,
        clip=1.0,
        delta=DELTA,
        epsilon=EPSILON,
        encoding="float" if protocol == "float" else "wide",
        corrupt=0.1 if protocol == "secure" else None,
        dropout=0.1,
    )
    deviation = plan.build_mechanism().noise_deviation
    (measured,) = sheet.measured(np.zeros((1, sheet.size)), deviation, 1.0, DEVICES)
    rho = 1 / (2 * plan.noise_multiplier**2)
    assert central(dp, measured.deviation).map(block.sensitivity) <= rho * (1 + 1e-9)
    assert central(dp, measured.deviation / 1.05).map(block.sensitivity) >= rho
    converted = dp.c.make_zCDP_to_approxDP(central(dp, measured.deviation))
    epsilon, _ = dp.c.make_fix_delta(converted, delta=DELTA).map(block.sensitivity)
    assert 0.95 * EPSILON < epsilon < 1.25 * EPSILON


def test_the_oracles_sums_give_our_answers(dp: Any) -> None:
    """600 intervals from sums that OpenDP released hold the truth as often as intervals of 95 %
    do: fewer than 536 or more than 594 happen with probability below 1e-6."""
    rng = np.random.default_rng(7)
    rows = rows_of(DEVICES, rng, 3000)
    tables = [each for each in EVERY if each["name"] in ("count", "sum", "labels", "examples")]
    inside, every = 0, 0
    for table in tables:
        sheet = Sheet.of(parse([table]), population=DEVICES)
        (block,) = sheet.blocks
        truth = block.contribute(rows).sum(axis=0)
        release = central(dp, 3.7 * block.sensitivity)
        for _ in range(60):
            noisy = np.array(release(truth.tolist()))
            mean = noisy / sheet.scales[0] / DEVICES
            deviation = 3.7 * block.sensitivity / sheet.scales[0] / DEVICES
            (answer,) = sheet.answers(mean, deviation=deviation, rate=1.0, population=DEVICES)
            for each, true in zip(answer.estimates, truth, strict=True):
                assert each.low is not None
                assert each.high is not None
                inside, every = inside + (each.low <= true <= each.high), every + 1
    assert every == 60 * (1 + 1 + 4 + 4)
    assert 536 <= inside <= 594
