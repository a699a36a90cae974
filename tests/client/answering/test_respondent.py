"""What a coordinator sends cannot make a device's answer longer, missing or infinite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from client.answering.respondent import Respondent, respondent_between
from fedsys.errors import DataError
from fedsys.privacy.planning import make_plan
from fedsys.queries import Sheet, parse
from fedsys.tasks import Examples, load

ASKED: list[dict[str, Any]] = [
    {"ask": "mean", "name": "loss", "column": "loss", "low": 0, "high": 4, "rows": 50},
    {"ask": "devices", "name": "accuracy"},
    {"ask": "confusion", "name": "confusion", "classes": 10, "rows": 50},
    {"ask": "calibration", "name": "calibration", "rows": 50},
]
EXAMPLES = Examples(x=torch.rand(500, 64), y=torch.arange(500) % 10)


@pytest.mark.parametrize("weight", [0.0, float("nan"), float("inf"), -3e38, 3e38])
@pytest.mark.parametrize("clip", [1.0, 0.3])
def test_no_model_makes_a_vector_longer_than_its_norm(weight: float, clip: float) -> None:
    """A device with many rows, one with one, and one with none."""
    plan = make_plan(
        mechanism="distributed-gaussian", population=100, expected_cohort=50.0, rounds=4,
        dimension=650, clip=clip, delta=1e-5, noise_multiplier=1.0,
    )  # fmt: skip
    made = respondent_between(load("digits", {}), ASKED, plan, device="cpu", seed=0)
    model = np.full(650, weight, dtype=np.float32)
    rows = [np.arange(400), np.array([7]), np.arange(0)]
    with np.errstate(all="raise"):
        found = made.train(model, EXAMPLES, rows, [1, 2, 3]).astype(np.float64)
    assert np.isfinite(found).all()
    assert np.sqrt(np.square(found).sum(axis=1)).max() <= clip * (1 + 1e-6)
    assert not found[2].any()


def test_a_column_of_the_data_does_not_stand_for_one_that_the_model_gives() -> None:
    """A task without classes gives no prediction; a table may have a column of that name."""
    task = load("digits", {})

    class Regression(type(task)):  # type: ignore[misc]
        def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
            return {}

        def query_columns(self, examples: Examples) -> dict[str, Any]:
            return {"accuracy": np.ones(len(examples))}

    sheet = Sheet.of(parse([{"ask": "devices", "name": "accuracy"}]), population=10)
    made = Respondent(Regression({}), sheet, kind="evaluate")
    with pytest.raises(DataError, match="column 'accuracy': an evaluation of task"):
        made.check(EXAMPLES)
