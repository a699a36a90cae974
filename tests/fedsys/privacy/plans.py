"""The plan that most tests start from."""

from __future__ import annotations

from typing import Any

FORTY_ROUNDS: dict[str, Any] = {
    "mechanism": "distributed-gaussian",
    "population": 1437,
    "expected_cohort": 100,
    "rounds": 40,
    "dimension": 650,
    "clip": 0.3,
    "delta": 1e-5,
    "noise_multiplier": 0.7,
}
"""Parameters of `fedsys.privacy.make_plan`: forty rounds of a hundred among 1437."""
