"""A job and its run's folder.

Every host (the simulator in process, gRPC, Flower) runs its rounds on this job's `Coordinator`,
so that all of them keep the same ledger in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """What the ledger's header says besides the privacy plan.

    Attributes:
        population_known: How the population N is known.
        roster: Who vouches for the list of members.
        randomness: Where secrets come from.
        reproducible: Whether somebody could draw the same secrets again; then nothing is private.
        roster_version: Version of the signed list of members, in a deployment.
        roster_sha256: Hash of that list.
        preprocessing: What the task declares; see `fedsys.preprocessing`.
        frozen_sha256: Binds the form of the model and whatever of it is not trained (`fedsys.
            model_state`); None where no model is stored.
        canaries: Hash of an empirical audit's protocol; None where no canaries are planted.
    """

    population_known: str
    roster: str
    randomness: str
    reproducible: bool = False
    roster_version: int | None = None
    roster_sha256: str | None = None
    preprocessing: Preprocessing = "undeclared"
    frozen_sha256: str | None = None
    canaries: str | None = None


def job_withheld(plan: PrivacyPlan, facts: JobFacts) -> str | None:
    """Why a job with a privacy plan can make no privacy claim; None where it can."""
    return why_withheld(facts.preprocessing, plan.unit) if plan.protected else None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job whose folder exists; `server.job_opening` makes them.

    Attributes:
        config: The resolved configuration, as ``config.toml`` holds it.
        plan: The job's privacy parameters.
        folder: The run's folder.
        ledger: The run's ledger, open for writing.
        coordinator: Ready for its next round.
        signer: Signs the ledger.
        facts: As stated in the ledger's header.
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
        """Epsilon that the guaranteed view may reach; None where nothing is promised."""
        return budget_of(self.plan)

    @property
    def epsilon(self) -> float | None:
        """Epsilon spent so far in the guaranteed view; None where nothing is promised."""
        return self.coordinator.spent_in(self.plan.guarantee) if self.plan.protected else None

    def close(self, status: str, facts: Mapping[str, str | None]) -> None:
        """Close the ledger; the job runs no further rounds.

        Args:
            status: How the job ended.
            facts: Hashes of what its folder holds (`fedsys.privacy.ledger.closing`).
        """
        self.ledger.close(status, facts)
