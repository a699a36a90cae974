"""The checklist for stating a guarantee: Ponomareva et al. 2023, "How to DP-fy ML", section 5.3."""

from __future__ import annotations

from fedsys.printable import printable
from fedsys.records import AuditResult
from fedsys.report import figures
from fedsys.report.facts import Facts
from fedsys.report.folder import RunFolder
from fedsys.report.views import amplification

__all__ = ["checklist"]


def checklist(folder: RunFolder, audit: AuditResult, facts: Facts) -> tuple[tuple[str, str], ...]:
    """Each item with this run's answer."""
    accountants = dict.fromkeys(
        printable(claim.by, 80) for claim in audit.claims if "epsilon" in claim.name.lower()
    )
    setting = {
        "distributed-skellam": "Distributed: noise by the clients, inside a secure sum.",
        "local-gaussian": "Local: all of the noise by each client.",
        "example-gaussian": "Local to each silo: DP-SGD inside every client.",
        "none": "None.",
    }.get(facts.mechanism, "Central: a trusted server adds the noise.")
    if facts.protocol in ("ideal", "float"):
        setting += " Simulated without masks."
    private = facts.private
    adjacency = (
        "Outsider and participant: "
        + ("replace one client's update" if facts.replaces else "add or remove ")
        + ("" if facts.replaces else "one example" if facts.unit == "example" else "one client")
        + ". Server: one client's update or zero."
    )
    spent = facts.spent
    formal = (
        "No guarantee: the mechanism is “none”."
        if facts.noiseless
        else "Not derived: see the audit."
        if spent is None
        else f"Outsider: ({figures.epsilon(spent.outsider)}, {figures.small(facts.delta)})-DP for "
        "the final model and every released one before it"
        + (
            f"; participant: ε = {figures.epsilon(spent.participant)}"
            f"; server: ε = {figures.epsilon(spent.server)}, at the same δ."
            if private
            else "."
        )
    )
    versions = folder.summary.versions
    libraries = [
        f"{name} {versions[name]}" for name in ("dp-accounting", "opacus") if name in versions
    ]
    return (
        ("DP setting", setting),
        (
            "Data accesses covered",
            "The training of this run: every released model. " + _not_covered(folder),
        ),
        (
            "Final mechanism's output",
            "All models after each round. The sums inside a round are released to nobody; the "
            "server's view of them has its own ε.",
        ),
        (
            "Unit of privacy",
            "One example." if facts.unit == "example" else "One client: its whole contribution.",
        ),
        ("Adjacency", adjacency),
        ("Accounting", "; ".join(accountants) or "Not derived."),
        (
            "Accounting assumptions",
            f"Sampling as implemented: {facts.sampling}; outsider's amplification: "
            f"{amplification(facts)}.",
        ),
        ("Formal statement", formal),
        (
            "Transparency",
            "A signed, hash-chained ledger; “fedsys audit” derives every figure again. "
            + ("Libraries: " + ", ".join(libraries) + "." if libraries else "Open source."),
        ),
    )


def _not_covered(folder: RunFolder) -> str:
    """What the configuration says of tuning; only the ledgers of those runs can prove it."""
    runs, spent = folder.setting("tuning", "runs"), folder.setting("tuning", "epsilon")
    if type(runs) is not int or runs < 1:
        return "Tuning runs and evaluation are not; the configuration states no tuning runs."
    cost = figures.epsilon(spent) if isinstance(spent, float) else "unknown"
    return (
        f"Evaluation is not, nor are {figures.count(runs)} tuning runs before it: by the "
        f"configuration, their ε for the outsider is {cost} in all, which adds to this run's."
    )
