"""A population's folder: all runs on the same clients, under one budget.

The folder holds ``population.toml``, which states the budget, and a folder for each run: training,
queries and evaluations alike. A run's header states the runs before it, with their heads and
rounds (*tuning* in LEDGER.md), so that each ledger is linked to all that came before and its
summary states the total. A run that is not over counts with all rounds that its plan allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsys.agreement import agrees
from fedsys.audit.composition import compose
from fedsys.audit.page import PageMaker
from fedsys.audit.rederive import audit_run
from fedsys.audit.wording import claim, epsilon_text, plain, value_text
from fedsys.bounded_toml import MAX_BYTES, parse_toml
from fedsys.errors import (
    AuditInputError,
    BudgetExceeded,
    ConfigError,
    LedgerError,
    MechanismError,
)
from fedsys.privacy import LedgerView, PrivacyPlan, View, plan_of, read_ledger, replay
from fedsys.privacy.accounting.adding import (
    Part,
    cost_together,
    part_of,
    promised_part,
    replaces,
    together,
)
from fedsys.privacy.ledger.files import open_regular
from fedsys.records import AuditResult, Claim

__all__ = ["BUDGET", "Budget", "audit_population", "is_population", "linked"]

BUDGET = "population.toml"
_MOST_RUNS = 10_000
_MOST_TOTALS = 32
"""Runs whose statement of the runs before them is derived again: the last ones."""
_RELATIVE = 1e-6
_VIEW: View = "outsider"
_NOT_DERIVED = (
    AuditInputError,
    LedgerError,
    MechanismError,
    ValueError,
    ArithmeticError,
    MemoryError,
)
"""How a run that cannot be accounted for is told."""


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
            with open_regular(path, MAX_BYTES) as file:
                found = parse_toml(file.read(MAX_BYTES + 1))
        except LedgerError as error:
            raise ConfigError(
                f"{plain(folder)}: {error}; write `epsilon = 4.0` and `delta = 1e-5` into it"
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
    total, delta = cost_together([*parts, promised_part(plan, _VIEW)])
    if total > budget.epsilon * (1 + 1e-9) or delta > budget.delta * (1 + 1e-9):
        before = cost_together(parts)[0] if parts else 0.0
        raise BudgetExceeded(
            f"{folder}: the population's budget is epsilon {budget.epsilon:g} at delta "
            f"{budget.delta:g}; {before:.4g} is spent or promised by {len(parts)} runs, and with "
            f"this one it would be {total:.4g} at {delta:g}"
        )
    if not parts:
        return None
    epsilon, at = cost_together(parts)
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
        raise _unreadable(run.name, error) from None


def _unreadable(name: str, error: LedgerError) -> AuditInputError:
    return AuditInputError(f"{plain(name)}: {plain(error)}; see `fedsys audit`")


def _part(name: str, view: LedgerView, new: PrivacyPlan, *, over: bool = True) -> Part:
    """What a run counts: what it spent if it is over, and all that its plan allows if it is not, or
    if what it released decided how many rounds there were.

    Args:
        name: its folder's.
        view: its ledger.
        new: the plan of the run that follows it.
        over: whether its ledger ended then as it does now.

    Raises:
        AuditInputError: its rounds cannot be accounted for, or do not compose with the new run's.
    """
    try:
        plan = plan_of(view.header)
        spent = replay(view, None)[0].outsider.steps()
    except LedgerError as error:
        raise _unreadable(name, error) from None
    if view.header.get("withheld") is not None or not plan.protected:
        raise AuditInputError(
            f"{plain(name)} promises nothing, so that no budget covers its clients any more"
        )
    alike = plan.unit == new.unit
    if not alike or replaces(plan, _VIEW) != replaces(new, _VIEW):
        raise AuditInputError(
            f"{plain(name)} protects another unit, or defines neighbours differently (replace, or "
            f"add or remove), than the new run: their epsilons do not add up"
        )
    promised = view.closed is None or not over or view.ended_early
    return promised_part(plan, _VIEW) if promised else part_of(plan, _VIEW, spent)


def audit_population(
    folder: Path, *, key: str | None = None, page: PageMaker | None = None
) -> AuditResult:
    """The audit of every run of a population, their total, and that total against the budget.

    Args:
        folder: with ``population.toml``; untrusted.
        key: the public key that signed all runs, as for `audit_run`.
        page: makes a report's text, so that each run's ``report.html`` is checked too.

    Raises:
        AuditInputError: there is no run, or the runs do not compose.
        ConfigError: there is no budget.
        LedgerError: ``key`` is not a public key.
    """
    budget, runs = Budget.load(folder), _runs(folder)
    if not runs:
        raise AuditInputError(f"{plain(folder)}: holds no run yet")
    if len(runs) > 1:
        result = compose(runs, key=key, page=page)
    else:
        result = audit_run(runs[0], key=key, page=page)
    found = sorted((_Linked.read(run) for run in runs), key=lambda each: each.count)
    claims = (*result.claims, _links(found), _budget_claim(budget, found))
    return AuditResult(
        run=plain(folder.resolve().name or folder, 100),
        claims=claims,
        curve=result.curve,
        delta=result.delta,
        notes=result.notes,
        details=result.details,
        withheld=result.withheld,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Linked:
    """One run of a population, as far as its ledger goes.

    Attributes:
        name: its folder's.
        view: its ledger.
        hashes: of all its lines.
        before: what its header states of the runs before it.
        count: their number; -1 if the statement is malformed.
    """

    name: str
    view: LedgerView
    hashes: frozenset[str]
    before: Mapping[str, Any]
    count: int

    @classmethod
    def read(cls, run: Path) -> _Linked:
        hashes: set[str] = set()
        try:
            view = read_ledger(run / "ledger.jsonl", allow_torn=True, hashes=hashes)
        except LedgerError as error:
            raise _unreadable(run.name, error) from None
        tuning = view.header.get("tuning")
        before = tuning if isinstance(tuning, dict) else {}
        count = before.get("runs", 0) if isinstance(tuning, dict | None) else None
        return cls(
            name=plain(run.name, 60),
            view=view,
            hashes=frozenset(hashes),
            before=before,
            count=count if type(count) is int else -1,
        )


def _budget_claim(budget: Budget, found: Sequence[_Linked]) -> Claim:
    """All runs together against the budget: a run that is not over may still do what its plan
    allows, and one that stopped early counts with that as well."""
    total, delta = math.inf, 1.0
    try:
        plan = plan_of(found[-1].view.header)
        total, delta = cost_together([_part(each.name, each.view, plan) for each in found])
        words = (
            f"epsilon {epsilon_text(total)} at delta = {delta:g} spent or promised by "
            f"{len(found)} runs, for the outsider"
        )
    except _NOT_DERIVED as error:
        words = plain(error)
    return claim(
        "Population's budget",
        total <= budget.epsilon * (1 + 1e-6) and delta <= budget.delta * (1 + 1e-9),
        claimed=f"epsilon {epsilon_text(budget.epsilon)} at delta = {budget.delta:g}",
        rederived=words,
        by="all rounds of all runs together, whatever they asked for; all that a plan allows where "
        "a run is not over, or stopped early",
        rests_on="no further run on this population: the coordinator's word",
    )


def _links(found: Sequence[_Linked]) -> Claim:
    """Each run's header states the runs before it: how many, their heads then, and their cost.

    Args:
        found: the runs, by the number of runs before each.
    """
    problem: str | None = None
    known: dict[tuple[str, bool], Part] = {}
    if [each.count for each in found] != list(range(len(found))):
        counts = ", ".join(str(each.count) for each in found)
        problem = f"{counts} runs before: a run is missing, or is there twice"
    for place in range(len(found)):
        costly = place < len(found) - _MOST_TOTALS
        costs = None if costly else known
        problem = problem or _misstated(found[place], found[:place], costs)
    return claim(
        "Linked ledgers",
        problem is None,
        claimed="each run's header states all runs before it",
        rederived=problem or f"{len(found)} runs, each linked to all before it",
        by="the number, heads and rounds of earlier runs in each header; a run that was taken "
        "away or exchanged shows",
        rests_on="the last run not having been taken away: keep its head elsewhere",
    )


def _misstated(
    run: _Linked, earlier: Sequence[_Linked], known: dict[tuple[str, bool], Part] | None
) -> str | None:
    """What a header says of the runs before it that their ledgers contradict; None if nothing.

    Args:
        run: whose header it is.
        earlier: the runs before it.
        known: what earlier runs cost, by their head and whether they were over, as far as it was
            derived; None if the cost is not compared.
    """
    heads = run.before.get("heads", [])
    if not isinstance(heads, list) or len(heads) != len(earlier):
        return f"{run.name} does not state a head for each of {len(earlier)} runs before it"
    stated = {each for each in heads if isinstance(each, str)}
    then = [next(iter(stated & each.hashes), None) for each in earlier]
    if len(stated) != len(heads) or None in then:
        other = next((e.name for e, head in zip(earlier, then, strict=True) if head is None), "")
        return f"{run.name} was linked to another ledger than {other or 'those here'}"
    if not earlier or known is None:
        return None
    parts: list[Part] = []
    try:
        plan = plan_of(run.view.header)
        for each, head in zip(earlier, then, strict=True):
            at = each.view.head, head == each.view.head
            if at not in known:
                known[at] = _part(each.name, each.view, plan, over=at[1])
            parts.append(known[at])
        epsilon, delta = cost_together(parts)
    except _NOT_DERIVED as error:
        return plain(error)
    said, said_at = run.before.get("epsilon"), run.before.get("delta")
    if not (_close(said, epsilon) and _close(said_at, delta)):
        return (
            f"{run.name} states epsilon {epsilon_text(said)} at delta = {value_text(said_at)} for "
            f"the runs before it, which cost {epsilon_text(epsilon)} at {value_text(delta)}"
        )
    return None


def _close(stated: object, derived: float) -> bool:
    if stated == "inf":
        return math.isinf(derived)
    return agrees(stated, derived, relative=_RELATIVE)
