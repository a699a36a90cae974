"""The privacy statement: what the three figures mean and do not cover, in plain language.

Every figure here comes from the audit, which derived it from the ledger; nothing is computed from
what the run says about itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsys.improvement import STOPPED
from fedsys.records import AuditResult
from fedsys.report import figures
from fedsys.report.checklist import checklist
from fedsys.report.contents import RunContents, Summary
from fedsys.report.facts import SERVER_SEES_SUMS, Facts, explain
from fedsys.report.pyramid import pyramid
from fedsys.report.views import View, views

__all__ = ["Banner", "Statement", "state"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Banner:
    """A notice that must not be overlooked; ``tone`` is "danger", "warning" or "note"."""

    tone: str
    title: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """The whole statement, ready for the template."""

    banners: tuple[Banner, ...]
    lead: str
    views: tuple[View, ...]
    assumptions: tuple[str, ...]
    not_covered: tuple[str, ...]
    checklist: tuple[tuple[str, str], ...]
    pyramid: tuple[tuple[str, str], ...]


def state(folder: RunContents, audit: AuditResult, facts: Facts) -> Statement:
    """Writes the statement."""
    return Statement(
        banners=_banners(folder, facts),
        lead=_lead(facts),
        views=views(facts),
        assumptions=_assumptions(folder, facts),
        not_covered=_not_covered(folder, facts),
        checklist=checklist(folder, audit, facts),
        pyramid=pyramid(folder, audit, facts),
    )


_ANSWERS = {
    "at-once": "Devices may answer as soon as they have trained (rounds.answer = “at-once”): how "
    "long each takes reveals to the coordinator roughly how much data it holds.",
    "bucketed": "Devices answer at one of a few times that depend on the job alone, so a device's "
    "training time reveals to the coordinator only which of them it needed.",
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
                title="No privacy claim holds",
                text=f"{facts.withheld[:1].upper()}{facts.withheld[1:]}. The noise of this run "
                "does not cover that, so no ε is stated.",
            )
        )
    if facts.reproducible:
        banners.append(
            Banner(
                tone="danger",
                title="Reproducible, not private",
                text="Noise, sampling and keys were derived from a seed, so anyone who knows the "
                "seed can remove the noise. For tests only; its privacy claims do not count.",
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
                text="The encoded updates were added without encryption, in place of secure "
                "aggregation in a simulation. The party that ran it could see each of them; the "
                "figures for the participant and the server are those of the same job under "
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
                "was invited to it. The model is that of the last paid round.",
            )
        )
    elif status == STOPPED:
        banners.append(Banner(tone="note", title="Stopped early", text=_early(folder.summary)))
    elif status == "interrupted":
        banners.append(
            Banner(
                tone="warning",
                title="Interrupted",
                text="The run ended early. Every round that was reserved counts as spent.",
            )
        )
    if facts.private:
        banners.append(
            Banner(
                tone="note",
                title="Private copy",
                text="This page shows cohort sizes and dropouts, which the outsider's ε assumes to "
                "be secret. Keep it with the server; “fedsys publish” writes a copy to share.",
            )
        )
    return tuple(banners)


def _early(summary: Summary) -> str:
    """Why the run ended, which round was best, and the epsilon that the choice does not weaken."""
    found = summary.stopped
    if found is None:
        return "The metric on the coordinator's own test data no longer improved."
    text = (
        f"{found.metric} on the coordinator's own test data, which no ε covers, no longer "
        f"improved; it was best in round {figures.count(found.best_round)} "
        f"({figures.plain(found.best)}). The model is that of the last round."
    )
    if found.planned_epsilon is not None:
        text += (
            f" How many rounds there were was chosen from what they released: whatever that was, "
            f"ε is at most {figures.epsilon(found.planned_epsilon)}, that of all "
            f"{figures.count(found.planned_rounds)} planned rounds."
        )
    return text


def _unit(facts: Facts) -> str:
    return "one example of one client" if facts.unit == "example" else "one client as a whole"


def _lead(facts: Facts) -> str:
    explanation = explain(facts)
    if facts.noiseless:
        return (
            f"{explanation} There is no bound on what the model reveals about a client, no matter "
            "who looks at it."
        )
    return (
        f"What is protected is the contribution of {_unit(facts)}: two cases that differ only in "
        f"it must look alike, and which two these are depends on the view, as the table says. "
        f"{explanation} ε and δ bound how different they may look: the probability of anything "
        "that somebody sees or concludes in one case is at most e to the ε times its probability "
        f"in the other, plus δ = {figures.small(facts.delta)}. The smaller both are, the less can "
        "be learned."
    )


def _assumptions(folder: RunContents, facts: Facts) -> tuple[str, ...]:
    if facts.noiseless:
        return ()
    found = []
    if facts.mechanism == "distributed-gaussian":
        found.append(
            "The clients run this software and add their shares of the noise, and the server adds "
            "the missing ones. Both are taken on trust, and so is the coordinator's word for how "
            "many clients stayed."
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
        found.append("Individual updates were visible to the machine that ran this simulation.")
    found.append(
        f"δ = {figures.small(facts.delta)} is one budget for several things: the loss that ε does "
        "not cover, rounds visibly aborted because too many or too few clients came, and the "
        "distance between the noise that is drawn and the noise that is accounted for. It is not "
        "the probability that the bound fails."
    )
    if facts.unit == "example":
        found.append(
            "Each example is held once, by one client. Nobody checks whether two clients hold "
            "copies of it; each copy would cost as much again."
        )
    found.append(
        "Whose data is whose, and how many clients there are, is taken as given; in a simulation, "
        "the simulator assigns the data."
    )
    found.append(
        "Nobody knows the seed that noise, keys and cohorts were derived from. Here somebody does."
        if facts.reproducible
        else "Noise, keys and cohorts come from the operating system's random numbers; for that, "
        "the parties that drew them are trusted."
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
            f"each of its members being lost with probability at most {figures.percent(dropout)}, "
            "independently of the others"
            if dropout
            else "none of its members being lost"
        )
        bounds = (
            f" It is designed for up to {figures.percent(corrupt)} of a cohort colluding with the "
            f"server, if the server sampled the cohort as stated, and {losses}."
        )
    return (
        "Secure aggregation hides individual updates: the server learns their sum and nothing else "
        "about them (it does see who answers, and when), provided that clients know each other's "
        "identity keys from a list that the server did not make up, and that X25519, Ed25519, "
        "ChaCha20-Poly1305, SHA-256, AES and ring learning with errors are secure." + bounds
    )


def _not_covered(folder: RunContents, facts: Facts) -> tuple[str, ...]:
    answer = str(folder.setting("rounds", "answer"))
    covered = [
        "Accuracy, loss and every other metric on evaluation data: they are exact, without noise, "
        "and the rows that they were measured on may be personal data.",
        _other_runs(facts),
        "Traffic and timing: anyone who watches the network sees which devices take part, and the "
        "outsider's figure does not hold against them. " + _ANSWERS.get(answer, ""),
        "What is true of everybody: a model may well reveal that people like you tend to do "
        "something, whether you took part or not.",
        "Sabotage: clipping bounds what one client can do to the model in a round; it does not "
        "keep harmful updates out.",
    ]
    if facts.unit == "example":
        covered.insert(
            0, "A client as a whole: each example is protected, a client with many is not."
        )
    return tuple(covered)


def _other_runs(facts: Facts) -> str:
    total = facts.total
    if total is None:
        return (
            "Other runs on the same clients, including tuning; the ledger's header states none. "
            "Costs compose: “fedsys audit A B --compose” states their total."
        )
    return (
        f"Runs on the same clients other than this one and the {figures.count(total.runs)} tuning "
        f"runs that the ledger's header states. With those, the outsider's total ε is "
        f"{figures.epsilon(total.epsilon)} at δ = {figures.small(total.delta)}; that there were no "
        "more rests on the coordinator's word."
    )
