"""Makes a plan from a user's choices: bounds, ring and noise are derived where left out.

>>> plan = make_plan(mechanism="distributed-gaussian", population=1437, expected_cohort=100,
...     rounds=40, dimension=650, clip=0.3, delta=1e-5, noise_multiplier=0.7)
>>> plan.cap, plan.min_survivors, plan.modulus_bits
(163, 44, 20)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Unpack

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.calibration import calibrate
from fedsys.privacy.events import EventChoices, build_event
from fedsys.privacy.plan import PrivacyPlan, QuorumMissed, event_choices, turn_groups
from fedsys.privacy.plan_parts import PARTS, Unit
from fedsys.privacy.sampling.aborts import choose_cap_and_min_survivors

__all__ = ["PlanChoices", "make_plan"]


class PlanChoices(EventChoices, total=False):
    """The choices for a plan, flat: those of `EventChoices`, and those of the whole job.

    Attributes:
        mechanism: the mechanism's name.
        rounds: T, the number of rounds.
        delta: the job's delta.
        epsilon: a target instead of ``noise_multiplier``: the least noise that meets it is chosen,
            and it is the budget unless one is given.
        budget: the largest epsilon allowed in the guaranteed view.
        dropout: the assumed probability that a sampled client drops out; 0.05 by default.
        corrupt: the fraction of a cohort that secure aggregation assumes to collude, or None.
        max_participations: the most rounds to which a client contributes.
        unit: whose contribution is protected; follows from the mechanism by default.
        adaptive_clip: whether the clipping norm adapts.
    """

    mechanism: str
    rounds: int
    delta: float
    epsilon: float | None
    budget: float | None
    dropout: float
    corrupt: float | None
    max_participations: int | None
    unit: Unit | None
    adaptive_clip: bool


def make_plan(**choices: Unpack[PlanChoices]) -> PrivacyPlan:
    """A plan in which everything that was left out or is None is derived.

    Give ``noise_multiplier``, or ``epsilon`` for the least noise that meets it in the guaranteed
    view. ``cap`` and ``min_survivors`` default to the tightest bounds whose aborts cost at most a
    hundredth of delta, and ``modulus_bits`` (also if 0) to the smallest ring that holds the largest
    sum and its noise.

    Args:
        **choices: see `PlanChoices`.

    Raises:
        MechanismError: a value is out of range, or nothing meets the target.
    """
    try:
        return _made(choices)
    except QuorumMissed as missed:
        raise MechanismError(f"{missed}: {missed.remedy()}") from None


def _made(choices: PlanChoices) -> PrivacyPlan:
    body: dict[str, Any] = {name: value for name, value in choices.items() if value is not None}
    mechanism, epsilon = body["mechanism"], body.pop("epsilon", None)
    body.setdefault("dropout", 0.05)
    if "cap" not in body or "min_survivors" not in body:
        _derive_bounds(body)
    body.setdefault("unit", "example" if mechanism == "example-gaussian" else "client")
    body.setdefault("noise", "once" if body.get("encoding") == "float" else "per-client")
    if mechanism == "none":
        body["noise_multiplier"] = 0.0
    elif ("noise_multiplier" in body) == (epsilon is not None):
        raise MechanismError(
            "give either noise_multiplier or epsilon, got "
            f"noise_multiplier={body.get('noise_multiplier')!r} and epsilon={epsilon!r}"
        )
    target = None
    if epsilon is not None and mechanism != "none":
        target = validation.positive("epsilon", epsilon)
        body.setdefault("budget", target)
        trial = _plan_of({"modulus_bits": _any_ring(body), **_whole(body), "noise_multiplier": 1.0})
        body["noise_multiplier"] = calibrate(target, trial)
    if not body.get("modulus_bits"):
        event = build_event(mechanism, **event_choices({**_whole(body), "modulus_bits": 0}))
        body["modulus_bits"] = event.modulus_bits
    return _plan_of(body)


def _derive_bounds(body: dict[str, Any]) -> None:
    sampling = body.get("sampling", "poisson")
    if sampling == "arrivals":  # every buffer holds the same number of uploads
        body.setdefault("cap", round(body["expected_cohort"]))
        body.setdefault("min_survivors", round(body["expected_cohort"]))
        return
    guarantee = body.get("guarantee", "outsider")
    bounds = choose_cap_and_min_survivors(
        population=body["population"],
        expected_cohort=body["expected_cohort"],
        rounds=body["rounds"],
        delta=body["delta"],
        dropout=body["dropout"],
        sampling=sampling,
        colluders=body.get("colluders", 0),
        above_colluders=guarantee == "server",
        groups=turn_groups(body["mechanism"], sampling, body.get("min_separation")),
    )
    body.setdefault("cap", bounds.cap)
    body.setdefault("min_survivors", bounds.min_survivors)


def _whole(body: Mapping[str, Any]) -> dict[str, Any]:
    """The choices without those that ask for a derived value."""
    return {name: value for name, value in body.items() if name != "modulus_bits" or value}


def _any_ring(body: Mapping[str, Any]) -> int:
    """A modulus large enough for any noise that calibration tries."""
    return 16 if body.get("encoding") == "narrow" else 64


def _plan_of(body: Mapping[str, Any]) -> PrivacyPlan:
    """The plan with these flat values, and defaults for the others.

    Raises:
        MechanismError: a key is missing or unknown, or a value is invalid.
    """
    defaults: dict[str, Any] = {}
    for part in PARTS.values():
        for item in dataclasses.fields(part):
            if item.default is not dataclasses.MISSING:
                defaults[item.name] = item.default
    return PrivacyPlan.from_json({**defaults, **body})
