"""Exact samplers of integer noise over a stream of random bytes."""

from fedsys.privacy.samplers.gaussian import RoundedGaussian
from fedsys.privacy.samplers.skellam import SkellamSampler, skellam_sampler

__all__ = ["RoundedGaussian", "SkellamSampler", "skellam_sampler"]
