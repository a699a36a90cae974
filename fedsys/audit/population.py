"""A population's folder: all runs on the same clients, under one budget.

The folder holds ``population.toml``, which states the budget, and a folder for each run: training,
queries and evaluations alike. A run's header states the runs before it, with their heads and
rounds (*tuning* in LEDGER.md), so that each ledger is linked to all that came before and its
summary states the total. A run that is not over counts with all rounds that its plan allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsys.audit.composition import compose
from fedsys.audit.rederive import audit_run
from fedsys.audit.stopping import ended_early
from fedsys.audit.wording import claim, epsilon_text, plain, value_text
from fedsys.bounded_toml import parse_toml
from fedsys.errors import AuditInputError, BudgetExceeded, ConfigError, LedgerError
from fedsys.privacy import LedgerView, PrivacyPlan, View, plan_of, read_ledger, replay
from fedsys.privacy.accounting.adding import (
    Part,
    outsider_total,
    part_of,
    promised_part,
    together,
)
from fedsys.records import AuditResult, Claim

__all__ = ["BUDGET", "Budget", "audit_population", "is_population", "linked"]

BUDGET = "population.toml"
_MOST_RUNS = 10_000
_VIEW: View = "outsider"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """``population.toml``.

    Attributes:
        epsilon: the most that all runs together may cost an outsider's guarantee.
        delta: the delta at which that holds.
    """

    epsilon: float
    delta: float

    @classmethod
    def load(cls, folder: Path) -> Budget:
        """Read a folder's budget.

        Raises:
            ConfigError: there is none, or it is not two numbers.
        """
        path = folder / BUDGET
        try:
            found = parse_toml(path.read_bytes())
        except OSError as error:
            reason = (error.strerror or "cannot be read").lower()
            raise ConfigError(
                f"{path}: {reason}; write `epsilon = 4.0` and `delta = 1e-5` into it"
            ) from None
        except ValueError as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from None
        wrong = set(found) ^ {"epsilon", "delta"}
        if wrong:
            raise ConfigError(
                f"{path}: {', '.join(sorted(wrong))}: it holds epsilon and delta, and nothing else"
            )
        for name, value in found.items():
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ConfigError(f"{path}: {name} = {value_text(value)}: a number above 0")
        return cls(epsilon=float(found["epsilon"]), delta=float(found["delta"]))


def is_population(folder: Path) -> bool:
    """Whether a folder holds a population's runs."""
    return (folder / BUDGET).is_file()


def _runs(folder: Path) -> list[Path]:
    found = sorted(each.parent for each in folder.glob("*/ledger.jsonl"))
    if len(found) > _MOST_RUNS:
        raise AuditInputError(f"{plain(folder)}: more than {_MOST_RUNS} runs")
    return found


def linked(folder: Path, plan: PrivacyPlan) -> dict[str, Any] | None:
    """What a new run's header states of the runs before it; None for the first run.

    Args:
        folder: the population's folder.
        plan: the new run's plan; nothing has been reserved.

    Raises:
        BudgetExceeded: the runs and all rounds of the plan together would exceed the budget.
        AuditInputError: a run there cannot be accounted for, or does not compose with this one.
        ConfigError: there is no budget.
    """
    budget = Budget.load(folder)
    views = [(path.name, _view(path)) for path in _runs(folder)]
    parts = [_part(name, view, plan) for name, view in views]
    if not plan.protected:
        raise BudgetExceeded(
            f"{folder}: mechanism 'none' promises nothing, and the budget of its population is "
            f"epsilon {budget.epsilon:g}: choose a mechanism"
        )
    total, delta = outsider_total([*parts, promised_part(plan, _VIEW)])
    if total > budget.epsilon * (1 + 1e-9) or delta > budget.delta * (1 + 1e-9):
        before = outsider_total(parts)[0] if parts else 0.0
        raise BudgetExceeded(
            f"{folder}: the population's budget is epsilon {budget.epsilon:g} at delta "
            f"{budget.delta:g}; {before:.4g} is spent or promised by {len(parts)} runs, and with "
            f"this one it would be {total:.4g} at {delta:g}"
        )
    if not parts:
        return None
    epsilon, at = outsider_total(parts)
    return {
        "runs": len(parts),
        "epsilon": epsilon,
        "delta": at,
        "heads": [view.head for _, view in views],
        "part": together(parts).to_json(),
    }


def _view(run: Path) -> LedgerView:
    """A run's ledger, with chain, form and signatures verified.

    Raises:
        AuditInputError: it does not verify.
    """
    try:
        return read_ledger(run / "ledger.jsonl", allow_torn=True)
    except LedgerError as error:
        raise AuditInputError(f"{plain(run.name)}: {plain(error)}; see `fedsys audit`") from None


def _part(name: str, view: LedgerView, new: PrivacyPlan) -> Part:
    """What a run counts: what it spent if it is over, and all that its plan allows if it is not, or
    if what it released decided how many rounds there were.

    Raises:
        AuditInputError: its rounds cannot be accounted for, or do not compose with the new run's.
    """
    try:
        plan = plan_of(view.header)
        spent = replay(view, None)[0].outsider.steps()
    except LedgerError as error:
        raise AuditInputError(f"{plain(name)}: {plain(error)}; see `fedsys audit`") from None
    if view.header.get("withheld") is not None or not plan.protected:
        raise AuditInputError(
            f"{plain(name)} promises nothing, so that no budget covers its clients any more"
        )
    alike = plan.unit == new.unit
    if not alike or plan.event().sampling.replaces != new.event().sampling.replaces:
        raise AuditInputError(
            f"{plain(name)} protects another unit, or defines neighbours differently (replace, or "
            f"add or remove), than the new run: their epsilons do not add up"
        )
    promised = view.closed is None or ended_early(view)
    return promised_part(plan, _VIEW) if promised else part_of(plan, _VIEW, spent)


def audit_population(folder: Path, *, key: str | None = None) -> AuditResult:
    """The audit of every run of a population, their total, and that total against the budget.

    Args:
        folder: with ``population.toml``; untrusted.
        key: the public key that signed all runs, as for `audit_run`.

    Raises:
        AuditInputError: there is no run, or the runs do not compose.
        ConfigError: there is no budget.
        LedgerError: ``key`` is not a public key.
    """
    budget, runs = Budget.load(folder), _runs(folder)
    if not runs:
        raise AuditInputError(f"{plain(folder)}: holds no run yet")
    result = compose(runs, key=key) if len(runs) > 1 else audit_run(runs[0], key=key)
    total = result.curve[-1].spent.outsider if result.curve else math.inf
    within = total <= budget.epsilon * (1 + 1e-6) and (result.delta or 1) <= budget.delta * (
        1 + 1e-9
    )
    claims = (
        *result.claims,
        _links(runs),
        claim(
            "Population's budget",
            within,
            claimed=f"epsilon {epsilon_text(budget.epsilon)} at delta = {budget.delta:g}",
            rederived=f"epsilon {epsilon_text(total)} for the outsider of {len(runs)} runs",
            by="all rounds of all runs together, whatever they asked for",
            rests_on="no further run on this population: the coordinator's word",
        ),
    )
    return AuditResult(
        run=plain(folder.resolve().name or folder, 100),
        claims=claims,
        curve=result.curve,
        delta=result.delta,
        notes=result.notes,
        details=result.details,
        withheld=result.withheld,
    )


def _links(runs: Sequence[Path]) -> Claim:
    """Each run's header states how many were before it: 0, 1, 2, ... without a gap."""
    stated: list[int] = []
    for run in runs:
        tuning = _view(run).header.get("tuning")
        count = tuning.get("runs", 0) if isinstance(tuning, dict) else None
        stated.append(count if type(count) is int else -1)
    return claim(
        "Linked ledgers",
        sorted(stated) == list(range(len(runs))),
        claimed="each run's header states all runs before it",
        rederived=", ".join(map(str, sorted(stated))) + " runs before",
        by="the headers; a run that was taken away leaves a gap",
        rests_on="the last run not having been taken away: keep its head elsewhere",
    )
