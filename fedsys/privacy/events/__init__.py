"""What one round costs, as immutable data: the only thing that accountants see.

An event holds what was chosen (mechanism, encoding, clipping norm, noise multiplier, sampling) and
what follows from it (scale, sensitivities, variances). ``event_from_json`` derives the second from
the first again and refuses a record in which they disagree.

>>> event = skellam_event(dimension=650, clip=0.3, noise_multiplier=0.7, encoding="wide",
...     modulus_bits=32, cap=159, min_survivors=47, expected_cohort=100,
...     sampling=Sampling(kind="poisson", rate=100 / 1437))
>>> round(event.l2, 3), round(event.share_variance, 3)
(1631.686, 8204.881)
>>> event_from_json(event.to_json()) == event
True
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from fedsys.errors import MechanismError
from fedsys.privacy.events.banded import BandedEvent, banded_event
from fedsys.privacy.events.base import Encoding, Guarantee, Sampling, SamplingKind, SumEvent
from fedsys.privacy.events.example import ExampleEvent, example_event
from fedsys.privacy.events.gaussian import GaussianEvent, gaussian_event
from fedsys.privacy.events.skellam import SkellamEvent, skellam_event
from fedsys.privacy.events.unprotected import UnprotectedEvent, unprotected_event

__all__ = [
    "BandedEvent",
    "Encoding",
    "Event",
    "ExampleEvent",
    "GaussianEvent",
    "Guarantee",
    "Sampling",
    "SamplingKind",
    "SkellamEvent",
    "SumEvent",
    "UnprotectedEvent",
    "banded_event",
    "event_from_json",
    "example_event",
    "gaussian_event",
    "skellam_event",
    "unprotected_event",
]

Event = SkellamEvent | GaussianEvent | BandedEvent | ExampleEvent | UnprotectedEvent

_CHOSEN = (
    "dimension",
    "clip",
    "modulus_bits",
    "cap",
    "min_survivors",
    "expected_cohort",
    "colluders",
)


def event_from_json(body: Mapping[str, Any]) -> Event:
    """The event that a JSON object describes; everything derivable is derived again.

    Raises:
        MechanismError: the mechanism is unknown, a key is missing or superfluous, a value is out of
            range, or a derived value differs from what its parameters give.
    """
    mechanism = body.get("mechanism")
    try:
        chosen: dict[str, Any] = {name: body[name] for name in _CHOSEN}
        chosen["sampling"] = Sampling(
            kind=body["sampling"], rate=body["sampling_rate"], participation=body["participation"]
        )
        if mechanism == "none":
            event: Event = unprotected_event(**chosen)
        elif mechanism == "distributed-skellam":
            event = skellam_event(
                **chosen,
                noise_multiplier=body["noise_multiplier"],
                guarantee=body["guarantee"],
                encoding=body["encoding"],
            )
        elif mechanism in ("central-gaussian", "local-gaussian"):
            event = gaussian_event(
                **chosen,
                noise_multiplier=body["noise_multiplier"],
                guarantee=body["guarantee"],
                local=mechanism == "local-gaussian",
                encoding=body["encoding"],
            )
        elif mechanism == "banded-mf":
            event = banded_event(
                **chosen,
                noise_multiplier=body["noise_multiplier"],
                guarantee=body["guarantee"],
                horizon=body["horizon"],
                min_separation=body["min_separation"],
            )
        elif mechanism == "example-gaussian":
            event = example_event(
                **chosen,
                noise_multiplier=body["noise_multiplier"],
                guarantee=body["guarantee"],
                example_rate=body["example_rate"],
                steps=body["steps"],
            )
        else:
            raise MechanismError(f"unknown mechanism {mechanism!r}: it cannot be accounted")
    except KeyError as missing:
        raise MechanismError(f"an event of {mechanism} lacks the key {missing}") from None
    except (ArithmeticError, TypeError, ValueError) as error:  # of a number that no plan has
        raise MechanismError(f"an event of {mechanism!r} cannot be: {error}") from None
    derived = event.to_json()
    if extra := sorted(set(body) - set(derived)):
        raise MechanismError(f"an event of {mechanism} has unknown keys: {', '.join(extra)}")
    for name, value in derived.items():
        if not _agrees(body.get(name), value):
            raise MechanismError(
                f"an event's {name}={body.get(name)!r} disagrees with {value!r}, which its other "
                "values give"
            )
    return event


def _agrees(found: object, wanted: object) -> bool:
    """Equality, up to the last bits of floating point."""
    if isinstance(wanted, float):
        return (
            isinstance(found, (int, float))
            and not isinstance(found, bool)
            and abs(found) <= sys.float_info.max
            and math.isclose(found, wanted, rel_tol=1e-9, abs_tol=0.0)
        )
    return type(found) is type(wanted) and found == wanted
