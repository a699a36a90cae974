"""Memory, threads and descriptors of the parties over time, which must stay flat."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from simulations.testbed.federation import Federation

__all__ = ["Sample", "leaks", "longest_lives", "look"]

_GROWTH = 24e6
_YOUNG = 60.0
_MORE_THREADS = 10  # an agent that is not connected has one, otherwise nine
_MORE_DESCRIPTORS = 10


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One party's resources at one time.

    Attributes:
        name: Name of the party.
        pid: Id of its process.
        age: Age of the process in seconds.
        rss: Resident memory in bytes.
        threads: Number of threads.
        descriptors: Number of open descriptors.
    """

    name: str
    pid: int
    age: float
    rss: int
    threads: int
    descriptors: int


def look(federation: Federation, now: float) -> list[Sample]:
    """Sample every running party; `now` is in seconds since 1970."""
    found = []
    for name, party in sorted(federation.parties.items()):
        try:
            process = psutil.Process(party.pid)
            with process.oneshot():
                found.append(
                    Sample(
                        name=name,
                        pid=process.pid,
                        age=now - process.create_time(),
                        rss=process.memory_info().rss,
                        threads=process.num_threads(),
                        descriptors=process.num_fds(),
                    )
                )
        except psutil.Error:
            continue
    return found


def leaks(samples: list[Sample]) -> list[str]:
    """Processes that grew in the last two thirds of their lives; the first third is warm-up.

    A process younger than a minute is still warming up.

    Args:
        samples: Samples of all parties, in order of time.
    """
    found = []
    for life in _lives(samples):
        if life[-1].age < _YOUNG:
            continue
        warm = [sample for sample in life if sample.age >= life[-1].age / 3]
        first, last = warm[0], warm[-1]
        grown = (
            (last.rss - first.rss > _GROWTH, f"{(last.rss - first.rss) / 1e6:.1f} MB"),
            (last.threads > first.threads + _MORE_THREADS, f"{last.threads} threads"),
            (
                last.descriptors > first.descriptors + _MORE_DESCRIPTORS,
                f"{last.descriptors} descriptors",
            ),
        )
        found += [
            f"{last.name} grew to {what} between {first.age:.0f} and {last.age:.0f} s of age"
            for grew, what in grown
            if grew
        ]
    return found


def longest_lives(samples: list[Sample]) -> list[list[Sample]]:
    """The samples of each party's longest-lived process, ordered by the party's name."""
    found: dict[str, list[Sample]] = {}
    for life in _lives(samples):
        known = found.get(life[0].name)
        if known is None or life[-1].age > known[-1].age:
            found[life[0].name] = life
    return [found[name] for name in sorted(found)]


def _lives(samples: list[Sample]) -> list[list[Sample]]:
    lives: dict[int, list[Sample]] = {}
    for sample in samples:
        lives.setdefault(sample.pid, []).append(sample)
    return list(lives.values())
