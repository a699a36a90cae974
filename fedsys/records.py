"""Plain values that several layers hand to one another; no behaviour beyond their own shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedsys.privacy.views import Epsilons

__all__ = ["AuditResult", "Claim", "EpsilonPoint", "Epsilons"]


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
class AuditResult:
    """Every claim of one run, re-derived from its folder."""

    run: str
    claims: tuple[Claim, ...]
    curve: tuple[EpsilonPoint, ...] = ()
    delta: float | None = None
    ledger_head: str | None = None
    signer: str | None = None
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no claim failed."""
        return all(claim.holds is not False for claim in self.claims)
