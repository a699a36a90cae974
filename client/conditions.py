"""The owner's conditions for working now: hours, idle processors, mains power, free memory.

Each condition is true, false or unknown (None): many devices cannot tell whether they are on mains.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from client.policy import Policy
from fedsys.errors import ConfigError

__all__ = ["Condition", "conditions", "obstacle"]

_IDLE_PERCENT = 30.0


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition that the owner set.

    Attributes:
        name: the policy's key.
        holds: whether it holds; None if the device cannot tell.
        text: what was found, for people.
    """

    name: str
    holds: bool | None
    text: str


def conditions(
    policy: Policy,
    *,
    now: Callable[[], dt.datetime] = dt.datetime.now,
    busy: Callable[[], float | None] | None = None,
    mains: Callable[[], bool | None] | None = None,
) -> list[Condition]:
    """Every condition that the policy sets, and whether it holds now."""
    found = []
    if policy.hours:
        time = now().time()
        holds = any(_within(span, time) for span in policy.hours)
        found.append(Condition(name="hours", holds=holds, text=f"it is {time:%H:%M}"))
    if policy.only_idle:
        percent = (busy or _busy)()
        text = "unknown" if percent is None else f"the processors are {percent:.0f}% busy"
        holds_idle = None if percent is None else percent < _IDLE_PERCENT
        found.append(Condition(name="only_idle", holds=holds_idle, text=text))
    if policy.only_on_mains:
        plugged = (mains or _mains)()
        text = {None: "unknown", True: "on mains", False: "on battery"}[plugged]
        found.append(Condition(name="only_on_mains", holds=plugged, text=text))
    if policy.min_free_memory_mb:
        free = psutil.virtual_memory().available >> 20
        found.append(
            Condition(
                name="min_free_memory_mb",
                holds=free >= policy.min_free_memory_mb,
                text=f"{free} MB are free",
            )
        )
    return found


def obstacle(policy: Policy, found: list[Condition]) -> str | None:
    """Why the device must not work now; None if nothing stands in the way."""
    for condition in found:
        if condition.holds is False:
            return f"{condition.name}: {condition.text}"
        if condition.holds is None and policy.when_unknown == "refuse":
            return f"{condition.name}: this device cannot tell, and when_unknown = 'refuse'"
    return None


def _within(span: str, time: dt.time) -> bool:
    try:
        first, _, last = span.partition("-")
        start, end = dt.time.fromisoformat(first.strip()), dt.time.fromisoformat(last.strip())
    except ValueError:
        raise ConfigError(f"hours = {span!r}: expected a span such as '22:00-06:00'") from None
    if start <= end:
        return start <= time < end
    return time >= start or time < end


def _busy() -> float | None:
    """Percent of all processors in use, excluding this process."""
    try:
        process = psutil.Process()
        process.cpu_percent(interval=None)  # the first call of an object starts its interval
        total = psutil.cpu_percent(interval=0.2)
        own = process.cpu_percent(interval=None) / (psutil.cpu_count() or 1)
    except (OSError, psutil.Error):
        return None
    return float(max(0.0, total - own))


def _mains() -> bool | None:
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError):
        return None
    if battery is None:
        return None  # no battery that we can see: a desktop, or a device that hides it
    return None if battery.power_plugged is None else bool(battery.power_plugged)
