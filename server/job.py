"""A job and its run's folder.

Every host (the simulator in process, gRPC, Flower) runs its rounds on the `Coordinator` that is
here, so that all of them keep the same ledger in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fedsys.config import Config
from fedsys.preprocessing import Preprocessing, why_withheld
from fedsys.privacy import Ledger, PrivacyPlan, Signer
from fedsys.run_folder import RunFolder
from server.coordinator import Coordinator
from server.job_settings import budget_of

__all__ = ["Job", "JobFacts", "job_withheld"]


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """What the ledger's header says beside the privacy plan.

    Attributes:
        population_known: how N is known.
        roster: whose word the list of members is.
        randomness: where secrets come from.
        reproducible: whether somebody could draw them again; then nothing is private.
        roster_version: of the signed list of members, in a deployment.
        preprocessing: what the task declares; see `fedsys.preprocessing`.
    """

    population_known: str
    roster: str
    randomness: str
    reproducible: bool = False
    roster_version: int | None = None
    preprocessing: Preprocessing = "undeclared"


def job_withheld(plan: PrivacyPlan, facts: JobFacts) -> str | None:
    """Why a job that promises privacy can make no claim of it; None where it can."""
    return why_withheld(facts.preprocessing, plan.unit) if plan.protected else None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job whose folder exists; `server.job_opening` makes them.

    Attributes:
        config: resolved; what ``config.toml`` holds.
        plan: its privacy parameters.
        folder: of the run.
        ledger: open for writing.
        coordinator: ready for its next round.
        signer: of the ledger.
        facts: as the ledger's header has them.
    """

    config: Config
    plan: PrivacyPlan
    folder: RunFolder
    ledger: Ledger
    coordinator: Coordinator
    signer: Signer
    facts: JobFacts

    @cached_property
    def budget(self) -> float | None:
        """What epsilon may reach in the guaranteed view; None where nothing is promised."""
        return budget_of(self.plan)

    @property
    def epsilon(self) -> float | None:
        """Spent so far in the guaranteed view; None where nothing is promised."""
        return self.coordinator.spent_in(self.plan.guarantee) if self.plan.protected else None

    def close(self, status: str, *, model_sha256: str) -> None:
        """End the ledger; the job takes no further round."""
        self.ledger.close(status, {"model_sha256": model_sha256})
