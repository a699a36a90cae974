"""The mechanisms, by the names that a configuration uses.

>>> import os
>>> import numpy as np
>>> mechanism = build_mechanism("distributed-skellam", dimension=650, clip=0.3,
...     noise_multiplier=0.7, expected_cohort=100, population=1437, cap=159, min_survivors=47)
>>> encoded = mechanism.encode(np.zeros((2, 650), dtype=np.float32))
>>> vector = add_noise(encoded.values, mechanism.noise_shares(2, os.urandom), bits=32)
>>> total = add_noise(vector.sum(axis=0, dtype=np.uint32), mechanism.top_up(2, os.urandom), bits=32)
>>> mechanism.decode(total).shape
(650,)
"""

from __future__ import annotations

from typing import Any, get_args

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.events import (
    BandedEvent,
    Encoding,
    Event,
    ExampleEvent,
    GaussianEvent,
    Guarantee,
    Sampling,
    SamplingKind,
    SkellamEvent,
    UnprotectedEvent,
    banded_event,
    example_event,
    gaussian_event,
    skellam_event,
    unprotected_event,
)
from fedsys.privacy.mechanisms.banded import BandedGaussian
from fedsys.privacy.mechanisms.base import Encoded, Mechanism, add_noise
from fedsys.privacy.mechanisms.example import ExampleGaussian
from fedsys.privacy.mechanisms.gaussian import CentralGaussian, LocalGaussian
from fedsys.privacy.mechanisms.narrow_skellam import NarrowSkellam
from fedsys.privacy.mechanisms.skellam import DistributedSkellam
from fedsys.privacy.mechanisms.summed_once import SUMMED_ONCE, Noise, summed_once
from fedsys.privacy.mechanisms.unprotected import Unprotected

__all__ = [
    "MECHANISMS",
    "SUMMED_ONCE",
    "BandedGaussian",
    "Encoded",
    "Mechanism",
    "Noise",
    "add_noise",
    "build_event",
    "build_mechanism",
    "mechanism_for",
]

MECHANISMS = (
    "distributed-skellam",
    "central-gaussian",
    "local-gaussian",
    "banded-mf",
    "example-gaussian",
    "none",
)


def build_event(
    name: str,
    *,
    dimension: int,
    clip: float,
    noise_multiplier: float,
    expected_cohort: float,
    population: int,
    cap: int,
    min_survivors: int,
    encoding: Encoding = "wide",
    modulus_bits: int = 32,
    sampling: SamplingKind = "poisson",
    participation: float = 1.0,
    guarantee: Guarantee = "outsider",
    colluders: int = 0,
    horizon: int | None = None,
    min_separation: int | None = None,
    example_rate: float | None = None,
    steps: int | None = None,
) -> Event:
    """The event of one round under the mechanism of this name.

    Args:
        name: one of ``MECHANISMS``.
        dimension: d, coordinates of an update.
        clip: C, l2 norm to which updates are clipped.
        noise_multiplier: z; ignored under ``none``.
        expected_cohort: n = q N, constant denominator of the mean.
        population: N.
        cap: n_cap, largest cohort that is not aborted.
        min_survivors: m, fewest survivors that are released.
        encoding: ``wide``; ``narrow`` under distributed-skellam; ``float`` for sums that are
            rounded once.
        modulus_bits: b.
        sampling: how cohorts come about.
        participation: p of secret participation.
        guarantee: the view for which z was chosen.
        colluders: c, curious clients beside the server.
        horizon: rounds of the job (banded-mf).
        min_separation: rounds between two participations of a client (banded-mf).
        example_rate: probability of an example being in a local batch (example-gaussian).
        steps: local steps a round (example-gaussian).

    Raises:
        MechanismError: the name or a value is not usable.
    """
    validation.one_of("mechanism", name, MECHANISMS)
    validation.one_of("encoding", encoding, get_args(Encoding))
    validation.integer("population", population)
    if validation.positive("expected_cohort", expected_cohort) > population:
        raise MechanismError(
            f"expected_cohort={expected_cohort:g} exceeds population={population}: lower the cohort"
        )
    if encoding == "narrow" and name != "distributed-skellam":
        raise MechanismError(
            f"encoding='narrow' is for distributed-skellam; use encoding='wide' with {name}"
        )
    if encoding == "float" and name not in SUMMED_ONCE:
        raise MechanismError(
            f"mechanism={name!r} cannot draw its noise for a whole sum in floating point; "
            f"encoding='float' allows {', '.join(SUMMED_ONCE)}"
        )
    how = Sampling(kind=sampling, rate=expected_cohort / population, participation=participation)
    shared: dict[str, Any] = {
        "dimension": dimension,
        "clip": clip,
        "modulus_bits": modulus_bits,
        "cap": cap,
        "min_survivors": min_survivors,
        "expected_cohort": expected_cohort,
        "sampling": how,
        "colluders": colluders,
    }
    if name == "none":
        return unprotected_event(**shared)
    shared |= {"noise_multiplier": noise_multiplier, "guarantee": guarantee}
    try:
        if name == "distributed-skellam":
            return skellam_event(**shared, encoding=encoding)
        if name == "banded-mf":
            return banded_event(
                **shared,
                horizon=_needed(name, "rounds", horizon),
                min_separation=_needed(name, "min_separation", min_separation),
            )
        if name == "example-gaussian":
            return example_event(
                **shared,
                example_rate=_needed(name, "example_rate", example_rate),
                steps=_needed(name, "steps", steps),
            )
        return gaussian_event(**shared, local=name == "local-gaussian", encoding=encoding)
    except ArithmeticError:
        raise MechanismError(
            f"noise_multiplier={noise_multiplier:g} with clip={clip:g} and dimension={dimension} "
            "gives noise beyond what a float can hold: choose a sensible noise_multiplier and clip"
        ) from None


def _needed(mechanism: str, name: str, value: Any) -> Any:
    if value is None:
        raise MechanismError(f"mechanism={mechanism!r} needs {name}")
    return value


def mechanism_for(event: Event, noise: Noise = "per-client") -> Mechanism:
    """The mechanism whose rounds cost this event.

    Args:
        event: of one round.
        noise: ``once`` draws the noise of a whole sum at a stroke.

    Raises:
        MechanismError: there is none.
    """
    if noise == "once":
        return summed_once(event)
    if isinstance(event, SkellamEvent):
        return NarrowSkellam(event) if event.encoding == "narrow" else DistributedSkellam(event)
    if isinstance(event, GaussianEvent):
        return LocalGaussian(event) if event.local else CentralGaussian(event)
    if isinstance(event, BandedEvent):
        return BandedGaussian(event)
    if isinstance(event, ExampleEvent):
        return ExampleGaussian(event)
    if isinstance(event, UnprotectedEvent):
        return Unprotected(event)
    raise MechanismError(f"no mechanism draws the noise of {type(event).__name__}")


def build_mechanism(name: str, **parameters: Any) -> Mechanism:
    """The mechanism of this name; ``parameters`` are those of ``build_event``.

    Raises:
        MechanismError: the name or a value is not usable.
    """
    return mechanism_for(build_event(name, **parameters))
