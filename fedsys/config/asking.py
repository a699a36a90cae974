"""What a configuration whose rounds ask questions must hold, and its defaults.

A question is a job of one round on everybody, under the same mechanisms, bounds and budget as
training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fedsys.config.evaluation import Evaluation
from fedsys.config.sections import (
    Aggregation,
    Cohort,
    Job,
    Population,
    Privacy,
    Query,
    Rounds,
    TaskSection,
)
from fedsys.errors import ConfigError
from fedsys.queries import ASKED_MECHANISMS, ASKED_SAMPLINGS, parse

__all__ = ["Asking", "asks_fit", "with_question_defaults"]

_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "rounds": {"count": 1},
    "evaluation": {"data": "none"},
}


class Asking(Protocol):
    """The tables that `asks_fit` compares."""

    @property
    def job(self) -> Job: ...
    @property
    def task(self) -> TaskSection: ...
    @property
    def query(self) -> Query: ...
    @property
    def population(self) -> Population: ...
    @property
    def cohort(self) -> Cohort: ...
    @property
    def rounds(self) -> Rounds: ...
    @property
    def privacy(self) -> Privacy: ...
    @property
    def aggregation(self) -> Aggregation: ...
    @property
    def evaluation(self) -> Evaluation: ...


def with_question_defaults(tree: object) -> object:
    """The tree with the defaults of a job that asks: its name, one round, no test examples, and
    everybody as cohort where the population is known. Any other tree is left to validation."""
    if not isinstance(tree, Mapping) or not isinstance(tree.get("job"), Mapping):
        return tree
    kind = tree["job"].get("kind", "train")
    if kind not in ("query", "evaluate"):
        return tree
    found = dict(tree)
    defaults: dict[str, Mapping[str, object]] = {"job": {"name": kind}, **_DEFAULTS}
    for section, values in defaults.items():
        given = found.get(section, {})
        if isinstance(given, Mapping):
            found[section] = dict(values) | dict(given)
    population, cohort = found.get("population", {}), found.get("cohort", {})
    if isinstance(population, Mapping) and isinstance(cohort, Mapping):
        clients = population.get("clients")
        if clients is not None and "expected" not in cohort:
            found["cohort"] = {**cohort, "expected": clients}
    return found


def asks_fit(config: Asking) -> None:
    """Questions are asked in one round whose sum they can be read from."""
    kind = config.job.kind
    if config.population.held_out and config.population.partition == "resampled":
        raise ConfigError(
            f"population.held_out = {config.population.held_out:g} with population.partition = "
            f"'resampled', whose clients share rows: use another partition"
        )
    if kind == "train":
        if config.query.questions:
            raise ConfigError(
                "query.questions with job.kind = 'train': set job.kind to 'query' or 'evaluate', "
                "or remove them"
            )
        _evaluates_between(config)
        return
    where = f"job.kind = '{kind}'"
    if config.evaluation.on_devices_every or config.evaluation.questions:
        raise ConfigError(
            f"evaluation.on_devices_every and evaluation.questions with {where}: are for training "
            f"jobs; ask in query.questions"
        )
    parse(config.query.questions)
    wrong = {
        "rounds.count": (config.rounds.count, 1),
        "rounds.mode": (config.rounds.mode, "synchronous"),
        "privacy.clip": (config.privacy.clip, 1.0),
        "privacy.adaptive_quantile": (config.privacy.adaptive_quantile, None),
        "privacy.unit": (config.privacy.unit, "client"),
        "aggregation.encoding": (config.aggregation.encoding, "wide"),
        "cohort.participation": (config.cohort.participation, 1.0),
        "evaluation.data": (config.evaluation.data, "none"),
        "evaluation.clients": (config.evaluation.clients, False),
    }
    _check_askable(config, where, wrong)
    if (kind == "evaluate") != bool(config.query.model):
        raise ConfigError(
            f"query.model = '{config.query.model}' with {where}: an evaluation needs the folder "
            f"of the run whose model it looks at (`--of RUN`), and a query has none"
        )


def _check_askable(config: Asking, where: str, fixed: Mapping[str, tuple[object, object]]) -> None:
    """Refuse what no round of questions can be asked with.

    Args:
        config: the job's.
        where: the key that has questions asked, for the message.
        fixed: by key, its value and the only one that is allowed.
    """
    for key, (value, only) in fixed.items():
        if value != only:
            raise ConfigError(
                f"{key} = {value} with {where}: leave it out; only {only} can be asked with"
            )
    if config.privacy.mechanism not in ASKED_MECHANISMS:
        raise ConfigError(
            f"privacy.mechanism = '{config.privacy.mechanism}' with {where}: allowed are "
            f"{', '.join(ASKED_MECHANISMS)}"
        )
    if config.cohort.sampling not in ASKED_SAMPLINGS:
        raise ConfigError(
            f"cohort.sampling = '{config.cohort.sampling}' with {where}: allowed are "
            f"{', '.join(ASKED_SAMPLINGS)}"
        )


def _evaluates_between(config: Asking) -> None:
    """Rounds between those of training ask in a vector of the same length, under the same plan."""
    every, asked = config.evaluation.on_devices_every, config.evaluation.questions
    if not every:
        if asked:
            raise ConfigError(
                "evaluation.questions without evaluation.on_devices_every: say after how many "
                "rounds of training they are asked, or remove them"
            )
        return
    where = f"evaluation.on_devices_every = {every}"
    if not asked:
        raise ConfigError(
            f"{where} asks nothing; add a table [[evaluation.questions]] with ask and name, such "
            f"as ask = 'devices' and name = 'accuracy by device'"
        )
    parse(asked)
    if not config.population.held_out:
        raise ConfigError(
            f"{where} with population.held_out = 0: clients would evaluate on what they train on; "
            f"set population.held_out = 0.2"
        )
    wrong = {
        "rounds.mode": (config.rounds.mode, "synchronous"),
        "privacy.adaptive_quantile": (config.privacy.adaptive_quantile, None),
        "privacy.unit": (config.privacy.unit or "client", "client"),
        "aggregation.encoding": (config.aggregation.encoding, "wide"),
        "cohort.participation": (config.cohort.participation, 1.0),
        "cohort.weighting": (config.cohort.weighting, "none"),
    }
    _check_askable(config, where, wrong)
    if config.task.graph_sha256:
        raise ConfigError(
            f"task.graph_sha256 with {where}: devices that train from a graph answer no questions"
        )
