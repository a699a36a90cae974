"""Who looks, what that costs, and what the number means to somebody who is no expert.

Tiers and their words are those of Ponomareva et al. 2023, "How to DP-fy ML", section 5.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsys.report import figures
from fedsys.report.facts import Facts

__all__ = ["View", "amplification", "meaning", "tier", "views"]


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


def views(facts: Facts) -> tuple[View, ...]:
    """The three views, in order of what they see."""
    spent = facts.spent
    withheld = (
        "The audit could not derive it from this folder."
        if facts.private or spent is None
        else "It follows from who took part when, which stays with the server."
    )
    added = (
        "one example of one client is added or removed"
        if facts.unit == "example"
        else "one client's update is replaced by another"
        if facts.replaces
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
            amplification=amplification(facts),
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


def amplification(facts: Facts) -> str:
    """Whether sampling makes the outsider's ε smaller."""
    if facts.noiseless:
        return "none"
    return {
        "poisson": "by Poisson sampling: each client is drawn independently, in secret",
        "fixed": "by sampling a cohort of fixed size, in secret",
        "min-separation": "none claimed: clients keep a minimum distance between rounds",
    }.get(facts.sampling, "as the ledger's header says")
