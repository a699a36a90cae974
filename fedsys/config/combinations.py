"""Values that are allowed individually but not together.

Each function takes the tables that it compares, and raises a ConfigError: one line naming the keys,
their values and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsys.config.evaluation import Evaluation
from fedsys.config.mistakes import did_you_mean
from fedsys.config.sections import Aggregation, Cohort, Population, Privacy, Rounds
from fedsys.errors import ConfigError

__all__ = [
    "adapts",
    "buffers_accounted",
    "buffers_fit",
    "cohort_fits",
    "coin_is_added",
    "losses_fit",
    "narrow_fits",
    "needs_noise",
    "one_holder",
    "protects_examples",
    "sampling_known",
    "stop_fits",
    "summed_fits",
    "weighting_fits",
    "with_buffer_as_cohort",
]


def needs_noise(privacy: Privacy) -> None:
    """Noise is configured if, and only if, a mechanism adds it."""
    if privacy.mechanism == "none":
        for key in ("epsilon", "noise_multiplier"):
            if getattr(privacy, key) is not None:
                raise ConfigError(
                    f"privacy.{key} = {getattr(privacy, key)} promises privacy that mechanism "
                    f"'none' does not give; remove it, or choose a mechanism"
                )
    elif privacy.epsilon is None and privacy.noise_multiplier is None:
        raise ConfigError(
            f"privacy.mechanism = '{privacy.mechanism}' needs privacy.epsilon (the noise is "
            f"derived) or privacy.noise_multiplier (epsilon is derived)"
        )


def weighting_fits(cohort: Cohort, privacy: Privacy, aggregation: Aggregation) -> None:
    """Weights have a cap, and travel in a vector of their own."""
    if cohort.weighting == "none":
        if cohort.weight_cap is not None:
            raise ConfigError(
                f"cohort.weight_cap = {cohort.weight_cap} with cohort.weighting = 'none': leave it "
                f"out, or set cohort.weighting = 'examples'"
            )
        return
    if cohort.weight_cap is None:
        raise ConfigError(
            "cohort.weighting = 'examples' needs cohort.weight_cap: the number of examples at "
            "which a client's weight is 1"
        )
    if aggregation.protocol == "float":
        raise ConfigError(
            "cohort.weighting = 'examples' with aggregation.protocol = 'float': use 'ideal' or "
            "'secure'"
        )
    if privacy.mechanism == "example-gaussian":
        raise ConfigError(
            "cohort.weighting = 'examples' with privacy.mechanism = 'example-gaussian', which "
            "protects examples and would show how many there are: use weighting = 'none'"
        )


def stop_fits(evaluation: Evaluation) -> None:
    """A run that may end early has a metric of the coordinator's own, with a direction."""
    stop = evaluation.stop
    if not stop.metric:
        return
    if evaluation.data == "none":
        raise ConfigError(
            f"evaluation.stop.metric = '{stop.metric}' with evaluation.data = 'none': a run ends "
            f"early by a metric on the coordinator's own test data; clients' figures would cost "
            f"epsilon: set evaluation.data = 'test', or remove evaluation.stop"
        )
    if stop.less is None:
        raise ConfigError(
            f"evaluation.stop.metric = '{stop.metric}': its name does not say whether more or less "
            f"of it is better; set evaluation.stop.better = 'less' or 'more'"
        )


_SAMPLINGS = ("poisson", "fixed", "min-separation", "arrivals")


def sampling_known(cohort: Cohort, privacy: Privacy) -> None:
    """Cohorts are drawn in a known way, or chosen by code from which nothing is claimed."""
    named = f"cohort.sampling = '{cohort.sampling}'"
    if ":" not in cohort.sampling:
        if cohort.sampling not in _SAMPLINGS:
            raise ConfigError(
                f"{named}: allowed are {', '.join(_SAMPLINGS)}"
                f"{did_you_mean(cohort.sampling, _SAMPLINGS)}; your own is written "
                f'"package.module:Attr"'
            )
        return
    if privacy.max_participations is None:
        raise ConfigError(
            f"{named}: nothing is claimed from how code of your own chooses, so every client "
            f"counts as being in privacy.max_participations rounds: set it, to rounds.count if "
            f"a client may be in all"
        )
    if cohort.min_separation is not None:
        raise ConfigError(
            f"cohort.min_separation = {cohort.min_separation} with {named}: no distance between "
            f"rounds is claimed; leave it out"
        )
    if privacy.mechanism == "banded-mf":
        raise ConfigError(
            f"{named} with privacy.mechanism = 'banded-mf', which needs the distance between a "
            f"client's rounds: use cohort.sampling = 'min-separation', or another mechanism"
        )


def cohort_fits(population: Population, cohort: Cohort) -> None:
    """A cohort is no larger than the population, and lies between its bounds."""
    clients = population.clients
    if clients is not None and cohort.expected > clients:
        raise ConfigError(
            f"cohort.expected = {cohort.expected} is more than population.clients = {clients}; "
            f"ask for at most {clients}"
        )
    if cohort.cap is not None and cohort.cap < cohort.expected:
        raise ConfigError(
            f"cohort.cap = {cohort.cap} is below cohort.expected = {cohort.expected}; a cohort "
            f"above the cap aborts its round, so raise it or leave it out"
        )
    if cohort.min_survivors is not None and cohort.min_survivors > cohort.expected:
        raise ConfigError(
            f"cohort.min_survivors = {cohort.min_survivors} is above cohort.expected = "
            f"{cohort.expected}; lower it or leave it out"
        )
    if cohort.sampling == "min-separation" and cohort.min_separation is None:
        raise ConfigError(
            "cohort.sampling = 'min-separation' needs cohort.min_separation (in rounds)"
        )


def narrow_fits(aggregation: Aggregation) -> None:
    """The modulus suits the encoding."""
    if 0 < aggregation.modulus_bits < 8:
        raise ConfigError(
            f"aggregation.modulus_bits = {aggregation.modulus_bits}: allowed are 8 to 64, and 0 "
            f"for the least that fits"
        )
    if aggregation.encoding == "narrow" and aggregation.modulus_bits > 20:
        raise ConfigError(
            f"aggregation.modulus_bits = {aggregation.modulus_bits} with encoding 'narrow': "
            f"allowed are 8 to 20; use encoding = 'wide' for more"
        )


def losses_fit(aggregation: Aggregation) -> None:
    """Secure aggregation withstands the assumed losses and colluders."""
    if aggregation.dropout + aggregation.corrupt >= 0.5:
        raise ConfigError(
            f"aggregation.dropout + aggregation.corrupt = "
            f"{aggregation.dropout + aggregation.corrupt:g}: secure aggregation withstands less "
            f"than 0.5 in all"
        )


def summed_fits(aggregation: Aggregation) -> None:
    """The protocol can sum this encoding, with noise drawn as configured."""
    if aggregation.protocol == "secure" and aggregation.noise == "once":
        raise ConfigError(
            "aggregation.noise = 'once' with protocol 'secure', under which every client adds its "
            "own share: use noise = 'per-client', or protocol = 'ideal'"
        )
    if aggregation.protocol != "float":
        return
    if aggregation.encoding != "wide" or aggregation.modulus_bits > 40:
        raise ConfigError(
            f"aggregation.encoding = '{aggregation.encoding}', modulus_bits = "
            f"{aggregation.modulus_bits} with protocol 'float': allowed are 'wide' and at most 40"
        )


def protects_examples(privacy: Privacy, aggregation: Aggregation) -> None:
    """The mechanism protects the unit that is promised."""
    if privacy.mechanism == "none" or (privacy.unit == "example") == (
        privacy.mechanism == "example-gaussian"
    ):
        if privacy.mechanism == "example-gaussian" and aggregation.protocol == "float":
            raise ConfigError(
                "aggregation.protocol = 'float' with privacy.mechanism = 'example-gaussian': use "
                "'ideal' or 'secure'"
            )
        return
    raise ConfigError(
        f"privacy.unit = '{privacy.unit}' with privacy.mechanism = '{privacy.mechanism}': "
        f"example-gaussian protects examples (unit = 'example'), the others protect clients"
    )


def one_holder(population: Population, privacy: Privacy) -> None:
    """Where examples are the unit, each is held once, by one client."""
    if privacy.unit == "example" and population.partition == "resampled":
        raise ConfigError(
            "population.partition = 'resampled' with privacy.unit = 'example': it gives each "
            "example to any number of clients, any number of times, while the cost is that of one "
            "copy; use another partition, or unit = 'client'"
        )


def adapts(privacy: Privacy, aggregation: Aggregation) -> None:
    """Clipping adapts only where noise hides the clipping bits."""
    if privacy.adaptive_quantile is None:
        return
    where = f"privacy.adaptive_quantile = {privacy.adaptive_quantile:g}"
    if privacy.mechanism not in ("distributed-gaussian", "central-gaussian", "local-gaussian"):
        raise ConfigError(
            f"{where}: mechanism '{privacy.mechanism}' has no noise that hides the clipping bits, "
            f"or noise that fixes the norm; use distributed-gaussian, central-gaussian or "
            f"local-gaussian"
        )
    if aggregation.protocol == "float":
        raise ConfigError(f"{where} with aggregation.protocol = 'float': use 'ideal' or 'secure'")


def coin_is_added(cohort: Cohort, aggregation: Aggregation) -> None:
    """The clients' own coin is tossed only where clients answer one by one."""
    if cohort.participation < 1 and aggregation.protocol == "float":
        raise ConfigError(
            f"cohort.participation = {cohort.participation:g} with aggregation.protocol = "
            f"'float': use 'ideal' or 'secure'"
        )


def with_buffer_as_cohort(tree: Any) -> Any:
    """The tree with `cohort.expected` set to the buffer's size, where rounds are buffered and it is
    left out; a tree of any other shape is left to validation."""
    if not isinstance(tree, Mapping):
        return tree
    rounds, cohort = tree.get("rounds"), tree.get("cohort", {})
    if not isinstance(rounds, Mapping) or not isinstance(cohort, Mapping):
        return tree
    if rounds.get("mode") != "buffered" or "buffer" not in rounds or "expected" in cohort:
        return tree
    return {**tree, "cohort": {**cohort, "expected": rounds["buffer"]}}


def buffers_fit(rounds: Rounds, population: Population, cohort: Cohort) -> None:
    """Buffered rounds state their size, and every buffer has that size."""
    if rounds.mode == "synchronous":
        for key in ("buffer", "concurrency"):
            if getattr(rounds, key) is not None:
                raise ConfigError(
                    f"rounds.{key} = {getattr(rounds, key)} with rounds.mode = 'synchronous': "
                    f"remove it, or set rounds.mode = 'buffered'"
                )
        if cohort.sampling == "arrivals":
            raise ConfigError(
                "cohort.sampling = 'arrivals' with rounds.mode = 'synchronous': set rounds.mode = "
                "'buffered', or choose poisson, fixed or min-separation"
            )
        return
    size, training = rounds.buffer, rounds.concurrency
    if size is None or training is None:
        key = "buffer" if size is None else "concurrency"
        raise ConfigError(
            f"rounds.mode = 'buffered' needs rounds.{key}: how many "
            + ("uploads close a buffer" if size is None else "clients train at a time")
        )
    if size > training:
        raise ConfigError(
            f"rounds.buffer = {size} is more than rounds.concurrency = {training}; at least as "
            f"many clients must train as a buffer takes"
        )
    if population.clients is not None and training > population.clients:
        raise ConfigError(
            f"rounds.concurrency = {training} is more than population.clients = "
            f"{population.clients}; ask for at most {population.clients}"
        )
    if cohort.sampling != "arrivals":
        raise ConfigError(
            f"cohort.sampling = '{cohort.sampling}' with rounds.mode = 'buffered': a buffer takes "
            f"the uploads that come first, which no sampling describes; use 'arrivals'"
        )
    for key in ("expected", "cap", "min_survivors"):
        if getattr(cohort, key) not in (None, size):
            raise ConfigError(
                f"cohort.{key} = {getattr(cohort, key)} with rounds.buffer = {size}: every buffer "
                f"holds exactly that many uploads; leave it out, or set it to {size}"
            )
    if cohort.participation < 1 or cohort.min_separation is not None:
        key = "participation" if cohort.participation < 1 else "min_separation"
        raise ConfigError(
            f"cohort.{key} = {getattr(cohort, key):g} with rounds.mode = 'buffered', which claims "
            f"no amplification: leave it out"
        )


def buffers_accounted(rounds: Rounds, privacy: Privacy, aggregation: Aggregation) -> None:
    """A buffered round's noise and norm do not depend on which buffer an upload enters."""
    if rounds.mode == "synchronous":
        return
    where = "with rounds.mode = 'buffered'"
    if privacy.mechanism in ("banded-mf", "example-gaussian"):
        raise ConfigError(
            f"privacy.mechanism = '{privacy.mechanism}' {where}: use distributed-gaussian, "
            f"central-gaussian, local-gaussian or none"
        )
    if privacy.max_participations is None:
        raise ConfigError(
            f"privacy.max_participations is not set {where}: epsilon is composed over the buffers "
            f"that one client may contribute to; set it"
        )
    if privacy.adaptive_quantile is not None:
        raise ConfigError(
            f"privacy.adaptive_quantile = {privacy.adaptive_quantile:g} {where}: uploads of one "
            f"buffer started under different norms; use a fixed privacy.clip"
        )
    if aggregation.encoding != "wide":
        raise ConfigError(
            f"aggregation.encoding = '{aggregation.encoding}' {where}: a client does not know the "
            f"buffer whose rotation it would need; use 'wide'"
        )
