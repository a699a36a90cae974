"""A network that delays, loses, doubles, overtakes and splits, as the dice fall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulations.deterministic.clock import Clock
from simulations.deterministic.dice import Dice

__all__ = ["Ambush", "Network", "Partition", "Weather"]


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
class Ambush:
    """Something that happens at the worst moment: when a stage of a round opens.

    Attributes:
        round: of the job.
        kind: name of the coordinator's message that opens the stage.
        agents: whom it befalls.
        hold: seconds by which what they send is late, or None: they are cut off.
        seconds: how long it lasts.
    """

    round: int
    kind: str
    agents: frozenset[int]
    hold: float | None
    seconds: float


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
        ambushes: who is cut off, or held up, at a certain stage.
    """

    delay: float
    straggling: float
    late: float
    loss: float
    doubling: float
    partitions: tuple[Partition, ...] = ()
    ambushes: tuple[Ambush, ...] = ()


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
        self._partitions = list(weather.partitions)
        self._held: dict[int, tuple[float, float]] = {}
        self._ambushes = {(it.round, it.kind): it for it in weather.ambushes}

    def opens(self, round: int, kind: str) -> None:
        """A stage opens: the moment of its ambush, if there is one."""
        ambush, now = self._ambushes.pop((round, kind), None), self._clock.now
        if ambush is None:
            return
        end = now + ambush.seconds
        if ambush.hold is None:
            self._partitions.append(Partition(start=now, end=end, agents=ambush.agents))
        else:
            self._held.update(dict.fromkeys(ambush.agents, (end, ambush.hold)))

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
        cut = any(part.cuts(now, agent, inbound=inbound) for part in self._partitions)
        if cut or dice.chance(weather.loss):
            return "cut off" if cut else "lost"
        until, hold = self._held.get(agent, (0.0, 0.0)) if inbound else (0.0, 0.0)
        if now < until:
            self._clock.after(hold + dice.uniform(0.0, 1.5), arrive)
            return "held up"
        copies = 2 if dice.chance(weather.doubling) else 1
        for _ in range(copies):
            late = dice.chance(weather.straggling)
            self._clock.after(dice.uniform(0.0, weather.late if late else weather.delay), arrive)
        return "sent twice" if copies == 2 else "sent"
