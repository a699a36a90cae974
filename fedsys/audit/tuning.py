"""Tuning runs that the header states, and the total with them that every file must state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedsys.agreement import agrees, is_finite
from fedsys.audit.evidence import Evidence
from fedsys.audit.wording import claim, epsilon_text, value_text
from fedsys.errors import MechanismError
from fedsys.privacy import LedgerView, PrivacyPlan
from fedsys.privacy.accounting.adding import Part, cost_together, part_of
from fedsys.privacy.accounting.costs import Steps
from fedsys.records import Claim, Total

__all__ = ["Before", "total_of", "tuning_claim"]

_RELATIVE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Before:
    """The runs before this one, as ``[tuning]`` or the header states them.

    Attributes:
        runs: their number.
        epsilon: the outsider's epsilon of all of them together; infinite if it is not stated.
        delta: the delta at which it holds.
        part: their rounds; None where they are not stated.
    """

    runs: int
    epsilon: float
    delta: float
    part: Part | None = None

    @classmethod
    def of(cls, stated: object) -> Before | None:
        """What a header or configuration states; None if it states no run.

        Raises:
            ValueError: it is not a valid statement of tuning runs.
        """
        if stated is None:
            return None
        if not isinstance(stated, Mapping):
            raise ValueError("not a table")
        runs, epsilon, delta = (stated.get(key) for key in ("runs", "epsilon", "delta"))
        if type(runs) is not int or runs < 0:
            raise ValueError(f"runs = {value_text(runs)}")
        heads = stated.get("heads", [])
        if not isinstance(heads, list) or len(heads) > runs:
            raise ValueError("more ledger heads than runs")
        if runs == 0:
            return None
        spent = math.inf if epsilon in (None, "inf") else epsilon
        at = 0.0 if delta is None else delta
        known = (spent == math.inf or is_finite(spent)) and is_finite(at)
        if not known or spent < 0 or at < 0:
            raise ValueError("epsilon or delta is not a number")
        part = stated.get("part")
        return cls(
            runs=runs,
            epsilon=float(spent),
            delta=float(at),
            part=Part.from_json(part) if isinstance(part, Mapping) else None,
        )


def total_of(stated: object, plan: PrivacyPlan, steps: Steps, spent: float) -> Total | None:
    """The outsider's total of a run and the runs before it; None where none is stated.

    Where the runs before are stated with their rounds, all rounds are composed at the largest
    delta, as `fedsys audit --compose` does; otherwise epsilons and deltas are added.

    Args:
        stated: ``[tuning]`` or the header's statement.
        plan: this run's plan.
        steps: its rounds, in the outsider's view.
        spent: its epsilon in that view.

    Raises:
        ValueError: ``stated`` is not a valid statement of tuning runs.
    """
    before = Before.of(stated)
    if before is None or not plan.protected:
        return None
    epsilon, delta = before.epsilon + spent, before.delta + plan.delta
    if before.part is not None and math.isfinite(epsilon):
        composed, at = cost_together((before.part, part_of(plan, "outsider", steps)))
        if math.isfinite(composed):
            epsilon, delta = composed, at
    return Total(runs=before.runs, before=before.epsilon, epsilon=epsilon, delta=delta)


def tuning_claim(
    evidence: Evidence, view: LedgerView, total: Total | None, problem: str | None
) -> Claim:
    """Whether header, configuration and summary state the same runs and the same total.

    Args:
        evidence: the files that were read, of which configuration and summary are used.
        view: the ledger.
        total: the total derived from its header; None if none is stated.
        problem: why it could not be derived; None if it could.
    """
    header = view.header.get("tuning")
    wrong = [] if problem is None else [f"the header: {problem}"]
    config = evidence.config.value
    if config is not None and problem is None:
        wrong += _against_config(config.tables.get("tuning"), header)
    summary = evidence.summary.value
    if summary is not None and problem is None:
        privacy = summary.get("privacy")
        said = privacy.get("total") if isinstance(privacy, dict) else None
        if not _same_total(said, total):
            shown = said.get("epsilon") if isinstance(said, dict) else said
            wrong.append(f"summary.json states a total of {epsilon_text(shown)}")
    part = _stated_part(header)
    if part is not None and total is not None and problem is None:
        again = _cost_of(part)
        stated = header.get("delta") if isinstance(header, dict) else None
        if again is None or not math.isclose(again, total.before, rel_tol=_RELATIVE):
            wrong.append(f"the rounds that the header states cost {epsilon_text(again)}")
        elif stated != part.delta:
            wrong.append(
                f"the rounds that the header states cost that at delta {part.delta:g}, not at "
                f"{value_text(stated)}"
            )
    words = "no tuning run is stated"
    if total is not None:
        words = (
            f"epsilon {epsilon_text(total.epsilon)} at delta {total.delta:g} for an outsider, "
            f"from {total.runs} tuning runs and this one"
        )
    return claim(
        "Tuning runs and the total with them",
        not wrong,
        claimed="header, config.toml and summary.json state the same",
        rederived="; ".join([words, *wrong[:3]]),
        by="composing all rounds that the header states and this run's"
        if part is not None
        else "adding up epsilons and deltas",
        rests_on="these being all runs on the same clients: the coordinator's word; their own "
        "ledgers can be added with --compose",
    )


def _cost_of(part: Part) -> float | None:
    """The outsider's epsilon of the runs before; None if it cannot be derived."""
    try:
        return cost_together((part,))[0]
    except (ValueError, MechanismError, ArithmeticError, MemoryError):
        return None


def _stated_part(header: object) -> Part | None:
    part = header.get("part") if isinstance(header, dict) else None
    return Part.from_json(part) if isinstance(part, dict) else None


def _against_config(found: object, header: object) -> list[str]:
    """Where ``[tuning]`` contradicts the header."""
    stated = dict(header) if isinstance(header, dict) else {}
    table = dict(found) if isinstance(found, dict) else {}
    for each in (stated, table):
        each.setdefault("runs", 0)
        each.setdefault("heads", [])
        if each.get("epsilon") == math.inf:
            each["epsilon"] = "inf"
    return [
        f"config.toml has tuning.{key} = {value_text(table.get(key))}, not "
        f"{value_text(stated.get(key))}"
        for key in sorted(set(stated) | set(table), key=str)
        if table.get(key) != stated.get(key)
    ]


def _same_total(said: object, total: Total | None) -> bool:
    if total is None or said is None:
        return said is None and total is None
    wanted: dict[str, Any] = total.to_json()
    if not isinstance(said, dict) or set(said) != set(wanted):
        return False
    for key, value in wanted.items():
        other = said[key]
        if type(other) is str or type(value) is str or type(other) is bool:
            if other is not value and other != value:
                return False
        elif not agrees(other, value, relative=_RELATIVE):
            return False
    return True
