"""The job of a schedule: what its coordinator is asked to run, and how small its rounds may be."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import tomli_w
from numpy.typing import NDArray

import client.admission
import server.rounds
from fedsys.config import Config, validate
from fedsys.preprocessing import Preprocessing
from fedsys.privacy import PrivacyPlan
from fedsys.privacy.encoding.parts import Parts
from fedsys.wire.round_params import round_params
from secure_agg import SecAggParams
from server.deployed.round import RoundCycle
from server.job_settings import plan_for
from simulations.deterministic.agent import CODE, TASK
from simulations.deterministic.schedule import DIMENSION, Schedule

__all__ = ["INITIAL", "JobDescription", "ScheduleModel", "describe", "small_rounds"]

INITIAL = np.zeros(DIMENSION, dtype=np.float32)
"""Weights of the model that every schedule begins with."""
_UNLIKELY = 1e-3
"""Losses for which the job pays: parameters then withstand as many as the quorum leaves anyway."""


@dataclass(frozen=True, kw_only=True)
class JobDescription:
    """What the coordinator is asked to run.

    Attributes:
        text: the configuration, as TOML.
        plan: that follows from it.
    """

    text: str
    plan: PrivacyPlan


class ScheduleModel:
    """The model of a schedule's job: eight weights from zero, and no test data."""

    layers = (DIMENSION,)
    parts = Parts(dimension=DIMENSION)
    task_sha256 = CODE
    preprocessing: Preprocessing = "fixed"
    frozen_sha256 = None
    frozen_compared = ""

    def __init__(self, config: Config) -> None:
        """Every configuration has this model."""

    def initial_weights(self) -> NDArray[np.float32]:
        """(d,)."""
        return INITIAL.copy()

    def evaluate(self, weights: NDArray[np.float32]) -> dict[str, float] | None:
        """Nothing to evaluate on."""
        return None

    def state_dict(self, weights: NDArray[np.float32]) -> dict[str, Any]:
        """The flat vector."""
        return {"weights": weights}


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
    tree: dict[str, object] = {
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
        "evaluation": {"data": "none"},
    }
    return JobDescription(
        text=tomli_w.dumps(tree),
        plan=plan_for(validate(tree), population=population, layers=(DIMENSION,)),
    )


@contextmanager
def small_rounds(schedule: Schedule) -> Iterator[None]:
    """While this lasts, a few agents are what many are otherwise: cohorts above the schedule's size
    have a drawn committee, as only cohorts above 100 do; and a round begins without as many agents
    as the schedule says, which only large cohorts can pay for."""
    size = schedule.committee

    def drawn(
        plan: PrivacyPlan,
        n: int,
        *,
        length: int,
        modulus_bits: int,
        colluders: int = 0,
        suite: int = 1,
    ) -> SecAggParams:
        if size is None or n <= size:
            return round_params(
                plan,
                n,
                length=length,
                modulus_bits=modulus_bits,
                colluders=colluders,
                suite=suite,
            )
        return SecAggParams.derive(
            n=n,
            corrupt=0.0,
            dropout=(size - 1) // 2 / n,
            modulus_bits=modulus_bits,
            dimension=length,
            min_included=max(plan.min_survivors, 2),
            committee=size,
            suite=suite,
        )

    def serves(self: RoundCycle, clients: frozenset[int]) -> bool:
        there = len(clients) / schedule.population
        return there * schedule.expected >= 2 - 1e-9 and there >= 1 - schedule.absent - 1e-9

    with (
        mock.patch.object(client.admission, "round_params", drawn),
        mock.patch.object(server.rounds, "round_params", drawn),
        mock.patch.object(RoundCycle, "serves", serves),
    ):
        yield
