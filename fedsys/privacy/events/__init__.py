"""What one round costs, as immutable data: the only thing that accountants see.

Mechanisms differ in who adds the noise, how updates become integers (`Encoding`), and whether the
noise is correlated over rounds. `EVENTS` lists the kinds of events. An event holds what was chosen;
scale, sensitivities and variances follow from it. ``event_from_json`` derives them again, and
refuses a record in which they disagree or whose mechanism is not on the list.

>>> event = build_event("distributed-gaussian", dimension=650, clip=0.3, noise_multiplier=0.7,
...     cap=159, min_survivors=47, expected_cohort=100, population=1437)
>>> round(event.l2, 3), round(event.share_variance, 3)
(1631.686, 8204.881)
>>> event_from_json(event.to_json()) == event
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, Unpack

from fedsys.agreement import agrees, is_finite
from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.events.banded import BandedEvent
from fedsys.privacy.events.base import (
    Cohort,
    GaussianStep,
    Guarantee,
    RoundedTerms,
    Sampling,
    SamplingKind,
    SumEvent,
)
from fedsys.privacy.events.encodings import (
    Encoding,
    EncodingKind,
    Geometry,
    check_ring,
    least_ring,
)
from fedsys.privacy.events.example import ExampleEvent
from fedsys.privacy.events.gaussian import CentralEvent, LocalEvent, OnceEvent, SharedEvent
from fedsys.privacy.events.unprotected import UnprotectedEvent

__all__ = [
    "EVENTS",
    "MECHANISMS",
    "SUMMED_ONCE",
    "BandedEvent",
    "CentralEvent",
    "Cohort",
    "Encoding",
    "EncodingKind",
    "Event",
    "EventChoices",
    "ExampleEvent",
    "GaussianStep",
    "Geometry",
    "Guarantee",
    "LocalEvent",
    "Noise",
    "OnceEvent",
    "RoundedTerms",
    "Sampling",
    "SamplingKind",
    "SharedEvent",
    "SumEvent",
    "UnprotectedEvent",
    "build_event",
    "check_known",
    "check_ring",
    "event_from_json",
    "least_ring",
]

Event = SumEvent
Noise = Literal["per-client", "once"]

EVENTS: Mapping[tuple[str, Noise], type[SumEvent]] = {
    ("distributed-gaussian", "per-client"): SharedEvent,
    ("distributed-gaussian", "once"): OnceEvent,
    ("central-gaussian", "per-client"): CentralEvent,
    ("central-gaussian", "once"): CentralEvent,
    ("local-gaussian", "per-client"): LocalEvent,
    ("banded-mf", "per-client"): BandedEvent,
    ("example-gaussian", "per-client"): ExampleEvent,
    ("none", "per-client"): UnprotectedEvent,
    ("none", "once"): UnprotectedEvent,
}
"""The kinds of events, by mechanism and by whether a simulation draws the whole sum's noise."""

MECHANISMS = tuple(dict.fromkeys(name for name, _ in EVENTS))
SUMMED_ONCE = tuple(name for name, noise in EVENTS if noise == "once")
"""Mechanisms whose noise can be drawn once for the whole sum."""

_ENCODINGS: Mapping[str, tuple[EncodingKind, ...]] = {
    "distributed-gaussian": ("wide", "narrow", "float"),
    "central-gaussian": ("wide", "narrow", "float"),
    "local-gaussian": ("wide", "narrow"),
    "banded-mf": ("wide",),
    "example-gaussian": ("wide",),
    "none": ("wide", "float"),
}

_FURTHER = {
    "banded-mf": {"horizon": "rounds", "min_separation": "min_separation"},
    "example-gaussian": {"example_rate": "example_rate", "steps": "steps"},
}
"""Fields that only one kind of event has, and their names in a configuration."""


class EventChoices(TypedDict, total=False):
    """Everything that is chosen for one round.

    Attributes:
        dimension: d, the number of coordinates of an update.
        clip: C, the l2 norm to which updates are clipped.
        noise_multiplier: z; ignored under ``none``.
        expected_cohort: n = q N, the constant denominator of the mean.
        population: N, the number of clients that may be sampled.
        cap: n_cap, the largest cohort that is not aborted.
        min_survivors: m, the fewest survivors whose sum is released.
        encoding: ``wide``, ``narrow``, or ``float`` for sums that are rounded once.
        modulus_bits: b; 0 for the smallest ring that fits (16 under ``narrow``).
        sampling: how cohorts are drawn.
        participation: p, the probability that a cohort member secretly contributes its update.
        guarantee: the view for which z was chosen.
        colluders: c, the number of curious clients that collude with the server.
        noise: ``once`` where a simulation draws the noise of the whole sum.
        horizon: the job's number of rounds (banded-mf).
        min_separation: rounds between two participations of a client (banded-mf).
        example_rate: the probability that an example is in a local batch (example-gaussian).
        steps: local steps per round (example-gaussian).
    """

    dimension: int
    clip: float
    noise_multiplier: float | None
    expected_cohort: float
    population: int
    cap: int | None
    min_survivors: int | None
    encoding: EncodingKind
    modulus_bits: int
    sampling: SamplingKind
    participation: float
    guarantee: Guarantee
    colluders: int
    noise: Noise
    horizon: int | None
    min_separation: int | None
    example_rate: float | None
    steps: int | None


_NARROW_BITS = 16
"""Modulus of the narrow encoding where none is given."""


def build_event(name: str, **choices: Unpack[EventChoices]) -> Event:
    """One round's event under the mechanism with this name.

    Args:
        name: one of ``MECHANISMS``.
        **choices: see `EventChoices`.

    Raises:
        MechanismError: the name is unknown, or a value is missing, invalid or incompatible with
            another.
    """
    validation.one_of("mechanism", name, MECHANISMS)
    encoding, noise = choices.get("encoding", "wide"), choices.get("noise", "per-client")
    validation.one_of("noise", noise, ("per-client", "once"))
    validation.one_of("encoding", encoding, ("wide", "narrow", "float"))
    kind = EVENTS.get((name, noise))
    if kind is None:
        raise MechanismError(
            f"noise='once' is for {', '.join(SUMMED_ONCE)}; {name} cannot draw its noise that way: "
            "use noise='per-client'"
        )
    if encoding not in _ENCODINGS[name]:
        raise MechanismError(
            f"encoding={encoding!r} does not go with mechanism={name!r}: allowed are "
            f"{', '.join(_ENCODINGS[name])}"
        )
    if encoding == "float" and noise != "once":
        raise MechanismError("a sum in floating point has no noise shares: use noise='once'")
    expected = validation.positive("expected_cohort", _needed(name, choices, "expected_cohort"))
    population = validation.integer("population", _needed(name, choices, "population"))
    if expected > population:
        raise MechanismError(
            f"expected_cohort={expected:g} exceeds population={population}: lower the cohort"
        )
    multiplier = 0.0 if name == "none" else _needed(name, choices, "noise_multiplier")
    further = {}
    for field, called in _FURTHER.get(name, {}).items():
        further[field] = _needed(name, choices, field, called)

    def with_bits(bits: int) -> Event:
        return kind(
            encoding=Encoding(
                kind=encoding,
                dimension=_needed(name, choices, "dimension"),
                clip=_needed(name, choices, "clip"),
                modulus_bits=bits,
            ),
            noise_multiplier=multiplier,
            cohort=Cohort(
                expected=expected,
                cap=_needed(name, choices, "cap"),
                min_survivors=_needed(name, choices, "min_survivors"),
            ),
            sampling=Sampling(
                kind=choices.get("sampling", "poisson"),
                rate=expected / population,
                participation=choices.get("participation", 1.0),
            ),
            guarantee=choices.get("guarantee", "outsider"),
            colluders=choices.get("colluders", 0),
            **further,
        )

    bits = choices.get("modulus_bits", 0)
    try:
        if bits or encoding == "narrow":
            return with_bits(bits or _NARROW_BITS)
        widest = with_bits(64)
        deviation = math.sqrt(widest.total_variance)
        return with_bits(least_ring(cap=widest.cap, l2=widest.l2, deviation=deviation))
    except ArithmeticError:
        raise MechanismError(
            f"noise_multiplier={multiplier:g} with clip={choices['clip']:g} and dimension="
            f"{choices['dimension']} gives noise beyond what a float can hold: choose a sensible "
            "noise_multiplier and clip"
        ) from None


def _needed(
    mechanism: str, choices: Mapping[str, Any], field: str, called: str | None = None
) -> Any:
    value = choices.get(field)
    if value is None:
        raise MechanismError(f"mechanism={mechanism!r} needs {called or field}")
    return value


def check_known(event: object) -> Event:
    """Returns the event if `EVENTS` lists its kind.

    Raises:
        MechanismError: it does not, so neither the event's cost nor its noise is known.
    """
    for kind in EVENTS.values():
        if type(event) is kind:
            return event
    raise MechanismError(
        f"no accountant interprets the event {type(event).__name__}: it is none of "
        f"{', '.join(MECHANISMS)}"
    )


def event_from_json(body: Mapping[str, Any]) -> Event:
    """The event that a JSON object describes; derived values are computed again and compared.

    Raises:
        MechanismError: the mechanism is unknown, a key is missing or unknown, a value is out of
            range, or a derived value differs from what the parameters give.
    """
    mechanism = body.get("mechanism")
    try:
        kind = EVENTS.get((mechanism, body.get("noise", "per-client")))  # type: ignore[arg-type]
    except TypeError:
        kind = None
    if kind is None:
        raise MechanismError(f"unknown mechanism {mechanism!r}: it cannot be accounted")
    try:
        event = kind(
            encoding=Encoding(
                kind=body["encoding"],
                dimension=body["dimension"],
                clip=body["clip"],
                modulus_bits=body["modulus_bits"],
            ),
            noise_multiplier=body["noise_multiplier"],
            cohort=Cohort(
                expected=body["expected_cohort"],
                cap=body["cap"],
                min_survivors=body["min_survivors"],
            ),
            sampling=Sampling(
                kind=body["sampling"],
                rate=body["sampling_rate"],
                participation=body["participation"],
            ),
            guarantee=body["guarantee"],
            colluders=body["colluders"],
            **{field: body[field] for field in _FURTHER.get(kind.mechanism, {})},
        )
        if event.encoding.kind not in _ENCODINGS[kind.mechanism]:
            raise MechanismError(f"{mechanism} has no encoding {event.encoding.kind!r}")
        derived = event.to_json()
    except KeyError as missing:
        raise MechanismError(f"an event of {mechanism} lacks the key {missing}") from None
    except (ArithmeticError, TypeError, ValueError) as error:  # absurd numbers
        raise MechanismError(f"an event of {mechanism!r} is impossible: {error}") from None
    if extra := sorted(set(body) - set(derived)):
        raise MechanismError(f"an event of {mechanism} has unknown keys: {', '.join(extra)}")
    for name, value in derived.items():
        if not _agrees(body.get(name), value):
            raise MechanismError(
                f"an event's {name}={body.get(name)!r} disagrees with {value!r}, which follows "
                "from its other values"
            )
    return event


def _agrees(found: object, wanted: object) -> bool:
    """Equality, up to rounding errors in floating point."""
    if isinstance(wanted, float):
        return is_finite(found) and agrees(found, wanted, relative=1e-9)
    return type(found) is type(wanted) and found == wanted
