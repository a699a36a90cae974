"""Integer noise: the one exact sampler, and how far sums of its draws are from a Gaussian.

``NOISE.md`` in the parent package states the lemma on which the accounting rests.
"""

from fedsys.privacy.noise.distance import rounding_distance
from fedsys.privacy.noise.inversion import sampler_distance
from fedsys.privacy.noise.sampler import MAX_SIGMA, RoundedGaussian, noise_sampler

__all__ = ["MAX_SIGMA", "RoundedGaussian", "noise_sampler", "rounding_distance", "sampler_distance"]
