"""Plain values that several layers hand to one another; no behaviour beyond their own shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedsys.privacy.views import Epsilons, epsilon_to_json

__all__ = ["AuditResult", "Claim", "EpsilonPoint", "Epsilons", "Total"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EpsilonPoint:
    """Privacy spent once round ``round`` (1-based) was reserved."""

    round: int
    spent: Epsilons


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One statement of a run and what became of it.

    ``holds`` is None where the evidence at hand cannot decide; ``rests_on`` then says on whose
    word it stands.
    """

    name: str
    claimed: str
    rederived: str
    by: str
    rests_on: str
    holds: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Total:
    """What an outsider learns from a run and from the tuning runs that its header states.

    Attributes:
        runs: before this one.
        before: their epsilon together, at their own delta.
        epsilon: of all of them and this run.
        delta: at which that holds.
    """

    runs: int
    before: float
    epsilon: float
    delta: float

    def to_json(self) -> dict[str, Any]:
        """As JSON writes it."""
        return {
            "runs": self.runs,
            "before": epsilon_to_json(self.before),
            "epsilon": epsilon_to_json(self.epsilon),
            "delta": self.delta,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditResult:
    """Every claim of one run, re-derived from its folder.

    Attributes:
        run: its folder's name.
        claims: in the order of the examination.
        curve: epsilon over the rounds.
        delta: of the job.
        ledger_head: hash of the last line.
        signer: public key in the header.
        notes: what a reader has to know besides the claims.
        details: further facts for machines.
        neighbours: what each view's epsilon compares, as the header declares it.
        withheld: why none of the epsilons can be claimed; None where they can.
        total: with tuning runs, where the header states any.
    """

    run: str
    claims: tuple[Claim, ...]
    curve: tuple[EpsilonPoint, ...] = ()
    delta: float | None = None
    ledger_head: str | None = None
    signer: str | None = None
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    neighbours: Mapping[str, str] = field(default_factory=dict)
    withheld: str | None = None
    total: Total | None = None

    @property
    def passed(self) -> bool:
        """Whether no claim failed."""
        return all(claim.holds is not False for claim in self.claims)
