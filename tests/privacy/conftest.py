"""The plan of the ledgers that are written here."""

from __future__ import annotations

import pytest

from fedsys.privacy import make_plan
from fedsys.privacy.plan import PrivacyPlan


@pytest.fixture(scope="session")
def plan() -> PrivacyPlan:
    """Forty rounds of a hundred among 1437."""
    return make_plan(
        mechanism="distributed-skellam",
        population=1437,
        expected_cohort=100,
        rounds=40,
        dimension=650,
        clip=0.3,
        delta=1e-5,
        noise_multiplier=0.7,
    )
