"""Plain values that several layers exchange; no behaviour beyond their own shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedsys.privacy.views import Epsilons, epsilon_to_json

__all__ = ["AuditResult", "Claim", "EpsilonPoint", "Epsilons", "Terms", "Total"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EpsilonPoint:
    """Privacy spent after round ``round`` (1-based) was reserved."""

    round: int
    spent: Epsilons


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One statement of a run and the audit's verdict on it.

    ``holds`` is None where the available evidence cannot decide; ``rests_on`` says what has to be
    taken on trust.
    """

    name: str
    claimed: str
    rederived: str
    by: str
    rests_on: str
    holds: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Total:
    """The outsider's epsilon of a run and the tuning runs that its header states.

    Attributes:
        runs: number of tuning runs.
        before: their epsilon together, at their own delta.
        epsilon: epsilon of all of them and this run.
        delta: the delta at which that holds.
    """

    runs: int
    before: float
    epsilon: float
    delta: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "runs": self.runs,
            "before": epsilon_to_json(self.before),
            "epsilon": epsilon_to_json(self.epsilon),
            "delta": self.delta,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What an epsilon is an epsilon of.

    Attributes:
        mechanism: the mechanism's name.
        unit: what is protected, "client" or "example".
        guarantee: the view that the budget is for.
        protocol: how updates were summed.
        clip: the clipping norm.
        noise_multiplier: the noise multiplier.
        reproducible: whether noise, sampling and keys were derived from a seed.
    """

    mechanism: str
    unit: str
    guarantee: str
    protocol: str
    clip: float | None
    noise_multiplier: float | None
    reproducible: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditResult:
    """Every claim of one run, re-derived from its folder.

    Attributes:
        run: its folder's name.
        claims: in the order in which they were examined.
        curve: epsilon over the rounds.
        delta: the job's delta.
        ledger_head: hash of the ledger's last line.
        signer: public key in the header.
        notes: what a reader must know besides the claims.
        details: further facts for machines.
        neighbours: what each view's epsilon compares, as the header declares it.
        withheld: why none of the epsilons can be claimed; None where they can.
        total: the total with tuning runs; None where the header states none.
        terms: the header's and its plan's; None where there is no usable plan.
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
    terms: Terms | None = None

    @property
    def passed(self) -> bool:
        """Whether no claim failed."""
        return all(claim.holds is not False for claim in self.claims)
