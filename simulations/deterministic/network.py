"""A network that delays, loses, doubles, overtakes and splits, as the dice fall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulations.deterministic.clock import Clock
from simulations.deterministic.dice import Dice

__all__ = ["Network", "Partition", "Weather"]


@dataclass(frozen=True, kw_only=True)
class Partition:
    """From `start` to `end` nothing passes between the coordinator and these agents.

    Attributes:
        agents: who is cut off.
        inbound: only what agents send is lost (False: only what they are sent; None: both).
    """

    start: float
    end: float
    agents: frozenset[int]
    inbound: bool | None = None

    def cuts(self, now: float, agent: int, *, inbound: bool) -> bool:
        """Whether a message between the coordinator and this agent is lost now."""
        if not self.start <= now < self.end or agent not in self.agents:
            return False
        return self.inbound is None or self.inbound is inbound


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How bad the network is.

    Attributes:
        delay: longest ordinary delay, in seconds; two messages may overtake each other.
        straggling: probability of a delay of up to `late` seconds instead.
        late: longest delay of a straggler.
        loss: probability that a message is lost.
        doubling: probability that it arrives twice.
        partitions: who is cut off when.
    """

    delay: float
    straggling: float
    late: float
    loss: float
    doubling: float
    partitions: tuple[Partition, ...] = ()


class Network:
    """Carries messages between the coordinator and its agents.

    Args:
        clock: on which they arrive.
        weather: until `calm_at` seconds; from then on every message arrives soon, once.
        calm_at: when the weather ends.
        dice: decides.
    """

    def __init__(self, clock: Clock, weather: Weather, calm_at: float, dice: Dice) -> None:
        self._clock = clock
        self._weather = weather
        self._calm_at = calm_at
        self._dice = dice

    def carry(self, agent: int, *, inbound: bool, arrive: Callable[[], None]) -> str:
        """Let a message arrive once, twice or never; says which, for the trace.

        Args:
            agent: at the one end; the coordinator is at the other.
            inbound: whether it goes to the coordinator.
            arrive: called at each arrival.
        """
        weather, dice, now = self._weather, self._dice, self._clock.now
        if now >= self._calm_at:
            self._clock.after(dice.uniform(0.0, 0.05), arrive)
            return "sent"
        cut = any(part.cuts(now, agent, inbound=inbound) for part in weather.partitions)
        if cut or dice.chance(weather.loss):
            return "cut off" if cut else "lost"
        copies = 2 if dice.chance(weather.doubling) else 1
        for _ in range(copies):
            late = dice.chance(weather.straggling)
            self._clock.after(dice.uniform(0.0, weather.late if late else weather.delay), arrive)
        return "sent twice" if copies == 2 else "sent"
