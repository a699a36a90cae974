"""The three views, what a run costs in each, and what the number means to a non-expert.

Tiers and their names are those of Ponomareva et al. 2023, "How to DP-fy ML", section 5.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsys.report import figures
from fedsys.report.facts import Facts

__all__ = ["View", "amplification", "meaning", "tier", "views"]


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One view, and what the run costs in it."""

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


def meaning(epsilon: float | None, delta: float | None) -> str:
    """How well ε and δ let somebody distinguish two neighbouring cases, as a sentence.

    If both are equally likely beforehand, no rule is right with a probability above
    (e^ε + δ) / (e^ε + 1): the sum of its two error rates is at least 2 (1 - δ) / (1 + e^ε)
    (Kairouz, Oh and Viswanath 2015, Theorem 2.1).
    """
    if epsilon is None or math.isnan(epsilon) or delta is None:
        return ""
    if math.isinf(epsilon):
        return "No limit on what can be learned."
    wrong = 100.0 * (1.0 - delta) / (1.0 + math.exp(min(epsilon, 700.0)))  # percent
    if wrong < 0.01:
        return (
            "No useful limit: distinguishing the two cases may succeed in more than 99.99 % of "
            "attempts."
        )
    digits = 0 if wrong >= 10 else 1 if wrong >= 1 else 2
    right = math.ceil((100.0 - wrong) * 10**digits) / 10**digits
    return (
        f"Distinguishing the two cases, both equally likely, succeeds in at most "
        f"{right:.{digits}f} % of attempts; tossing a coin succeeds in 50 %."
    )


def _view(
    *,
    key: str,
    title: str,
    epsilon: float | None,
    delta: float | None,
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
        meaning=meaning(epsilon, delta) or withheld,
        who=who,
        neighbours=neighbours,
        amplification=amplification,
        noise=noise,
    )


def views(facts: Facts) -> tuple[View, ...]:
    """The three views, in order of how much they see."""
    spent = facts.spent
    withheld = (
        f"Withheld: {facts.withheld}."
        if facts.withheld is not None
        else "The audit could not derive it from this folder."
        if facts.private or spent is None
        else "It depends on who took part when, which stays with the server."
    )
    return (
        _view(
            key="outsider",
            title="An outsider",
            epsilon=spent.outsider if spent else None,
            delta=facts.delta,
            withheld=withheld,
            who="Sees the released models and nothing else: takes part in nothing, watches no "
            "traffic, reads no file of the server.",
            neighbours=facts.compared("outsider"),
            amplification=amplification(facts),
            noise="none" if facts.noiseless else "all of it, the same however many took part",
        ),
        _view(
            key="participant",
            title="A participant",
            epsilon=spent.participant if spent else None,
            delta=facts.delta,
            withheld=withheld,
            who=_participant(facts),
            neighbours=facts.compared("participant"),
            amplification="only by the client's own secret coin, in a round that one of them "
            "shares with it"
            if facts.participation < 1
            else "none in a round that one of them shares with the client in question",
            noise="none"
            if facts.noiseless
            else "all except what the curious clients added themselves"
            if facts.mechanism == "distributed-gaussian"
            else "all of it",
        ),
        _view(
            key="server",
            title="The server",
            epsilon=spent.server if spent else None,
            delta=facts.delta,
            withheld=withheld,
            who="Anyone who runs the coordinator by the rules and looks at everything it receives"
            + (f", with {_clients(facts.colluders).lower()}" if facts.colluders else "")
            + "; and anyone who holds private.jsonl. It knows who takes part, and when.",
            neighbours=facts.compared("server"),
            amplification=_server_amplification(facts),
            noise="none" if facts.noiseless else _server_noise(facts),
        ),
    )


def _participant(facts: Facts) -> str:
    curious = max(1, facts.colluders)
    who = (
        "Another client that also looks at what its own device is sent"
        if curious == 1
        else f"{_clients(curious)} that also look at what their own devices are sent"
    )
    sees = ": the model in each of its rounds, and who else was invited to them"
    if facts.protocol == "secure":
        sees += " (it checks the draw of each round's committee)"
    return f"{who}{sees}. It knows that a client takes part."


def _server_amplification(facts: Facts) -> str:
    if facts.unit == "example":
        return "by each client's own secret batches"
    if facts.participation >= 1:
        return "none: it knows who was invited"
    return f"by each client's own secret coin (p = {figures.plain(facts.participation)})"


def _server_noise(facts: Facts) -> str:
    return {
        "distributed-gaussian": "only the shares of honest clients that stayed to the end",
        "local-gaussian": "all of it: it is added to the update before that leaves the client",
        "example-gaussian": "all of it: it is in each training step",
    }.get(facts.mechanism, "none: the server adds it, and can leave it out of what it looks at")


def _clients(number: int) -> str:
    return f"{number:,} curious client" + ("" if number == 1 else "s")


def amplification(facts: Facts) -> str:
    """Whether sampling makes the outsider's ε smaller."""
    if facts.noiseless:
        return "none"
    if facts.unit == "example":
        return "by each client's own secret batches; the choice of clients is not counted"
    return {
        "poisson": "by Poisson sampling: each client is drawn independently, in secret",
        "fixed": "by sampling a cohort of fixed size, in secret",
        "min-separation": "none claimed: clients keep a minimum distance between rounds",
        "arrivals": "none claimed: a buffer takes the uploads that come first",
        "chosen": "none claimed: code of the job's own chooses who takes part",
    }.get("chosen" if ":" in facts.sampling else facts.sampling, "as the ledger's header says")
