"""The registered protocol: what it fixes, its hash, and what it refuses to be."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from fedsys.audit.canary_claim import planned
from fedsys.audit.canary_protocol import (
    FALSE_ALARM,
    TESTS,
    Coins,
    Protocol,
    commitment_to,
    critical_counts,
    register,
)
from fedsys.errors import ConfigError, LedgerError
from fedsys.privacy import make_plan

PROTOCOL = Protocol(
    canaries=500,
    dimension=650,
    commitment=commitment_to(bytes(32)),
    guesses=100,
    one_run_delta=1e-7,
    fdp_guesses=432,
    level=1.6e-5,
)
OTHERS: dict[str, Any] = {
    "canaries": 502,
    "dimension": 651,
    "commitment": commitment_to(bytes(31) + b"1"),
    "guesses": 102,
    "one_run_delta": 1e-8,
    "fdp_guesses": 430,
    "level": 1.5e-5,
}


def everybody(z: float) -> Any:
    plan = make_plan(
        mechanism="distributed-gaussian",
        population=1500,
        expected_cohort=1500,
        rounds=1,
        dimension=650,
        clip=1.0,
        delta=1e-5,
        noise_multiplier=z,
    )
    return planned(plan)


@pytest.mark.parametrize("name", OTHERS)
def test_every_choice_is_in_the_hash(name: str) -> None:
    other = dataclasses.replace(PROTOCOL, **{name: OTHERS[name]})
    assert other.digest != PROTOCOL.digest
    assert Protocol.from_json(other.to_json()) == other


@pytest.mark.parametrize(
    "change",
    [
        {"canaries": 1},
        {"canaries": 651},
        {"canaries": True},
        {"canaries": "500"},
        {"dimension": 1 << 41},
        {"seed_commitment": "00"},
        {"guesses": {"one-run": 3, "f-dp": 432}},
        {"guesses": {"one-run": 2, "f-dp": 502}},
        {"guesses": [2, 4]},
        {"level": 0.0},
        {"level": 1},
        {"level": math.nan},
        {"one_run_delta": 0.0},
        {"tests": ["chi-square"]},
        {"tests": None},
        {"statistic": "another"},
        {"false_alarm": 0.5},
        {"version": 2},
        {"more": 1},
    ],
)
def test_another_protocol_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(LedgerError):
        Protocol.from_json(PROTOCOL.to_json() | change)


def test_no_object_is_no_protocol() -> None:
    bodies: list[object] = [None, [], "protocol", {}]
    for body in bodies:
        with pytest.raises(LedgerError):
            Protocol.from_json(body)


def test_coins_are_fair_fresh_and_drawn_first() -> None:
    first, second = (Coins.draw(bytes([n]) * 32, canaries=5000, dimension=5000) for n in (1, 2))
    low, high = binom.ppf([5e-7, 1 - 5e-7], 5000, 0.5)
    assert low <= first.included.sum() <= high
    assert low <= (first.included != second.included).sum() <= high
    assert len(set(first.rows.tolist())) == 5000
    assert set(np.unique(first.signs).tolist()) == {-1.0, 1.0}
    assert (Coins.included_by(bytes([1]) * 32, 5000) == first.included).all()


def test_levels_add_up_to_the_false_alarm_rate() -> None:
    claimed = everybody(0.6)
    protocol = register(claimed, canaries=500, dimension=650, commitment="0" * 64)
    assert protocol.false_alarm(claimed.noise_distance) <= FALSE_ALARM * (1 + 1e-12)
    assert len(TESTS) * protocol.level == pytest.approx(FALSE_ALARM)
    coarse = dataclasses.replace(claimed, noise_distance=4e-5)
    protocol = register(coarse, canaries=500, dimension=650, commitment="0" * 64)
    assert protocol.false_alarm(4e-5) == pytest.approx(FALSE_ALARM)
    with pytest.raises(ConfigError, match="total variation"):
        register(
            dataclasses.replace(claimed, noise_distance=6e-5),
            canaries=500,
            dimension=650,
            commitment="0" * 64,
        )


def test_guesses_follow_the_claim_and_are_none_where_none_can_refute() -> None:
    near, far = everybody(2.0), everybody(0.56)
    protocol = register(near, canaries=500, dimension=650, commitment="0" * 64)
    one_run, fdp = critical_counts(near, protocol)
    assert one_run is not None
    assert fdp is not None
    assert protocol.guesses / 2 < one_run <= protocol.guesses
    assert protocol.fdp_guesses / 2 < fdp <= protocol.fdp_guesses
    assert protocol.one_run_delta < near.delta
    assert far.epsilon == pytest.approx(8.8, abs=0.2)
    protocol = register(far, canaries=500, dimension=650, commitment="0" * 64)
    assert (protocol.guesses, protocol.fdp_guesses) == (0, 0)
    assert critical_counts(far, protocol) == (None, None)
