"""``fedsys audit RUN --empirical``: what a run's planted canaries say about its claimed epsilon.

The canaries' outcome is in ``canaries.jsonl``, which `fedsys simulate --canaries M` leaves in its
separate, unreleased run: a first line {"version", "canaries", "guesses", "dimension",
"ledger_head"}, then one line {"included", "score", "cosine"} a canary.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.audit.canaries import CONFIDENCE, detection_power, one_run, one_shot_estimate
from fedsys.audit.rederive import Audit, examine, result_of
from fedsys.audit.wording import claim, epsilon_text, plain, value_text
from fedsys.errors import AuditInputError, LedgerError
from fedsys.privacy import load_public_key
from fedsys.privacy.ledger.files import open_regular, read_lines
from fedsys.privacy.ledger.lines import parse_object
from fedsys.records import AuditResult, Claim

__all__ = ["CANARIES", "CanaryOutcome", "audit_canaries", "read_canaries"]

CANARIES = "canaries.jsonl"

_VERSION = 1
_FILE_BYTES = 1 << 28
_MOST_CANARIES = 1_000_000
_WEAKENED = (2.0, 2.5)
_SIMULATED_SCORES = 4_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryOutcome:
    """What became of m planted canaries.

    Attributes:
        guesses: r, fixed when they were planted.
        dimension: d.
        ledger_head: of the run that they were in.
        included: (m,) whose update was sent.
        scores: (m,) how far the models moved along each.
        cosines: (m,) of each with the models' change.
    """

    guesses: int
    dimension: int
    ledger_head: str
    included: NDArray[np.bool_]
    scores: NDArray[np.float64]
    cosines: NDArray[np.float64]


def audit_canaries(run: Path, *, key: str | None = None) -> AuditResult:
    """The audit of a run, and on top what its canaries refute.

    Args:
        run: a folder that ``fedsys simulate --canaries M`` made.
        key: as for `audit_run`.

    Raises:
        AuditInputError: there is no such run, or it has no canaries.
        LedgerError: ``key`` is not a public key.
    """
    pinned = None if key is None else load_public_key(key)
    audit = examine(run, pinned)
    path = run / CANARIES
    if not path.exists() and not path.is_symlink():
        raise AuditInputError(
            f"{plain(run)}: no canaries were planted in this run; plant some in a separate, "
            "unreleased one with `fedsys simulate --canaries M`"
        )
    result = result_of(run, audit, pinned)
    return dataclasses.replace(
        result,
        claims=(*result.claims, *_claims(path, audit)),
        notes=(
            *result.notes,
            "canaries bound epsilon from below: passing proves nothing beyond the stated power",
        ),
    )


def read_canaries(path: Path) -> CanaryOutcome:
    """Reads ``canaries.jsonl``.

    Raises:
        LedgerError: it is not one.
    """
    with open_regular(path, _FILE_BYTES) as file:
        lines = read_lines(file, path.name)
        raw, _ = next(lines, (b"", False))
        head = parse_object(raw, f"{path.name} line 1")
        count = _count(head, "canaries", path.name)
        if head.get("version") != _VERSION or count > _MOST_CANARIES:
            raise LedgerError(f"{path.name} line 1 is not of version {_VERSION}, or has too many")
        included = np.zeros(count, dtype=np.bool_)
        values = np.zeros((2, count))
        number = 0
        for number, (raw, ended) in enumerate(lines, start=1):
            if number > count or not ended:
                raise LedgerError(f"{path.name} does not hold the {count} canaries that it states")
            line = parse_object(raw, f"{path.name} line {number + 1}")
            if not isinstance(line.get("included"), bool):
                raise LedgerError(f"{path.name} line {number + 1} does not say included or not")
            included[number - 1] = line["included"]
            for row, name in enumerate(("score", "cosine")):
                values[row, number - 1] = _number(line, name, f"{path.name} line {number + 1}")
        if number != count:
            raise LedgerError(f"{path.name} does not hold the {count} canaries that it states")
    return CanaryOutcome(
        guesses=_count(head, "guesses", path.name),
        dimension=_count(head, "dimension", path.name),
        ledger_head=plain(head.get("ledger_head"), 80),
        included=included,
        scores=values[0],
        cosines=values[1],
    )


def _count(body: dict[str, Any], name: str, where: str) -> int:
    value = body.get(name)
    if type(value) is not int or not 0 < value < 1 << 40:
        raise LedgerError(f"{where}: {name} is not a number of them")
    return value


def _number(body: dict[str, Any], name: str, where: str) -> float:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise LedgerError(f"{where}: {name} is not a number")
    try:
        return float(value)
    except OverflowError:
        raise LedgerError(f"{where}: {name} is not a number") from None


def _claims(path: Path, audit: Audit) -> list[Claim]:
    view, spending, plan = audit.evidence.ledger.value, audit.spending, audit.plan
    try:
        outcome = read_canaries(path)
    except LedgerError as error:
        return [_belonging(False, "unreadable", str(error))]
    if view is None or spending is None or plan is None:
        return [_belonging(None, outcome.ledger_head, "the ledger itself cannot be accounted")]
    own = outcome.ledger_head == view.head and outcome.dimension == plan.dimension
    claims = [_belonging(own, outcome.ledger_head, view.head)]
    if not own:
        return claims
    epsilon, delta = spending.spent.outsider, plan.delta
    try:
        found = one_run(outcome.scores, outcome.included, guesses=outcome.guesses, delta=delta)
        estimate = one_shot_estimate(
            outcome.cosines[outcome.included], dimension=outcome.dimension, delta=delta
        )
    except AuditInputError as error:
        return [*claims, _belonging(False, "scores of canaries", str(error))]
    claims.append(
        claim(
            "Empirical lower bound on epsilon (one-run)",
            found.bound <= epsilon,
            claimed=f"at most {epsilon_text(epsilon)}",
            rederived=f"at least {epsilon_text(found.bound)}: {found.correct} of {found.guesses} "
            f"guesses right about {found.canaries} canaries",
            by=f"Steinke, Nasr, Jagielski 2023, {CONFIDENCE:.0%} confidence",
            rests_on="whoever planted the canaries",
        )
    )
    claims.append(
        claim(
            "Empirical estimate of epsilon (one-shot)",
            None,
            claimed=f"at most {epsilon_text(epsilon)}",
            rederived=f"about {epsilon_text(estimate)}: an estimate, not a bound",
            by="Andrew et al. 2024",
            rests_on="the canaries' cosines being normal",
        )
    )
    if math.isfinite(epsilon):
        claims.append(_power_claim(audit, outcome, epsilon, delta))
    return claims


def _belonging(holds: bool | None, claimed: str, rederived: str) -> Claim:
    return claim(
        "Canaries of this run",
        holds,
        claimed=value_text(claimed),
        rederived=rederived,
        by=f"the ledger head in {CANARIES}",
        rests_on="whoever planted the canaries",
    )


def _power_claim(audit: Audit, outcome: CanaryOutcome, epsilon: float, delta: float) -> Claim:
    """How often weaker noise would have been caught: what passing is worth."""
    plan = audit.plan
    steps = {} if audit.spending is None else audit.spending.accountant.outsider.steps()
    words = "not known for this mechanism"
    if plan is not None and plan.protected and steps:
        # a canary is there or not, which moves a sum half as far as its replacement would
        multiplier = min(step.multiplier * (2 if step.replaces else 1) for step in steps)
        rate = max(step.rate for step in steps)
        times = max(20, min(200, _SIMULATED_SCORES // len(outcome.scores)))
        caught = [
            detection_power(
                epsilon=epsilon,
                delta=delta,
                canaries=len(outcome.scores),
                guesses=outcome.guesses,
                noise_multiplier=multiplier / factor,
                rounds=sum(count * step.count for step, count in steps.items()),
                rate=rate,
                runs=times,
            )
            for factor in _WEAKENED
        ]
        words = "; ".join(
            f"noise divided by {factor:g} is caught in {share:.0%} of runs"
            for factor, share in zip(_WEAKENED, caught, strict=True)
        )
    return claim(
        "Power of the one-run audit",
        None,
        claimed="nothing",
        rederived=words,
        by="simulating the canaries' scores",
        rests_on="scores being normal",
    )
