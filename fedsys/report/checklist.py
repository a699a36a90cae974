"""The checklist for stating a guarantee: Ponomareva et al. 2023, "How to DP-fy ML", section 5.3."""

from __future__ import annotations

from fedsys.printable import printable
from fedsys.records import AuditResult
from fedsys.report import figures
from fedsys.report.contents import RunContents
from fedsys.report.facts import Facts
from fedsys.report.views import amplification

__all__ = ["checklist"]


def checklist(folder: RunContents, audit: AuditResult, facts: Facts) -> tuple[tuple[str, str], ...]:
    """Each item with this run's answer."""
    accountants = dict.fromkeys(
        printable(claim.by, 160)
        for claim in audit.claims
        if claim.name.lower().startswith("epsilon, ") and claim.name.count(",") == 1
    )
    setting = {
        "distributed-gaussian": "Distributed: the clients add the noise, inside a secure sum.",
        "local-gaussian": "Local: every client adds all of the noise.",
        "example-gaussian": "Local to each silo: DP-SGD inside every client.",
        "none": "None.",
    }.get(facts.mechanism, "Central: a trusted server adds the noise.")
    if facts.protocol in ("ideal", "float"):
        setting += " Simulated without encryption."
    private = facts.private
    adjacency = " ".join(
        f"{view.capitalize()}: {facts.compared(view)}."
        for view in ("outsider", "participant", "server")
    )
    spent = facts.spent
    formal = (
        "No guarantee: the mechanism is “none”."
        if facts.noiseless
        else f"No statement can be made: {facts.withheld}."
        if facts.withheld is not None
        else "Not derived: see the audit."
        if spent is None
        else f"Outsider: ({figures.epsilon(spent.outsider)}, {figures.small(facts.delta)})-DP for "
        "this run's final model and every model released before it"
        + (
            f"; participant: ε = {figures.epsilon(spent.participant)}"
            f"; server: ε = {figures.epsilon(spent.server)}, at the same δ."
            if private
            else "."
        )
        + _with_tuning(facts)
    )
    versions = folder.summary.versions
    libraries = [
        f"{name} {versions[name]}" for name in ("dp-accounting", "opacus") if name in versions
    ]
    return (
        ("DP setting", setting),
        (
            "Data accesses covered",
            "The training of this run: every released model. " + _not_covered(facts),
        ),
        (
            "Final mechanism's output",
            "The model after each round. The sum of a round goes to the server alone, whose view "
            "has its own ε.",
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
            "A signed, hash-chained ledger; “fedsys audit” derives every ε again, and names what "
            "must be taken on trust. "
            + ("Libraries: " + ", ".join(libraries) + "." if libraries else "Open source."),
        ),
    )


def _with_tuning(facts: Facts) -> str:
    total = facts.total
    if total is None:
        return ""
    return (
        f" With the tuning runs before it: ({figures.epsilon(total.epsilon)}, "
        f"{figures.small(total.delta)})-DP for an outsider."
    )


def _not_covered(facts: Facts) -> str:
    """What the header says about tuning; only the ledgers of those runs can prove it."""
    total = facts.total
    if total is None:
        return "Evaluation is not covered; the ledger's header states no tuning runs."
    return (
        f"Evaluation is not covered. According to the ledger's header, {figures.count(total.runs)} "
        f"tuning runs before it cost an outsider's ε = {figures.epsilon(total.before)}; with this "
        f"run the total is {figures.epsilon(total.epsilon)} at δ = {figures.small(total.delta)}."
    )
