"""The job of a schedule: what its coordinator is asked to run, and the parameters of its rounds."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np
from numpy.typing import NDArray

import client.admission
import server.rounds
from fedsys.config import Config, validate
from fedsys.privacy import PrivacyPlan
from fedsys.wire.round_params import round_params
from secure_agg import SecAggParams
from server.job_settings import plan_for
from simulations.deterministic.agent import TASK
from simulations.deterministic.schedule import DIMENSION, Schedule

__all__ = ["JobDescription", "committees_of", "describe"]

_UNLIKELY = 1e-3
"""Losses for which the job pays: parameters then withstand as many as the quorum leaves anyway."""


@dataclass(frozen=True, kw_only=True)
class JobDescription:
    """What the coordinator is asked to run."""

    config: Config
    plan: PrivacyPlan
    weights: NDArray[np.float32]


def describe(schedule: Schedule) -> JobDescription:
    """The job of a schedule; descriptions of like jobs are made once."""
    return _describe(
        schedule.population,
        schedule.expected,
        schedule.private,
        schedule.rounds,
        schedule.corrupt,
        schedule.budget,
    )


@functools.cache
def _describe(
    population: int, expected: int, private: bool, rounds: int, corrupt: float, budget: bool
) -> JobDescription:
    # delta is absurd for people, and what lets a population this small abort as often as it does
    privacy: dict[str, object] = {"delta": 0.95, "clip": 1.0, "noise_multiplier": 1.0}
    if budget:
        privacy["epsilon"] = 0.4
    if not private:
        privacy = {"mechanism": "none", "clip": 1.0}
    config = validate(
        {
            "job": {"name": "schedule"},
            "task": {"name": TASK},
            "population": {"clients": population},
            "cohort": {
                "sampling": "fixed" if private else "poisson",
                "expected": expected,
                "cap": population,
                "min_survivors": 1,
            },
            "rounds": {"count": rounds},
            "privacy": privacy,
            "aggregation": {"dropout": _UNLIKELY, "corrupt": corrupt},
        }
    )
    return JobDescription(
        config=config,
        plan=plan_for(config, population=population, layers=(DIMENSION,)),
        weights=np.zeros(DIMENSION, dtype=np.float32),
    )


@contextmanager
def committees_of(size: int | None) -> Iterator[None]:
    """While this lasts, cohorts above this size have a drawn committee of it, as only cohorts above
    100 do otherwise; with None all is as the product has it."""

    def drawn(
        plan: PrivacyPlan, n: int, *, length: int, modulus_bits: int, colluders: int = 0
    ) -> SecAggParams:
        if size is None or n <= size:
            return round_params(
                plan, n, length=length, modulus_bits=modulus_bits, colluders=colluders
            )
        return SecAggParams.derive(
            n=n,
            corrupt=0.0,
            dropout=(size - 1) // 2 / n,
            modulus_bits=modulus_bits,
            dimension=length,
            min_included=max(plan.min_survivors, 2),
            committee=size,
        )

    with (
        mock.patch.object(client.admission, "round_params", drawn),
        mock.patch.object(server.rounds, "round_params", drawn),
    ):
        yield
