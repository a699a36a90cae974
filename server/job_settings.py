"""Derives the plan, clipping, steps and strategy from a configuration, population and model."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from fedsys.config import Config
from fedsys.errors import ConfigError, MechanismError
from fedsys.privacy import (
    AdaptiveClipping,
    PrivacyPlan,
    default_bit_fraction,
    guaranteed_epsilon,
    make_plan,
)
from fedsys.privacy.encoding.parts import Parts
from fedsys.privacy.sampling.drawing import CohortSampler
from server.asking import Answering, sheet_of, turns_of
from server.strategies import build_strategy
from server.strategy_base import ReceivingStrategy, Strategy, StrategyOptions

__all__ = [
    "budget_of",
    "check_rate",
    "clipping_for",
    "example_steps",
    "parts_of",
    "plan_for",
    "sampler_of",
    "strategy_of",
]

_KEYS = {
    "guarantee": "privacy.guarantee",
    "mechanism": "privacy.mechanism",
    "delta": "privacy.delta",
    "unit": "privacy.unit",
    "noise_multiplier": "privacy.noise_multiplier",
    "max_participations": "privacy.max_participations",
    "example_rate": "privacy.example_rate",
    "colluders": "privacy.max_colluders",
    "sampling": "cohort.sampling",
    "participation": "cohort.participation",
    "min_separation": "cohort.min_separation",
    "min_survivors": "cohort.min_survivors",
    "cap": "cohort.cap",
    "encoding": "aggregation.encoding",
    "noise": "aggregation.noise",
    "modulus_bits": "aggregation.modulus_bits",
    "dropout": "aggregation.dropout",
    "corrupt": "aggregation.corrupt",
}
"""Configuration key of each parameter of `make_plan`, for its error messages."""

_ADAPTIVE = ("fedadagrad", "fedadam", "fedyogi")
_LARGE_STEP = 1.0

_PLAIN_NAMES = re.compile(
    r"(?<![\w.])(?:(?:min_separation|max_participations|min_survivors|noise_multiplier)(?!\w)"
    rf"|(?:{'|'.join(sorted(_KEYS, key=len, reverse=True))})(?==))"
)
"""Parameter names in a message: those that are no English words, others only before a ``=``."""


def plan_for(
    config: Config, *, population: int, layers: Sequence[int], further: int = 0
) -> PrivacyPlan:
    """The privacy plan of a configuration for this population and model.

    Args:
        config: Where only `privacy.epsilon` is given, `privacy.noise_multiplier` is derived.
        population: Number of clients, N.
        layers: Sizes of the model's parameters, d in all. Adaptive clipping adds one bit for each
            group of parameters that is clipped separately.
        further: Coordinates of a client's vector behind its update; see `parts_of`.

    Raises:
        MechanismError: The configuration's numbers do not fit together.
        ConfigError: The population is too small for such cohorts.
    """
    privacy, cohort, aggregation = config.privacy, config.cohort, config.aggregation
    adaptive = privacy.adaptive_quantile is not None
    bits = len(_clipped_apart(config, layers)) if adaptive else 0
    cap, least = cohort.cap, cohort.min_survivors
    if privacy.mechanism == "none" and config.rounds.mode == "synchronous":
        cap, least = cap or population, least or 1
    try:
        plan = make_plan(
            mechanism=privacy.mechanism,
            population=population,
            expected_cohort=float(cohort.expected),
            rounds=turns_of(config).rounds,
            dimension=sum(layers) + bits + further,
            adaptive_clip=adaptive,
            clip=privacy.clip,
            delta=privacy.delta,
            noise_multiplier=privacy.noise_multiplier,
            epsilon=privacy.epsilon if privacy.noise_multiplier is None else None,
            budget=privacy.epsilon,
            cap=cap,
            min_survivors=least,
            encoding="float" if aggregation.protocol == "float" else aggregation.encoding,
            noise="once" if aggregation.protocol == "float" else aggregation.noise,
            modulus_bits=aggregation.modulus_bits,
            sampling=cohort.kind,
            participation=cohort.participation,
            guarantee=privacy.guarantee,
            colluders=privacy.max_colluders,
            dropout=aggregation.dropout,
            max_participations=privacy.max_participations,
            min_separation=cohort.min_separation,
            unit=privacy.unit,
            example_rate=privacy.example_rate,
            steps=None if privacy.example_rate is None else example_steps(config),
            corrupt=aggregation.corrupt if aggregation.protocol == "secure" else None,
        )
        plan.build_mechanism()
        CohortSampler(plan)
    except MechanismError as error:
        reason = _PLAIN_NAMES.sub(lambda name: _KEYS[name[0]], str(error))
        if privacy.noise_multiplier is None and privacy.epsilon is not None:
            reason = f"privacy.epsilon = {privacy.epsilon:g}: {reason}"
        raise MechanismError(reason) from None
    return plan


def sampler_of(config: Config, plan: PrivacyPlan) -> CohortSampler:
    """What makes a job's cohorts.

    Raises:
        ConfigError: The configuration names code of its own that is not there.
    """
    if config.cohort.kind != "chosen":
        return CohortSampler(plan)
    from fedsys.tasks.named import attribute_of

    return CohortSampler(plan, attribute_of(config.cohort.sampling, "cohort.sampling"))


def budget_of(plan: PrivacyPlan) -> float | None:
    """Epsilon that a plan's guaranteed view may reach; None where nothing is promised."""
    if not plan.protected:
        return None
    return plan.budget if plan.budget is not None else guaranteed_epsilon(plan)


def clipping_for(
    config: Config, plan: PrivacyPlan, layers: Sequence[int]
) -> AdaptiveClipping | None:
    """The first round's clipping norms, where they adapt.

    Args:
        config: The job's configuration.
        plan: The plan derived from it.
        layers: Sizes of the model's parameters, in the order of the flat vector.

    Raises:
        ConfigError: The clipping bits would take up the whole clipping norm.
    """
    privacy = config.privacy
    if privacy.adaptive_quantile is None:
        return None
    apart = _clipped_apart(config, layers)
    taking_part = plan.expected_cohort * plan.participation
    bit_fraction = default_bit_fraction(plan.noise_multiplier, taking_part)
    # The bits share the update's norm: k bits of `bit_fraction` each have squared norm k times
    # its square, and the update gets what is left of 1.
    if len(apart) * bit_fraction**2 >= 1:
        raise ConfigError(
            f"privacy.adaptive_layers = '{privacy.adaptive_layers}' with privacy.noise_multiplier "
            f"= {plan.noise_multiplier:g} and cohort.expected = {plan.expected_cohort:g}: clipping "
            f"bits of {len(apart)} groups leave nothing of the norm to the update; lower the "
            f"noise, raise cohort.expected or use 'flat'"
        )
    return AdaptiveClipping.start(
        layers=apart,
        clip=privacy.clip,
        quantile=privacy.adaptive_quantile,
        learning_rate=privacy.adaptive_rate,
        bit_fraction=bit_fraction,
        survival=(1 - config.aggregation.dropout) * plan.participation,
    )


def _clipped_apart(config: Config, layers: Sequence[int]) -> tuple[int, ...]:
    per_layer = config.privacy.adaptive_layers == "per-layer"
    return tuple(layers) if per_layer else (sum(layers),)


def example_steps(config: Config) -> int:
    """Local DP-SGD steps in a round: `epochs` passes over a client's examples in expectation."""
    rate = config.privacy.example_rate or 1.0
    return config.local.epochs * math.ceil(1 / rate - 1e-9)


def parts_of(config: Config, parts: Parts) -> Parts:
    """What lies where in a client's vector, the weight of `cohort.weighting` included.

    Args:
        config: The job's configuration.
        parts: What local training returns: the update and a procedure's blocks.

    Raises:
        ConfigError: Blocks leave nothing of `privacy.clip`, or something does not go with them.
    """
    if config.cohort.weighting == "examples":
        parts = replace(parts, weight_cap=config.cohort.weight_cap or 1)
    if parts.plain:
        return parts
    what = f"the blocks {', '.join(parts.blocks)}" if parts.blocks else "weights"
    refused = {
        f"privacy.adaptive_quantile = {config.privacy.adaptive_quantile}": (
            config.privacy.adaptive_quantile is not None
        ),
        "privacy.mechanism = 'example-gaussian'": config.privacy.mechanism == "example-gaussian",
        "rounds.mode = 'buffered'": config.rounds.mode == "buffered",
    }
    for setting, holds in refused.items():
        if holds:
            raise ConfigError(f"{setting} with {what} besides the update: they do not go together")
    parts.update_clip(config.privacy.clip)
    return parts


def check_rate(config: Config) -> str:
    """One line if the server's step size is the default one of strategies that do not scale it.

    FedAdagrad, FedAdam and FedYogi divide by the size of the update: a step moves each weight by
    about ``server.learning_rate``, whatever the updates are (Reddi et al. 2021, Algorithm 2).
    """
    server = config.server
    if server.strategy not in _ADAPTIVE or server.learning_rate < _LARGE_STEP:
        return ""
    return (
        f"server.learning_rate = {server.learning_rate:g} with server.strategy = "
        f"'{server.strategy}', whose steps move each weight by about that much a round, however "
        f"small updates are: such models tend to stay at chance; try server.learning_rate = 0.01 "
        f"to 0.1"
    )


def strategy_of(
    config: Config,
    plan: PrivacyPlan | None = None,
    dimension: int = 0,
    parts: Parts | None = None,
) -> Strategy:
    """The strategy that a configuration names, in its initial state.

    Args:
        config: The job's configuration.
        plan: The plan derived from it; None where only the name and the numbers are checked.
        dimension: d, the length of the flat model.
        parts: What lies where in a client's vector; None where nobody asks.

    Raises:
        ConfigError: There is no strategy of that name, or it does not take the blocks that clients
            send.
    """
    if config.job.kind != "train":
        return Answering(sheet_of(config).size)
    server = config.server
    strategy = build_strategy(
        server.strategy,
        StrategyOptions(
            learning_rate=server.learning_rate,
            momentum=server.momentum,
            beta1=server.beta1,
            beta2=server.beta2,
            tau=server.tau,
            options=server.options,
            dimension=dimension,
            clients=0 if plan is None else plan.population,
            expected=0.0 if plan is None else plan.expected_cohort,
            rounds=0 if plan is None else config.rounds.count,
        ),
    )
    blocks = () if parts is None else tuple(parts.blocks)
    if blocks and not isinstance(strategy, ReceivingStrategy):
        raise ConfigError(
            f"server.strategy = '{server.strategy}' does not take the blocks {', '.join(blocks)} "
            f"that the local procedure sends; name one with receive(sent)"
        )
    return strategy
