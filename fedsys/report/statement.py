"""The privacy statement: what the three figures mean, in plain words, and what they do not cover.

Every figure here comes from the audit, which derived it from the ledger; nothing is computed from
what the run says about itself. The checklist is that of Ponomareva et al. 2023, "How to DP-fy ML",
section 5.3, the tiers those of section 5.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsys.records import AuditResult, Epsilons
from fedsys.report import figures
from fedsys.report.folder import RunFolder, printable

__all__ = ["Banner", "Facts", "Statement", "View", "disclosable", "gather", "state"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the statement depends on, taken from the audit, then the summary, then the config."""

    mechanism: str
    unit: str
    protocol: str
    sampling: str
    participation: float
    guarantee: str
    colluders: int
    delta: float | None
    budget: float | None
    spent: Epsilons | None
    reproducible: bool
    private: bool

    @property
    def noiseless(self) -> bool:
        """Whether the run protects nobody."""
        return self.mechanism == "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Banner:
    """Something that must not be overlooked; ``tone`` is "danger", "warning" or "note"."""

    tone: str
    title: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One observer and what the run costs against it."""

    key: str
    title: str
    epsilon: str
    tier: str
    tone: str
    meaning: str
    who: str
    neighbours: str
    amplification: str
    noise: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """The whole statement, ready to be set."""

    banners: tuple[Banner, ...]
    lead: str
    views: tuple[View, ...]
    assumptions: tuple[str, ...]
    not_covered: tuple[str, ...]
    checklist: tuple[tuple[str, str], ...]


_MECHANISMS = {
    "distributed-skellam": (
        "distributed Skellam",
        "Every client adds its share of integer noise before its update is masked, so that only "
        "a noisy total ever exists anywhere.",
    ),
    "central-gaussian": (
        "central Gaussian",
        "The server adds the noise to the sum of the updates. Whoever runs the server can see "
        "that sum without noise.",
    ),
    "banded-mf": (
        "banded matrix factorization (DP-FTRL)",
        "The server adds noise that is correlated over the rounds. Whoever runs the server can "
        "see every sum without noise.",
    ),
    "local-gaussian": (
        "local Gaussian",
        "Every client adds all of the noise itself; nobody else needs to be trusted.",
    ),
    "example-gaussian": (
        "per-example Gaussian (DP-SGD in each client)",
        "Every client adds noise to each of its own training steps, which protects single "
        "examples inside it.",
    ),
    "none": ("none", "Nobody adds noise."),
}

_SERVER_SEES_SUMS = {"central-gaussian", "banded-mf", "none"}


def mechanism_title(name: str) -> str:
    """The mechanism's name for people."""
    return _MECHANISMS.get(name, (printable(name, 60), ""))[0]


def gather(folder: RunFolder, audit: AuditResult, *, private: bool) -> Facts:
    """Collects what the statement depends on; the gloomier word wins where sources differ."""
    summary = folder.summary
    mechanisms = [summary.privacy.mechanism, folder.setting("privacy", "mechanism")]
    protocols = [summary.protocol, folder.setting("aggregation", "protocol")]
    named = [printable(name, 60) for name in mechanisms if name]
    protocol_names = [printable(name, 60) for name in protocols if name]
    participation = folder.setting("cohort", "participation")
    colluders = folder.setting("privacy", "max_colluders")
    return Facts(
        mechanism="none" if "none" in named else named[0] if named else "unknown",
        unit=summary.privacy.unit,
        protocol=next(
            (name for name in ("float", "ideal") if name in protocol_names),
            protocol_names[0] if protocol_names else "unknown",
        ),
        sampling=printable(folder.setting("cohort", "sampling") or "unknown", 60),
        participation=participation if isinstance(participation, float) else 1.0,
        guarantee=summary.privacy.guarantee,
        colluders=colluders if isinstance(colluders, int) else 0,
        delta=audit.delta if audit.delta is not None else summary.privacy.delta,
        budget=summary.privacy.budget,
        spent=disclosable(audit.curve[-1].spent, private) if audit.curve else None,
        reproducible=summary.reproducible,
        private=private,
    )


def disclosable(spent: Epsilons, private: bool) -> Epsilons:
    """Leaves out of a public report the finite figures that follow the secret cohorts."""
    if private:
        return spent
    return Epsilons(
        outsider=spent.outsider,
        participant=spent.participant if spent.participant == math.inf else None,
        server=spent.server if spent.server == math.inf else None,
    )


def state(folder: RunFolder, audit: AuditResult, facts: Facts) -> Statement:
    """Writes the statement."""
    return Statement(
        banners=_banners(folder, facts),
        lead=_lead(facts),
        views=_views(facts),
        assumptions=_assumptions(folder, facts),
        not_covered=_not_covered(facts),
        checklist=_checklist(folder, audit, facts),
    )


def _banners(folder: RunFolder, facts: Facts) -> tuple[Banner, ...]:
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
                text="The encoded updates were added without masks, which stands in for secure "
                "aggregation in a simulation. Whoever ran it could see each of them.",
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
    return "one example of one client" if facts.unit == "example" else "one client, all of it"


def _lead(facts: Facts) -> str:
    explanation = _MECHANISMS.get(facts.mechanism, ("", ""))[1]
    if facts.noiseless:
        return (
            f"{explanation} There is no bound on what the model tells about a client, whoever "
            "looks at it."
        )
    return (
        f"What is protected is {_unit(facts)}: whether it took part, and everything it held. "
        f"{explanation} ε bounds how much anybody can learn about it by looking: the smaller, the "
        f"less. How much that is depends on who looks, so there are three figures, all at "
        f"δ = {figures.small(facts.delta)}, the chance that the bound does not hold."
    )


def tier(epsilon: float | None) -> tuple[str, str]:
    """The strength of ε in one word, and a tone for it (Ponomareva et al. 2023, section 5.2)."""
    if epsilon is None or math.isnan(epsilon):
        return "not stated", "unknown"
    if epsilon <= 1:
        return "strong", "good"
    if epsilon <= 10:
        return "reasonable", "good"
    return ("none", "danger") if math.isinf(epsilon) else ("weak", "warning")


def meaning(epsilon: float | None) -> str:
    """What ε lets somebody conclude who could not tell at first whether a client took part."""
    if epsilon is None or math.isnan(epsilon):
        return ""
    if math.isinf(epsilon):
        return "No limit on what can be learned."
    doubt = 100.0 / (1.0 + math.exp(min(epsilon, 700.0)))  # percent
    if doubt < 0.01:
        return "A guess of 50 % can become more than 99.99 % certain."
    digits = 0 if doubt >= 10 else 1 if doubt >= 1 else 2
    certainty = math.ceil((100.0 - doubt) * 10**digits) / 10**digits
    return f"A guess of 50 % can become {certainty:.{digits}f} % certain, no more."


def _view(
    *,
    key: str,
    title: str,
    epsilon: float | None,
    withheld: str,
    who: str,
    neighbours: str,
    amplification: str,
    noise: str,
) -> View:
    word, tone = tier(epsilon)
    return View(
        key=key,
        title=title,
        epsilon=figures.epsilon(epsilon),
        tier=word,
        tone=tone,
        meaning=meaning(epsilon) or withheld,
        who=who,
        neighbours=neighbours,
        amplification=amplification,
        noise=noise,
    )


def _views(facts: Facts) -> tuple[View, ...]:
    spent = facts.spent
    withheld = (
        "The audit could not derive it from this folder."
        if facts.private or spent is None
        else "It follows from who took part when, which stays with the server."
    )
    added = (
        "one example of one client is added or removed"
        if facts.unit == "example"
        else "one client is added or removed"
    )
    server_noise = {
        "distributed-skellam": "only the shares of honest clients that stayed to the end",
        "local-gaussian": "all of it: it is on the update before it leaves the client",
        "example-gaussian": "all of it: it is in each training step",
    }.get(facts.mechanism, "none: the server adds it, and can leave it out of what it looks at")
    curious = max(1, facts.colluders)
    return (
        _view(
            key="outsider",
            title="An outsider",
            epsilon=spent.outsider if spent else None,
            withheld=withheld,
            who="Sees the released models and nothing else: takes part in nothing, watches no "
            "traffic, reads no file of the server.",
            neighbours=added,
            amplification=_amplification(facts),
            noise="nobody's" if facts.noiseless else "all of it, the same however many took part",
        ),
        _view(
            key="participant",
            title="A participant",
            epsilon=spent.participant if spent else None,
            withheld=withheld,
            who=(
                "Another client that also looks at what its own device is sent"
                if curious == 1
                else f"{_clients(curious)} that also look at what their own devices are sent"
            )
            + ": the model in each of its rounds.",
            neighbours=added,
            amplification="none in a round that one of them shares with the client in question",
            noise="nobody's"
            if facts.noiseless
            else "all but what the curious clients added themselves"
            if facts.mechanism == "distributed-skellam"
            else "all of it",
        ),
        _view(
            key="server",
            title="The server",
            epsilon=spent.server if spent else None,
            withheld=withheld,
            who="Whoever runs the coordinator by the rules and looks at all it receives"
            + (f", with {_clients(facts.colluders).lower()}" if facts.colluders else "")
            + "; and whoever holds private.jsonl.",
            neighbours=added
            if facts.unit == "example"
            else "one client's update is replaced by zero; it takes part either way (half the "
            "change of replacing it by another)",
            amplification="none: it knows who was asked"
            if facts.participation >= 1
            else f"each client's own secret coin (p = {figures.plain(facts.participation)})",
            noise="nobody's" if facts.noiseless else server_noise,
        ),
    )


def _clients(number: int) -> str:
    return f"{number:,} curious client" + ("" if number == 1 else "s")


def _amplification(facts: Facts) -> str:
    if facts.noiseless:
        return "none"
    return {
        "poisson": "by Poisson sampling: each client is drawn independently, in secret",
        "fixed": "by sampling a cohort of fixed size, in secret",
        "min-separation": "none claimed: clients keep a minimum distance between rounds",
    }.get(facts.sampling, "as the ledger's header says")


def _assumptions(folder: RunFolder, facts: Facts) -> tuple[str, ...]:
    if facts.noiseless:
        return ()
    found = []
    if facts.mechanism == "distributed-skellam":
        found.append(
            "The clients run this software and add their shares of the noise. That they did rests "
            "on them, and on the coordinator's word for how many stayed."
        )
    elif facts.mechanism in _SERVER_SEES_SUMS:
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
        f"δ = {figures.small(facts.delta)} pays for everything that can go wrong: the bound "
        "itself, rounds given up because too many or too few came, and the tail that the noise "
        "sampler leaves out."
    )
    found.append("Noise, keys and cohorts come from the operating system's random numbers.")
    return tuple(found)


def _secure_aggregation(folder: RunFolder) -> str:
    corrupt, dropout = (
        folder.setting("aggregation", "corrupt"),
        folder.setting("aggregation", "dropout"),
    )
    bounds = ""
    if isinstance(corrupt, float) and isinstance(dropout, float):
        bounds = (
            f" It is built for up to {figures.percent(corrupt)} of a cohort colluding with the "
            f"server and {figures.percent(dropout)} dropping out."
        )
    return (
        "Secure aggregation hides single updates: the server learns their sum and nothing else, "
        "provided that clients know each other's identity keys from a list that the server did "
        "not make up, and that X25519, Ed25519, SHA-256 and AES are sound." + bounds
    )


def _not_covered(facts: Facts) -> tuple[str, ...]:
    covered = [
        "Accuracy, loss and every other measurement on evaluation data: they are exact, without "
        "noise.",
        "Earlier runs on the same clients, tuning among them. Their costs add up: “fedsys audit "
        "A B --compose” adds them.",
        "Traffic and timing: whoever watches the network sees which devices take part, and the "
        "outsider's figure does not hold against them.",
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


def _checklist(folder: RunFolder, audit: AuditResult, facts: Facts) -> tuple[tuple[str, str], ...]:
    accountants = dict.fromkeys(
        printable(claim.by, 80) for claim in audit.claims if "epsilon" in claim.name.lower()
    )
    setting = {
        "distributed-skellam": "Distributed: noise by the clients, inside a secure sum.",
        "local-gaussian": "Local: all of the noise by each client.",
        "example-gaussian": "Local to each silo: DP-SGD inside every client.",
        "none": "None.",
    }.get(facts.mechanism, "Central: a trusted server adds the noise.")
    private = facts.private
    adjacency = (
        "Outsider and participant: add or remove "
        + ("one example" if facts.unit == "example" else "one client")
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
            "The training of this run: every released model. Tuning runs and evaluation are not.",
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
            f"{_amplification(facts)}.",
        ),
        ("Formal statement", formal),
        (
            "Transparency",
            "A signed, hash-chained ledger; “fedsys audit” derives every figure again. "
            + ("Libraries: " + ", ".join(libraries) + "." if libraries else "Open source."),
        ),
    )
