"""A network that delays, loses, doubles and splits, as the dice fall.

A connection keeps the order of its messages, as the streams of the product's hosts do. One that
lost a message carries nothing more, and either end finds out in its own time: until then what was
sent before still arrives, and the next connection may overtake it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from simulations.deterministic.clock import Clock
from simulations.deterministic.dice import Dice

__all__ = ["Ambush", "Connection", "Network", "Partition", "Weather"]


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
        delay: longest ordinary delay, in seconds.
        straggling: probability of a delay of up to `late` seconds instead.
        late: longest delay of a straggler.
        loss: probability that a message is lost, and its connection with it.
        doubling: probability that what an agent says is said twice.
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


@dataclass(eq=False)
class Connection:
    """From one agent's dialling to the end of it.

    Attributes:
        agent: at the one end; the coordinator is at the other.
        broken: nothing that is sent from now on arrives.
        left: its agent has given it up.
        torn: its agent's machine died before what it had said was on its way.
        noticed: the coordinator has found out that it is broken, maybe before its first message.
    """

    agent: int
    broken: bool = False
    left: bool = False
    torn: bool = False
    noticed: bool = False
    _last: dict[bool, float] = field(default_factory=dict)

    def in_order(self, arrival: float, *, inbound: bool) -> float:
        """When a message arrives that would arrive then if it overtook none."""
        self._last[inbound] = max(arrival, self._last.get(inbound, 0.0))
        return self._last[inbound]


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

    def carry(
        self, line: Connection, *, inbound: bool, doubles: bool, arrive: Callable[[], None]
    ) -> str:
        """Let a message arrive once, twice or never; says which, for the trace.

        Args:
            line: what it is sent on; broken, where it is lost.
            inbound: whether it goes to the coordinator.
            doubles: whether it may be said twice.
            arrive: called at each arrival.
        """
        weather, dice, now, agent = self._weather, self._dice, self._clock.now, line.agent
        if line.broken:
            return "into the void"
        if now >= self._calm_at:
            self._deliver(line, dice.uniform(0.0, 0.05), inbound, arrive)
            return "sent"
        cut = any(part.cuts(now, agent, inbound=inbound) for part in self._partitions)
        if cut or dice.chance(weather.loss):
            line.broken = True
            return "cut off" if cut else "lost"
        until, hold = self._held.get(agent, (0.0, 0.0)) if inbound else (0.0, 0.0)
        if now < until:
            self._deliver(line, hold + dice.uniform(0.0, 1.5), inbound, arrive)
            return "held up"
        copies = 2 if doubles and dice.chance(weather.doubling) else 1
        late = dice.chance(weather.straggling)
        delay = dice.uniform(0.0, weather.late if late else weather.delay)
        for _ in range(copies):
            self._deliver(line, delay, inbound, arrive)
        return "sent twice" if copies == 2 else "sent"

    def _deliver(
        self, line: Connection, delay: float, inbound: bool, arrive: Callable[[], None]
    ) -> None:
        now = self._clock.now
        self._clock.after(line.in_order(now + delay, inbound=inbound) - now, arrive)
