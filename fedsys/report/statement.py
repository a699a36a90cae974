"""The privacy statement: what the three figures mean, in plain words, and what they do not cover.

Every figure here comes from the audit, which derived it from the ledger; nothing is computed from
what the run says about itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsys.records import AuditResult
from fedsys.report import figures
from fedsys.report.checklist import checklist
from fedsys.report.contents import RunContents
from fedsys.report.facts import SERVER_SEES_SUMS, Facts, explain
from fedsys.report.views import View, views

__all__ = ["Banner", "Statement", "state"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Banner:
    """Something that must not be overlooked; ``tone`` is "danger", "warning" or "note"."""

    tone: str
    title: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """The whole statement, ready to be set."""

    banners: tuple[Banner, ...]
    lead: str
    views: tuple[View, ...]
    assumptions: tuple[str, ...]
    not_covered: tuple[str, ...]
    checklist: tuple[tuple[str, str], ...]


def state(folder: RunContents, audit: AuditResult, facts: Facts) -> Statement:
    """Writes the statement."""
    return Statement(
        banners=_banners(folder, facts),
        lead=_lead(facts),
        views=views(facts),
        assumptions=_assumptions(folder, facts),
        not_covered=_not_covered(folder, facts),
        checklist=checklist(folder, audit, facts),
    )


_ANSWERS = {
    "at-once": "Devices may answer as soon as they have trained (rounds.answer = “at-once”): how "
    "long each takes tells the coordinator about how much data it holds.",
    "bucketed": "Devices answer at one of a few times that follow from the job alone, so how long "
    "one trained tells the coordinator no more than which of them it needed.",
    "at-deadline": "Devices answer at the end of their stage, whatever they trained on.",
}


def _banners(folder: RunContents, facts: Facts) -> tuple[Banner, ...]:
    banners = []
    if facts.noiseless:
        banners.append(
            Banner(
                tone="danger",
                title="No differential privacy",
                text="The mechanism is “none”: no noise was added. The released model may reveal "
                "anything about any client. For research only.",
            )
        )
    if facts.withheld is not None:
        banners.append(
            Banner(
                tone="danger",
                title="No claim of privacy holds",
                text=f"{facts.withheld[:1].upper()}{facts.withheld[1:]}. The noise of this run "
                "does not cover that, so no ε is stated.",
            )
        )
    if facts.reproducible:
        banners.append(
            Banner(
                tone="danger",
                title="Reproducible, not private",
                text="Noise, sampling and keys were derived from a seed, so whoever knows the "
                "seed can take the noise away. For tests only; its privacy claims do not count.",
            )
        )
    if facts.protocol == "float":
        banners.append(
            Banner(
                tone="danger",
                title="Not a release",
                text="The updates were summed in floating point without secure aggregation, to "
                "measure speed or accuracy. Do not publish this model as a private one.",
            )
        )
    if facts.protocol == "ideal":
        banners.append(
            Banner(
                tone="warning",
                title="Ideal aggregation",
                text="The encoded updates were added without encryption, which stands in for "
                "secure aggregation in a simulation. Whoever ran it could see each of them; the "
                "figures of the participant and the server are those of the same job under "
                "protocol “secure”.",
            )
        )
    status = folder.summary.status
    if status == "budget-exhausted":
        banners.append(
            Banner(
                tone="note",
                title="Stopped at the privacy budget",
                text="The next round would have cost more than the budget allows, so no client "
                "was asked for it. The model is that of the last paid round.",
            )
        )
    elif status == "interrupted":
        banners.append(
            Banner(
                tone="warning",
                title="Interrupted",
                text="The run ended early. Every round that was begun counts as spent.",
            )
        )
    if facts.private:
        banners.append(
            Banner(
                tone="note",
                title="Private copy",
                text="This page shows cohort sizes and dropouts, which the outsider's ε assumes to "
                "be secret. Keep it with the server; “fedsys publish” writes one to share.",
            )
        )
    return tuple(banners)


def _unit(facts: Facts) -> str:
    return "one example of one client" if facts.unit == "example" else "one client as a whole"


def _lead(facts: Facts) -> str:
    explanation = explain(facts)
    if facts.noiseless:
        return (
            f"{explanation} There is no bound on what the model tells about a client, whoever "
            "looks at it."
        )
    return (
        f"What is protected is the contribution of {_unit(facts)}: two cases that differ in it "
        f"alone must look alike, and which two these are depends on who looks, as the table says. "
        f"{explanation} ε and δ bound how unlike they may look: whatever somebody may come to see "
        "or conclude, its probability in one case is at most e to the ε times that in the other, "
        f"plus δ = {figures.small(facts.delta)}. The smaller both are, the less can be learned."
    )


def _assumptions(folder: RunContents, facts: Facts) -> tuple[str, ...]:
    if facts.noiseless:
        return ()
    found = []
    if facts.mechanism == "distributed-gaussian":
        found.append(
            "The clients run this software and add their shares of the noise, and the server adds "
            "the missing ones. That they did rests on them, and on the coordinator's word for how "
            "many stayed."
        )
    elif facts.mechanism in SERVER_SEES_SUMS:
        found.append(
            "The server really adds the noise before it releases anything. That rests on its word."
        )
    else:
        found.append("The clients run this software and add the noise that it asks for.")
    if facts.sampling in ("poisson", "fixed"):
        found.append(
            "Cohorts are drawn as stated from a population of the stated size, and stay secret. "
            "Both rest on the coordinator's word."
        )
    if facts.protocol == "secure":
        found.append(_secure_aggregation(folder))
    elif facts.protocol in ("ideal", "float"):
        found.append("Single updates were not hidden from the machine that ran this simulation.")
    found.append(
        f"δ = {figures.small(facts.delta)} is one budget for several things: the loss that ε "
        "leaves over, rounds given up in public because too many or too few came, and the "
        "distance of the noise as it is drawn from the noise as it is accounted. It is not the "
        "chance that the bound fails."
    )
    if facts.unit == "example":
        found.append(
            "Each example is held by one client, once. Nobody checks whether two clients hold "
            "copies of it; each copy would cost as much again."
        )
    found.append(
        "Which data are whose, and how many clients there are, is taken as given; a simulation "
        "deals them out."
    )
    found.append(
        "Nobody knows the seed that noise, keys and cohorts were derived from. Here somebody does."
        if facts.reproducible
        else "Noise, keys and cohorts come from the operating system's random numbers, which "
        "rests on the word of those that drew them."
    )
    return tuple(found)


def _secure_aggregation(folder: RunContents) -> str:
    corrupt, dropout = (
        folder.setting("aggregation", "corrupt"),
        folder.setting("aggregation", "dropout"),
    )
    bounds = ""
    if isinstance(corrupt, float) and isinstance(dropout, float):
        losses = (
            f"each of its members being lost with a chance of at most {figures.percent(dropout)}, "
            "independently of the others"
            if dropout
            else "none of its members being lost"
        )
        bounds = (
            f" It is built for up to {figures.percent(corrupt)} of a cohort colluding with the "
            f"server, if the server sampled the cohort as stated, and {losses}."
        )
    return (
        "Secure aggregation hides single updates: of them, the server learns their sum and nothing "
        "else (it does see who answers, and when), provided that clients know each other's "
        "identity keys from a list that the server did not make up, and that X25519, Ed25519, "
        "ChaCha20-Poly1305, SHA-256, AES and ring learning with errors are sound." + bounds
    )


def _not_covered(folder: RunContents, facts: Facts) -> tuple[str, ...]:
    answer = str(folder.setting("rounds", "answer"))
    covered = [
        "Accuracy, loss and every other measurement on evaluation data: they are exact, without "
        "noise, and the rows that they were measured on may be somebody's.",
        _other_runs(facts),
        "Traffic and timing: whoever watches the network sees which devices take part, and the "
        "outsider's figure does not hold against them. " + _ANSWERS.get(answer, ""),
        "What holds for everybody: a model may well reveal that people like you tend to do "
        "something, whether you took part or not.",
        "Sabotage: clipping bounds what one client can do to the model in a round, it does not "
        "keep harmful updates out.",
    ]
    if facts.unit == "example":
        covered.insert(
            0, "A client as a whole: single examples are protected, a client with many is not."
        )
    return tuple(covered)


def _other_runs(facts: Facts) -> str:
    total = facts.total
    if total is None:
        return (
            "Other runs on the same clients, tuning among them; the ledger's header states none. "
            "Costs add up: “fedsys audit A B --compose” adds them."
        )
    return (
        f"Other runs on the same clients than this one and the {figures.count(total.runs)} tuning "
        f"runs that the ledger's header states. With those, the outsider's ε is "
        f"{figures.epsilon(total.epsilon)} at δ = {figures.small(total.delta)} in all; that there "
        "were no more rests on the coordinator's word."
    )
