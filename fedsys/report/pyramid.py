"""The pyramid of NIST SP 800-226, "Guidelines for Evaluating Differential Privacy Guarantees".

Each component's protection depends on those below it: the parameters and the unit on top, then
algorithms, utility and bias, and at the bottom what surrounds the mechanism.
"""

from __future__ import annotations

from fedsys.records import AuditResult
from fedsys.report import figures
from fedsys.report.contents import RunContents
from fedsys.report.facts import SERVER_SEES_SUMS, Facts

__all__ = ["pyramid"]

Row = tuple[str, str]


def pyramid(folder: RunContents, audit: AuditResult, facts: Facts) -> tuple[Row, ...]:
    """Each component, from the top, with this run's answer."""
    return (
        ("Privacy parameters (ε, δ)", _parameters(facts)),
        ("Unit of privacy", _unit(facts)),
        ("Algorithms and correctness", _correctness(audit, facts)),
        ("Utility", _utility(folder)),
        (
            "Bias",
            "Not measured. Clipping shortens the updates of unusual clients and noise drowns out "
            "small groups, so the model may serve minorities worse than the metrics say.",
        ),
        ("Trust model", _trust(facts)),
        (
            "Side channels",
            "Noise is drawn as integers from an exact table, not in floating point. "
            + (_answer_times(folder) + " " if folder.setting("rounds", "answer") else "")
            + "Traffic, timing and memory of a device are outside the guarantee.",
        ),
        (
            "Security and access control",
            "Who may read cohorts, checkpoints and keys is the operator's word: nothing in "
            "this folder shows it. “fedsys publish” leaves out what only the operator may see.",
        ),
        (
            "Data collection exposure",
            "Raw data stay with the clients by the protocol's design; how they came to hold them, "
            "and what else reads them, is their owners' word."
            if facts.protocol == "secure"
            else "A simulation: all data lay on one machine.",
        ),
    )


def _parameters(facts: Facts) -> str:
    if facts.noiseless:
        return "None: no noise was added."
    if facts.withheld is not None:
        return f"Not claimed: {facts.withheld}."
    if facts.spent is None:
        return "Not derived: see the audit."
    total, spent = facts.total, facts.spent.outsider
    text = f"({figures.epsilon(spent)}, {figures.small(facts.delta)})-DP for an outsider, derived."
    if total is not None:
        text += (
            f" With the tuning runs that the ledger states ({figures.epsilon(total.epsilon)}, "
            f"{figures.small(total.delta)})-DP."
        )
    return text


def _unit(facts: Facts) -> str:
    if facts.unit == "example":
        return (
            "One example (event level): a client that holds many is protected much less as a "
            f"whole. Outsider: {facts.compared('outsider')}."
        )
    return (
        "One client with all that it holds (user level where a client is one person). Outsider: "
        f"{facts.compared('outsider')}."
    )


def _correctness(audit: AuditResult, facts: Facts) -> str:
    failed = sum(claim.holds is False for claim in audit.claims)
    checked = sum(claim.holds is True for claim in audit.claims)
    verdict = f"{checked} claims hold" if not failed else f"{failed} claims fail"
    noise = "" if facts.noiseless else " That the noise was added is the word of those who add it."
    return (
        f"Audited: {verdict}, every ε derived again by independent accountants.{noise} An "
        "empirical audit needs a separate run with canaries."
    )


def _utility(folder: RunContents) -> str:
    metrics = folder.summary.metrics
    shown = ", ".join(
        f"{name} {figures.metric(name, value)}"
        for name, value in list(metrics.items())[:3]
        if value is not None
    )
    return (
        f"Last evaluation: {shown}; measured without noise, so not covered by ε."
        if shown
        else "Not evaluated."
    )


def _trust(facts: Facts) -> str:
    if facts.protocol != "secure":
        return "One machine simulated everybody: nobody had to be trusted, and nobody was hidden."
    if facts.mechanism in ("local-gaussian", "example-gaussian"):
        return "Local: each client adds its own noise and need trust nobody else with it."
    if facts.mechanism in SERVER_SEES_SUMS:
        return (
            "Central: the coordinator sees each sum without noise, and no single update; it is "
            "trusted to add the noise and to draw cohorts at random."
        )
    return (
        "Distributed: clients add the noise inside a secure sum. The coordinator is trusted to "
        "draw cohorts at random, and the roster's authority to list real clients."
    )


def _answer_times(folder: RunContents) -> str:
    """When devices answer, as the configuration says."""
    how = str(folder.setting("rounds", "answer"))
    return {
        "at-once": "Devices answer as soon as they have trained, which reveals how long it took.",
        "bucketed": "Devices answer at one of a few times that depend on the job alone.",
        "at-deadline": "Devices answer at the end of their stage, whatever they trained on.",
    }.get(how, "When devices answer is not stated.")
