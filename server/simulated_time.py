"""How long a simulated federation took, on its own clock, to reach each accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["simulated_time"]

_TENTHS = tuple(range(1, 10))


def simulated_time(
    evaluations: Iterable[Mapping[str, Any]], rounds: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Simulated seconds in all, and until each tenth of accuracy was first reached.

    >>> rounds = {1: {"simulated_seconds": 60.0}, 2: {"simulated_seconds": 150.0}}
    >>> lines = [{"round": 1, "accuracy": 0.18}, {"round": 2, "accuracy": 0.31}]
    >>> simulated_time(lines, rounds)
    {'seconds': 150.0, 'to_accuracy': {'0.1': 60.0, '0.2': 150.0, '0.3': 150.0}}

    Args:
        evaluations: Lines of ``metrics.jsonl``.
        rounds: Lines of ``private.jsonl`` by round; those of aborted rounds have no time.

    Returns:
        The times, or None where no clock was simulated.
    """
    ends = {
        number: float(line["simulated_seconds"])
        for number, line in rounds.items()
        if "simulated_seconds" in line
    }
    if not ends:
        return None
    reached: dict[str, float] = {}
    for line in evaluations:
        accuracy = line.get("accuracy")
        # A round without a time was aborted: its evaluation is of the model before it.
        past = [end for number, end in ends.items() if number <= int(line["round"])]
        if accuracy is None or not past:
            continue
        for tenth in _TENTHS:
            if accuracy >= tenth / 10:
                reached.setdefault(f"0.{tenth}", max(past))
    return {"seconds": max(ends.values()), "to_accuracy": reached}
