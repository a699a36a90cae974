"""What one seed means: the job, the weather, who dies how often, and until when."""

from __future__ import annotations

from dataclasses import dataclass

from simulations.deterministic.dice import Dice
from simulations.deterministic.network import Ambush, Partition, Weather

__all__ = ["DIMENSION", "Schedule"]

KINDS = ("OPENING", "DELIVERY", "PROPOSAL", *("CERTIFICATE",) * 3)
REPLIES = ("UPLOAD", "UPLOAD", "CHECKED", "ENDORSEMENT", "ANSWER")
ASKED = (*("OPENING",) * 4, "DELIVERY", "PROPOSAL", "CERTIFICATE")
FLUSHES = (*range(8), 6, 7, 6, 7)
"""Of an agent that answers an opening: its count, twice its marks, and its count again, a file and
its folder each time. The last two stand between it and what it says."""
DIMENSION = 8


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A pure function of its seed.

    Attributes:
        seed: names it; the same seed replays the same schedule, to the byte.
        population: agents.
        expected: of them in a cohort, on average.
        private: whether there is noise and a charge for it; such a job has cohorts of one size, for
            no delta pays for what small ones of any size cost.
        rounds: of the job.
        corrupt: fraction of a cohort that may collude.
        committee: members of a drawn committee; None where everybody is on it.
        budget: whether the job has an epsilon that does not suffice for all its rounds.
        weather: of the network.
        calm_at: second from which nothing goes wrong any more, so that the job can end.
        agent_crash: probability that an agent dies at a flush, and before or after an event.
        sick: agents that die at every fourth flush or so.
        server_crash: likewise the coordinator, where it is more rarely: it does far more.
        power_loss: probability that a crash takes the machine, not the process alone.
        disk_failure: probability that an agent's flush fails; the coordinator's fail more rarely,
            since its job may end with one that does.
        outage: longest time in seconds for which a dead party stays down.
        frugal: agents whose owner lets them take part in one round alone.
        unwilling: agents whose owner allows no such job.
        cheats: agents whose answers of secure aggregation are damaged now and then.
        absent: fraction of the population without which a round may begin.
        cancelled_at: second at which the operator cancels the job, if ever.
        stops: rounds and the coordinator's messages in them with which the operator stops its
            process, and starts another.
        relapses: rounds, an agent's messages in them, and agents that die as they say them: nobody
            hears them, and another process starts soon.
        setbacks: rounds, the coordinator's messages in them, agents, and which of their flushes
            fails as they answer: the connection breaks too, so that nobody hears of it and the same
            process is asked again.
    """

    seed: int
    population: int
    expected: int
    private: bool
    rounds: int
    corrupt: float
    committee: int | None
    budget: bool
    weather: Weather
    calm_at: float
    agent_crash: float
    sick: frozenset[int]
    server_crash: float
    power_loss: float
    disk_failure: float
    outage: float
    frugal: frozenset[int]
    unwilling: frozenset[int]
    cheats: frozenset[int]
    absent: float
    cancelled_at: float | None
    stops: tuple[tuple[int, str], ...]
    relapses: tuple[tuple[int, str, int], ...]
    setbacks: tuple[tuple[int, str, int, int], ...]

    @classmethod
    def of(cls, seed: int) -> Schedule:
        """The schedule that this seed stands for."""
        dice = Dice(seed, "schedule")
        population, expected = dice.one_of(((4, 4), (5, 4), (5, 5), (6, 5), (7, 6), (8, 6)))
        private = dice.chance(0.7)
        committee = dice.one_of((None, None, 3, 4, 5))
        if committee is not None and committee >= expected:
            committee = None
        calm_at = dice.uniform(5.0, 60.0)
        swarm = [dice.chance(0.6) for _ in range(7)]  # a fault that is off lets others go further
        parts = tuple(_partition(dice, population, calm_at) for _ in range(dice.below(4)))
        return cls(
            seed=seed,
            population=population,
            expected=expected,
            private=private,
            rounds=2 + dice.below(2),
            corrupt=0.0 if committee is not None else dice.one_of((0.0, 0.0, 0.1)),
            committee=committee,
            budget=private and dice.chance(0.3),
            weather=Weather(
                delay=dice.uniform(0.05, 1.0),
                straggling=dice.uniform(0.0, 0.15) if swarm[0] else 0.0,
                late=dice.uniform(1.0, 30.0),
                loss=dice.uniform(0.0, 0.08) if swarm[1] else 0.0,
                doubling=dice.uniform(0.0, 0.3) if swarm[2] else 0.0,
                partitions=parts if swarm[3] else (),
                ambushes=tuple(_ambush(dice, population) for _ in range(dice.below(4))),
            ),
            calm_at=calm_at,
            agent_crash=dice.uniform(0.0, 0.06) if swarm[4] else 0.0,
            sick=frozenset({dice.below(population)} if dice.chance(0.5) else ()),
            server_crash=dice.uniform(0.0, 0.08) if swarm[5] else 0.0,
            power_loss=dice.one_of((0.0, 0.5, 1.0)),
            disk_failure=dice.uniform(0.0, 0.05) if swarm[6] else 0.0,
            outage=dice.uniform(0.1, 8.0),
            frugal=frozenset({dice.below(population)} if dice.chance(0.4) else ()),
            unwilling=frozenset({dice.below(population)} if dice.chance(0.15) else ()),
            cheats=frozenset({dice.below(population)} if dice.chance(0.25) else ()),
            absent=dice.one_of((0.0, 0.4, 0.4)),
            cancelled_at=dice.uniform(1.0, calm_at) if dice.chance(0.15) else None,
            stops=((1 + dice.below(3), dice.one_of(KINDS)),) if dice.chance(0.3) else (),
            relapses=tuple(
                (1 + dice.below(2), dice.one_of(REPLIES), dice.below(population))
                for _ in range(dice.below(3))
            ),
            # One seed in seven, so that the others replay what they always did.
            setbacks=_setbacks(Dice(seed, "setbacks"), population) if seed % 7 == 1 else (),
        )


def _setbacks(dice: Dice, population: int) -> tuple[tuple[int, str, int, int], ...]:
    return tuple(
        (1 + dice.below(2), dice.one_of(ASKED), dice.below(population), dice.one_of(FLUSHES))
        for _ in range(6 + dice.below(5))
    )


def _partition(dice: Dice, population: int, calm_at: float) -> Partition:
    start = dice.uniform(0.0, calm_at)
    return Partition(
        start=start,
        end=start + dice.uniform(0.5, 20.0),
        agents=frozenset(agent for agent in range(population) if dice.chance(0.4)),
        inbound=dice.one_of((None, None, True, False)),
    )


def _ambush(dice: Dice, population: int) -> Ambush:
    share = dice.uniform(0.2, 1.0)
    return Ambush(
        round=1 + dice.below(3),
        kind=dice.one_of(KINDS),
        agents=frozenset(agent for agent in range(population) if dice.chance(share)),
        hold=dice.one_of((None, 5.5)),
        seconds=dice.uniform(1.0, 15.0),
    )
