"""Chooses a path and a chunk by a short measurement, once per model, hyper-parameters and device.

The choice affects speed and the last bits of floating point, nothing else; it belongs in the
resolved configuration's ``[engine]``, so that a run can be repeated exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Choice", "best", "candidates", "measure", "most_at_once", "typical"]

CHUNKS = (8, 32, 128, 512)
_ENOUGH = 0.05  # seconds for each (path, chunk)
_REPETITIONS = 3
_CERTAINLY = 0.5  # seconds that are enough regardless of the number of repetitions
_TOO_LONG = 1.5  # seconds for one repetition
_ALIKE = 0.95  # rates above this fraction of the best differ from it by noise only
_HANDING = 5e-4
"""Seconds in which a process gets a chunk, replies and waits for the next: not measured here."""
_HOST_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How clients are trained.

    Attributes:
        path: ``"graph"``, ``"dual"``, ``"batched"`` or ``"loop"``.
        chunk: Clients that are trained at once.
        refused: Each path that cannot be used, and why.
        clients_per_second: The measured rate of each (path, chunk); empty if nothing was measured.
    """

    path: str
    chunk: int
    refused: Mapping[str, str] = field(default_factory=dict)
    clients_per_second: Mapping[tuple[str, int], float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"path {self.path}, chunk {self.chunk}"]
        if self.clients_per_second:
            shown = ", ".join(
                f"{path}/{chunk} {rate:.3g}"
                for (path, chunk), rate in self.clients_per_second.items()
            )
            parts.append(f"measured clients/s: {shown}")
        parts.extend(f"{path} refused: {why}" for path, why in self.refused.items())
        return "; ".join(parts)


def most_at_once(dimension: int) -> int:
    """How many clients' weights, gradients and two optimizer states fit in 1 GiB of the host's
    memory."""
    return max(1, _HOST_BYTES // (16 * dimension))


def candidates(paths: Sequence[str], clients: int, most: int) -> list[tuple[str, int]]:
    """The (path, chunk) pairs worth measuring for `clients` clients, at most `most` at once.

    >>> candidates(["dual", "loop"], clients=20, most=1000)
    [('dual', 8), ('dual', 32), ('loop', 1)]

    Of clients so large that the smallest chunk does not fit, half as many are taken: their
    gradients on the way, updates and encoded vectors need as much memory again.
    """
    fitting = [chunk for chunk in CHUNKS if chunk <= most] or [max(1, most // 2)]
    enough = next((at for at, chunk in enumerate(fitting) if chunk >= clients), len(fitting))
    chunks = fitting[: enough + 1]
    return [(path, chunk) for path in paths for chunk in ([1] if path == "loop" else chunks)]


def typical(sizes: Sequence[int], count: int) -> slice:
    """The `count` neighbours among increasing `sizes` whose mean size is nearest to that of all.

    A rate counts examples, and a client with few of them takes longer for each: paths
    would not be compared if one were measured with smaller clients than the other.

    >>> typical([1, 2, 3, 10, 12, 50], 1), typical([1, 2, 3, 10, 12, 50], 3)
    (slice(4, 5, None), slice(2, 5, None))
    """
    if count >= len(sizes):
        return slice(0, len(sizes))
    ends = np.concatenate([[0], np.cumsum(sizes)])
    means = (ends[count:] - ends[:-count]) / count
    begin = int(np.abs(means - np.mean(sizes)).argmin())
    return slice(begin, begin + count)


def measure(
    tried: Sequence[tuple[str, int]],
    train: Callable[[str, int], float],
    clock: Callable[[], float] | None = None,
) -> dict[tuple[str, int], float]:
    """Clients per second of each (path, chunk).

    The candidates take turns, so that a moment in which the machine is busy does not harm just one
    of them, and the fastest turn of each counts. A path whose small chunk already takes long is not
    measured with larger ones, nor again.

    Args:
        tried: The pairs to measure.
        train: Trains up to that many clients on a path; returns how many it trained.
        clock: Seconds. ``time.process_time`` suits if one thread does all the work: other programs
            then disturb the measurement less. ``time.perf_counter`` by default.
    """
    clock = clock or time.perf_counter
    rates: dict[tuple[str, int], float] = {}
    spent: dict[tuple[str, int], float] = {}
    slow: set[str] = set()
    waiting, turn = list(tried), 0
    while waiting:
        turn += 1
        again = []
        for path, chunk in waiting:
            if path in slow:
                continue
            key = (path, chunk)
            start = clock()
            trained = train(path, chunk)
            seconds = max(clock() - start, 1e-9)
            rates[key] = max(rates.get(key, 0.0), trained / seconds)
            spent[key] = spent.get(key, 0.0) + seconds
            if seconds > _TOO_LONG:
                slow.add(path)
            elif spent[key] < _CERTAINLY and (turn < _REPETITIONS or spent[key] < _ENOUGH):
                again.append(key)
        waiting = again
    return rates


def best(rates: Mapping[tuple[str, int], float]) -> tuple[str, int]:
    """The fastest path, with its largest chunk whose rate equals the fastest up to noise; to each
    chunk's time comes what handing it over costs.

    >>> best({("dual", 8): 98.0, ("dual", 32): 96.0, ("dual", 128): 70.0, ("loop", 1): 97.0})
    ('dual', 32)
    >>> best({("dual", 32): 5100.0, ("dual", 128): 4800.0})
    ('dual', 128)
    """
    handed = {
        (path, chunk): chunk / (chunk / rate + _HANDING) for (path, chunk), rate in rates.items()
    }
    path, fastest = max(handed, key=lambda each: handed[each])
    least = _ALIKE * handed[path, fastest]
    return path, max(chunk for own, chunk in handed if own == path and handed[own, chunk] >= least)
