"""Simulated faults: which clients are away, which are slow, which vanish at which stage.

Every fault is a pure function of (seed, round, client), so a plan replays exactly. Time is
simulated: a round starts when the one before it has ended, and a client's time is its work divided
by its speed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

__all__ = ["DAY", "STAGES", "UPLOAD", "FaultPlan", "SimulatedClock"]

UPLOAD = "upload"

STAGES = (UPLOAD, "endorse", "answer")
"""Stages of secure aggregation. A client lost at a stage vanishes before it sends that stage's
message, so one lost after `UPLOAD` is in the sum. The last two concern only the committee: other
clients have nothing more to send, and losing them there costs nothing."""

DAY = 86_400.0
"""A day in seconds."""

_SCALE = 1 << 64
_NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class FaultPlan:
    """Losses, availability and speeds of virtual clients.

    >>> plan = FaultPlan(dropout=0.5, seed=7)
    >>> plan.lost(round=1, client=3) == plan.lost(round=1, client=3)
    True

    Attributes:
        dropout: Probability that a client of a cohort vanishes at some stage.
        seed: Seed of all draws.
        availability: Fraction of clients reachable at their best hour; 1 for always.
        diurnal: How far reachability falls at a client's worst hour, from 0 (not at all) to 1 (to
            nothing); each client has its own best hour.
        speed_spread: Sigma of the log-normal factor by which clients are slower or faster.
        seconds_per_example: Seconds that a client of median speed takes for an example in an epoch.
        deadline: Simulated seconds after which a round goes on without its stragglers; 0 waits.
    """

    dropout: float = 0.0
    seed: int = 0
    availability: float = 1.0
    diurnal: float = 0.0
    speed_spread: float = 0.0
    seconds_per_example: float = 0.0
    deadline: float = 0.0

    def lost(self, *, round: int, client: int, now: float = 0.0, examples: int = 0) -> str | None:
        """The stage at which `client` vanishes in `round`, or None.

        Args:
            round: The round's number.
            client: The client's id.
            now: Simulated seconds since the job began.
            examples: Examples that the client trains on in this round, over all epochs.
        """
        if not self.reachable(round=round, client=client, now=now):
            return UPLOAD
        first, second = self._draws("fault", round, client)
        if self.dropout and first < self.dropout:
            return STAGES[int(second * len(STAGES))]
        if self.deadline and self.seconds(client=client, examples=examples) > self.deadline:
            return UPLOAD  # the round goes on before a straggler's upload arrives
        return None

    def reachable(self, *, round: int, client: int, now: float) -> bool:
        """Whether the client checks in at the start of the round.

        Availability follows a cosine over the day, with its peak at the client's own hour.
        """
        if self.availability >= 1 and not self.diurnal:
            return True
        hour, _ = self._draws("hour", 0, client)
        wave = (1 + math.cos(2 * math.pi * (now / DAY - hour))) / 2
        chance = self.availability * (1 - self.diurnal * (1 - wave))
        return self._draws("check-in", round, client)[0] < chance

    def seconds(self, *, client: int, examples: int) -> float:
        """Simulated seconds that a client trains on this many examples."""
        if not self.seconds_per_example:
            return 0.0
        # exp(sigma z), z the normal quantile of a uniform draw: a log-normal factor of median 1.
        middle, _ = self._draws("speed", 0, client)
        factor = math.exp(self.speed_spread * _NORMAL.inv_cdf(min(max(middle, 1e-12), 1 - 1e-12)))
        return examples * self.seconds_per_example * factor

    def _draws(self, purpose: str, round: int, client: int) -> tuple[float, float]:
        """Two numbers in [0, 1): the first 53 bits of each word, which a float holds exactly."""
        text = f"fedsys {purpose} {self.seed} {round} {client}".encode()
        digest = hashlib.sha256(text).digest()
        first, second = (int.from_bytes(digest[at : at + 8], "big") for at in (0, 8))
        return (first >> 11) / (_SCALE >> 11), (second >> 11) / (_SCALE >> 11)


@dataclass
class SimulatedClock:
    """Simulated seconds since the job began.

    A synchronous round lasts as long as its slowest client, at most until the deadline.

    >>> clock = SimulatedClock()
    >>> clock.advance(FaultPlan(seconds_per_example=2.0), {1: 10, 2: 30})
    60.0
    """

    now: float = 0.0

    def advance(self, plan: FaultPlan, examples: Mapping[int, int]) -> float:
        """End a round in which each client trained on this many examples; returns the time."""
        slowest = max(
            (plan.seconds(client=client, examples=count) for client, count in examples.items()),
            default=0.0,
        )
        self.now += min(slowest, plan.deadline) if plan.deadline else slowest
        return self.now
