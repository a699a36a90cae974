"""Which jobs can be attacked with canaries."""

from __future__ import annotations

from fedsys.config import Config
from fedsys.errors import ConfigError

__all__ = ["require_attackable"]


def require_attackable(config: Config) -> None:
    """Refuse a job in which canaries cannot be planted as the audit expects them.

    Raises:
        ConfigError: The message names the key and what to set.
    """
    if config.aggregation.protocol == "float":
        raise ConfigError("--canaries needs aggregation.protocol = 'secure' or 'ideal'")
    if config.privacy.adaptive_quantile is not None:
        raise ConfigError(
            f"--canaries with privacy.adaptive_quantile = {config.privacy.adaptive_quantile}: "
            f"canaries are planted at a fixed clipping norm; leave adaptive clipping out"
        )
    if config.rounds.mode == "buffered":
        raise ConfigError(
            "--canaries with rounds.mode = 'buffered': whether a canary is there must not move the "
            "other uploads; use 'synchronous'"
        )
    if config.cohort.weighting != "none":
        raise ConfigError(
            f"--canaries has cohort.weighting = '{config.cohort.weighting}': canaries hold no "
            f"examples; audit the job with weighting = 'none'"
        )
    if config.privacy.unit == "example":
        raise ConfigError("--canaries attacks the unit 'client'; privacy.unit is 'example'")
    if config.evaluation.on_devices_every:
        raise ConfigError(
            f"--canaries with evaluation.on_devices_every = {config.evaluation.on_devices_every}: "
            f"canaries answer no questions; audit the job with 0"
        )
