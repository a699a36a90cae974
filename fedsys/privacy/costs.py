"""What one round costs in each view: the interpretation of an event. Unknown events are refused.

The noise that counts differs by view, and so does what amplifies:

- outsider: all of V*; Poisson sampling (and secret participation) amplifies.
- participant: V* less the shares of the c curious clients; rounds in which one of them was in the
  cohort are unamplified.
- server: the shares of honest survivors only; nothing amplifies but secret participation.

A cost is a curve: Rényi divergences at `fedsys.privacy.rdp.ORDERS`, which has the theorems and
their sources. Curves of several rounds add up.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np

from fedsys.errors import MechanismError
from fedsys.privacy.events import (
    BandedEvent,
    Event,
    ExampleEvent,
    GaussianEvent,
    SkellamEvent,
    UnprotectedEvent,
)
from fedsys.privacy.exact_gaussian import gaussian_epsilon
from fedsys.privacy.pld import dp_accounting_rdp, gaussian_pld_epsilon
from fedsys.privacy.rdp import (
    ORDERS,
    Vector,
    amplify,
    curve_of,
    epsilon_of,
    gaussian_loss,
    replacement_sampled,
    skellam_loss,
)

__all__ = [
    "Accountant",
    "GaussianKey",
    "accountant_of",
    "apart_cost",
    "gaussian_steps",
    "outsider_cost",
    "outsider_epsilons",
    "reported_outsider",
    "server_cost",
    "together_cost",
]

Accountant = Literal["pld", "gaussian", "rdp"]
GaussianKey = tuple[float, float]
"""(noise multiplier, Poisson sampling rate)."""

_CACHE = 512


@lru_cache(maxsize=_CACHE)
def _loss(kind: str, l2: float, l1: float, variance: float) -> Vector:
    if kind == "skellam":
        loss = skellam_loss(l2, l1, variance)
    else:
        loss = gaussian_loss(math.sqrt(variance) / l2 if variance > 0 else 0.0)
    loss.setflags(write=False)
    return loss


@lru_cache(maxsize=_CACHE)
def _amplified(kind: str, l2: float, l1: float, variance: float, rate: float) -> Vector:
    curve = amplify(_loss(kind, l2, l1, variance), rate)
    curve.setflags(write=False)
    return curve


@lru_cache(maxsize=_CACHE)
def _replaced(kind: str, l2: float, l1: float, variance: float, rate: float) -> Vector:
    curve = replacement_sampled(_loss(kind, 2 * l2, 2 * l1, variance), rate)
    curve.setflags(write=False)
    return curve


def _infinite() -> Vector:
    return np.full_like(ORDERS, math.inf)


def _noise_of(event: Event) -> tuple[str, float, float]:
    """(kind, D2, D1) of a protected event."""
    if isinstance(event, SkellamEvent):
        return "skellam", event.l2, event.l1
    if isinstance(event, GaussianEvent):
        return "gaussian", event.l2, 0.0
    raise MechanismError(f"no accountant interprets the event {type(event).__name__}")


def outsider_cost(event: Event) -> Vector:
    """The curve of one round for someone who sees releases only.

    Under min-separation sampling: of one round *in which the client takes part*; under banded-mf
    with Poisson sampling: of one round of the client's own group.

    Raises:
        MechanismError: the event is unknown.
    """
    if isinstance(event, UnprotectedEvent):
        return _infinite()
    if isinstance(event, ExampleEvent):
        return _local_steps(event)
    if isinstance(event, BandedEvent):
        rate = event.turn_rate if event.sampling.kind == "poisson" else 1.0
        return _amplified("gaussian", 1.0, 0.0, event.noise_multiplier**2, rate)
    kind, l2, l1 = _noise_of(event)
    how = event.sampling
    if how.kind == "poisson":
        return _amplified(kind, l2, l1, event.total_variance, how.rate * how.participation)
    if how.participation < 1:
        # a public cohort of constant size; the coin amplifies, the subset is not counted on
        return _amplified(kind, l2, l1, event.total_variance, how.participation)
    if how.kind == "fixed":
        return _replaced(kind, l2, l1, event.total_variance, how.rate)
    return curve_of(_loss(kind, l2, l1, event.total_variance))


def _local_steps(event: ExampleEvent) -> Vector:
    """Poisson-sampled Gaussian steps inside one client, composed over one round."""
    step = _amplified("gaussian", 1.0, 0.0, event.noise_multiplier**2, event.example_rate)
    return event.steps * step


def _left_by_colluders(event: SkellamEvent | GaussianEvent) -> float:
    """V* less the shares of the curious clients (one at least: the participant itself)."""
    curious = min(max(event.colluders, 1), event.cap - 1)
    return event.total_variance - curious * event.share_variance


def together_cost(event: Event) -> Vector:
    """The curve of a round that a curious client shares with its target.

    Raises:
        MechanismError: the event is unknown.
    """
    if isinstance(event, UnprotectedEvent):
        return _infinite()
    if isinstance(event, ExampleEvent):
        return _local_steps(event)
    if isinstance(event, BandedEvent):
        return _amplified("gaussian", 1.0, 0.0, event.noise_multiplier**2, 1.0)
    kind, l2, l1 = _noise_of(event)
    variance = _left_by_colluders(event)
    if event.sampling.kind == "fixed" and event.sampling.participation == 1:
        return curve_of(_loss(kind, 2 * l2, 2 * l1, variance))  # neighbours by replacement
    return _amplified(kind, l2, l1, variance, event.sampling.participation)


def apart_cost(event: Event) -> Vector:
    """The curve of a round without any curious client, in the participant view.

    Raises:
        MechanismError: the event is unknown.
    """
    return outsider_cost(event)


def server_cost(event: Event, survivors: int | None = None) -> Vector:
    """The curve of a round in which the client's update was summed, for the server.

    Args:
        event: of the round.
        survivors: clients in the sum; None for the fewest that may be released.

    Raises:
        MechanismError: the event is unknown.
    """
    if isinstance(event, (UnprotectedEvent, BandedEvent)):
        return _infinite()  # the server sees the sum before any noise
    if isinstance(event, ExampleEvent):
        return _local_steps(event)
    kind, l2, l1 = _noise_of(event)
    if isinstance(event, GaussianEvent):
        honest = 1 if event.local else 0  # each client stands alone, or the server adds it all
    elif survivors is None:
        honest = event.worst_honest_shares
    else:
        honest = max(survivors - event.colluders, 1)
    variance = honest * event.share_variance
    if variance == 0:
        return _infinite()
    return _amplified(kind, l2, l1, variance, event.sampling.participation)


def gaussian_steps(event: Event) -> tuple[GaussianKey, int]:
    """A round as so many sampled Gaussian steps: ((multiplier, rate), steps).

    Raises:
        MechanismError: it is none.
    """
    if isinstance(event, ExampleEvent):
        return (event.noise_multiplier, event.example_rate), event.steps
    if isinstance(event, BandedEvent):
        rate = event.turn_rate if event.sampling.kind == "poisson" else 1.0
        return (event.noise_multiplier, rate), 1
    if isinstance(event, GaussianEvent) and not event.local:
        # the clipping norm cancels: rounds at adapted norms are alike
        multiplier = float(f"{math.sqrt(event.total_variance) / event.l2:.12g}")
        rate = event.sampling.rate * event.sampling.participation
        return (multiplier, rate if event.sampling.kind == "poisson" else 1.0), 1
    raise MechanismError(f"a {event.mechanism} round is no Gaussian mechanism")


def accountant_of(event: Event) -> Accountant:
    """The accountant whose outsider epsilon is reported.

    ``pld`` for Gaussian noise under Poisson sampling, ``gaussian`` (exact) where the whole job is
    one Gaussian mechanism, ``rdp`` otherwise.
    """
    if isinstance(event, ExampleEvent):
        return "pld"
    if not isinstance(event, BandedEvent) and (not isinstance(event, GaussianEvent) or event.local):
        return "rdp"
    if event.sampling.kind == "poisson":
        return "pld"
    whole = event.sampling.kind == "min-separation" and event.sampling.participation == 1
    return "gaussian" if whole else "rdp"


def reported_outsider(event: Event, turns: int, delta: float) -> float:
    """The outsider's epsilon after so many turns, by the reported accountant.

    Args:
        event: of each round.
        turns: rounds that count, see `PrivacyPlan.turns`.
        delta: in (0, 1).

    Raises:
        MechanismError: the event is unknown, or ``delta`` out of range.
    """
    accountant = accountant_of(event)
    if accountant == "rdp":
        return epsilon_of(turns * outsider_cost(event), delta)
    key, steps = gaussian_steps(event)
    if accountant == "gaussian":
        return gaussian_epsilon(delta, key[0] / math.sqrt(turns * steps))
    return gaussian_pld_epsilon({key: turns * steps}, delta)


def outsider_epsilons(event: Event, turns: int, delta: float) -> dict[str, float]:
    """The outsider's epsilon after so many turns: the reported accountant's first, then a check.

    Args:
        event: of each round.
        turns: rounds that count, see `PrivacyPlan.turns`.
        delta: in (0, 1).

    Returns:
        By accountant; the check is dp-accounting's Rényi accountant, where there is one.

    Raises:
        MechanismError: as `reported_outsider`.
    """
    accountant = accountant_of(event)
    values: dict[str, float] = {accountant: reported_outsider(event, turns, delta)}
    if accountant != "rdp":
        key, steps = gaussian_steps(event)
        values["rdp"] = dp_accounting_rdp({key: turns * steps}, delta)
    return values
