"""The plan of the ledgers that are written here."""

from __future__ import annotations

import pytest

from fedsys.privacy import make_plan
from fedsys.privacy.plan import PrivacyPlan
from tests.fedsys.privacy.plans import FORTY_ROUNDS


@pytest.fixture(scope="session")
def plan() -> PrivacyPlan:
    """Forty rounds of a hundred among 1437."""
    return make_plan(**FORTY_ROUNDS)
