"""What the privacy statement depends on: what was signed, by the audit; the summary and the config
where a folder has no ledger that can be read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedsys.printable import printable
from fedsys.records import AuditResult, Epsilons, Terms, Total
from fedsys.report.contents import RunContents

__all__ = ["SERVER_SEES_SUMS", "Facts", "disclosable", "explain", "gather", "mechanism_title"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the statement depends on."""

    mechanism: str
    unit: str
    protocol: str
    sampling: str
    participation: float
    clip: float | None
    noise_multiplier: float | None
    guarantee: str
    colluders: int
    delta: float | None
    budget: float | None
    spent: Epsilons | None
    reproducible: bool
    private: bool
    neighbours: Mapping[str, str]
    withheld: str | None
    total: Total | None

    @property
    def noiseless(self) -> bool:
        """Whether the run has no privacy mechanism."""
        return self.mechanism == "none"

    def compared(self, view: str) -> str:
        """The two cases that a view must not distinguish, as the ledger's header declares."""
        return self.neighbours.get(view, "not declared by the ledger's header")


_MECHANISMS = {
    "distributed-gaussian": (
        "distributed Gaussian",
        "Every client adds its share of rounded Gaussian noise before its update is encrypted, so "
        "only a noisy total ever exists outside the clients; the server adds the shares of clients "
        "that were lost.",
    ),
    "central-gaussian": (
        "central Gaussian",
        "The server adds the noise to the sum of the updates. Anyone who runs the server can see "
        "that sum without noise.",
    ),
    "banded-mf": (
        "banded matrix factorization (DP-FTRL)",
        "The server adds noise that is correlated over the rounds. Anyone who runs the server can "
        "see every sum without noise.",
    ),
    "local-gaussian": (
        "local Gaussian",
        "Every client adds all of the noise itself; nobody else needs to be trusted.",
    ),
    "example-gaussian": (
        "per-example Gaussian (DP-SGD in each client)",
        "Every client adds noise to each of its own training steps, which protects each of its "
        "examples.",
    ),
    "none": ("none", "Nobody adds noise."),
}

SERVER_SEES_SUMS = {"central-gaussian", "banded-mf", "none"}


def mechanism_title(name: str) -> str:
    """The mechanism's display name."""
    return _MECHANISMS.get(name, (printable(name, 60), ""))[0]


def explain(facts: Facts) -> str:
    """Who adds the noise, in one sentence or two."""
    said = _MECHANISMS.get(facts.mechanism, ("", ""))[1]
    if facts.mechanism == "distributed-gaussian" and facts.protocol in ("ideal", "float"):
        return (
            "In a deployment every client adds its share of rounded noise before its update is "
            "encrypted; here the simulation added it, without encryption."
        )
    return said


def _stated(folder: RunContents) -> Terms:
    """What summary and configuration state; where they differ, the weaker one counts."""
    privacy = folder.summary.privacy

    def weaker(*names: str, of: tuple[object, object], otherwise: str = "unknown") -> str:
        found = [printable(name, 60) for name in of if name]
        return next((name for name in names if name in found), (found or [otherwise])[0])

    return Terms(
        mechanism=weaker("none", of=(privacy.mechanism, folder.setting("privacy", "mechanism"))),
        unit=weaker("example", of=(privacy.unit, folder.setting("privacy", "unit"))),
        guarantee=weaker(
            of=(privacy.guarantee, folder.setting("privacy", "guarantee")), otherwise="outsider"
        ),
        protocol=weaker(
            "float",
            "ideal",
            of=(folder.summary.protocol, folder.setting("aggregation", "protocol")),
        ),
        clip=privacy.clip,
        noise_multiplier=privacy.noise_multiplier,
        reproducible=folder.summary.reproducible,
    )


def gather(folder: RunContents, audit: AuditResult, *, private: bool) -> Facts:
    """Collects what the statement depends on: what the ledger's header signed, if there is one."""
    summary = folder.summary
    terms = _stated(folder) if audit.terms is None else audit.terms
    participation = folder.setting("cohort", "participation")
    colluders = folder.setting("privacy", "max_colluders")
    return Facts(
        mechanism=terms.mechanism,
        unit=terms.unit,
        protocol=terms.protocol,
        sampling=printable(folder.setting("cohort", "sampling") or "unknown", 60),
        participation=participation if isinstance(participation, float) else 1.0,
        clip=terms.clip,
        noise_multiplier=terms.noise_multiplier,
        guarantee=terms.guarantee,
        colluders=colluders if isinstance(colluders, int) else 0,
        delta=audit.delta if audit.delta is not None else summary.privacy.delta,
        budget=summary.privacy.budget,
        spent=disclosable(audit.curve[-1].spent, private)
        if audit.curve and audit.withheld is None
        else None,
        reproducible=terms.reproducible,
        private=private,
        neighbours={
            printable(view, 20): printable(words, 200) for view, words in audit.neighbours.items()
        },
        withheld=None if audit.withheld is None else printable(audit.withheld),
        total=audit.total if audit.withheld is None else None,
    )


def disclosable(spent: Epsilons, private: bool) -> Epsilons:
    """Omits from a public report the finite figures that depend on the secret cohorts."""
    if private:
        return spent
    return Epsilons(
        outsider=spent.outsider,
        participant=spent.participant if spent.participant == math.inf else None,
        server=spent.server if spent.server == math.inf else None,
    )
