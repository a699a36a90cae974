"""example-gaussian: DP-SGD inside each client; the unit of protection is one example."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fedsys.privacy import validation
from fedsys.privacy.clipping import squared_norm_limit
from fedsys.privacy.events.base import Guarantee, Sampling, SumEvent, check_ring
from fedsys.privacy.rings import check_bits

__all__ = ["ExampleEvent", "example_event"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleEvent(SumEvent):
    """A round of Poisson-sampled, per-example clipped, noisy steps in each client.

    ``clip`` bounds a client's update for the ring alone; ``noise_multiplier`` is the local
    optimizer's, relative to its own per-example clipping norm. What leaves a client is private
    towards everybody, so all views cost the same: nothing but the steps themselves amplifies.

    Attributes:
        example_rate: probability of an example being in a local batch; the largest of any client.
        steps: local steps in one round, at most.
        modulus_bits: b; the sum is taken mod 2^b.
    """

    mechanism: ClassVar[str] = "example-gaussian"

    example_rate: float
    steps: int
    modulus_bits: int


def example_event(
    *,
    dimension: int,
    clip: float,
    noise_multiplier: float,
    modulus_bits: int,
    cap: int,
    min_survivors: int,
    expected_cohort: float,
    sampling: Sampling,
    example_rate: float,
    steps: int,
    guarantee: Guarantee = "outsider",
    colluders: int = 0,
) -> ExampleEvent:
    """The event of a round of local DP-SGD.

    Raises:
        MechanismError: a value is out of range, or the ring is too small for the sum.
    """
    validation.integer("dimension", dimension, most=1 << 36)
    validation.positive("clip", clip)
    validation.positive("noise_multiplier", noise_multiplier)
    validation.probability("example_rate", example_rate)
    validation.integer("steps", steps)
    validation.integer("cap", cap)
    check_bits(modulus_bits)
    check_ring(modulus_bits, cap=cap, l2=math.sqrt(squared_norm_limit(dimension)), deviation=0.0)
    return ExampleEvent(
        dimension=dimension,
        clip=clip,
        noise_multiplier=noise_multiplier,
        cap=cap,
        min_survivors=min_survivors,
        expected_cohort=expected_cohort,
        sampling=sampling,
        guarantee=guarantee,
        colluders=colluders,
        example_rate=example_rate,
        steps=steps,
        modulus_bits=modulus_bits,
    )
