"""What the tests of engines train."""

from __future__ import annotations

import dataclasses
from typing import Any

from simulations.engine.chunk import RoundWork
from simulations.setting import Setting


def work_of(setting: Setting, **changes: Any) -> RoundWork:
    """The first round of a job, with `changes`."""
    work = RoundWork(
        number=1,
        weights=setting.population.trainer.initial_weights(),
        seed=b"s" * 32,
        mechanism=setting.plan.event().to_json(),
        protocol=setting.config.aggregation.protocol,
    )
    return dataclasses.replace(work, **changes)
