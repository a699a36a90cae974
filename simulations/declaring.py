"""A table's ranges and values from a query's answers, with what the query cost stated next to them.

The answers are noisy and public, so that a declaration made of them reveals nothing more. The
query's rounds go into ``[tuning]``: the header of whatever run is trained with the declaration
states them, and its total covers both.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsys.audit import audit_run
from fedsys.audit.tuning import Before
from fedsys.config import Config
from fedsys.config.named_code import NamedCode
from fedsys.errors import ConfigError
from fedsys.privacy import plan_of, read_ledger, replay
from fedsys.privacy.accounting.adding import cost_together, part_of, together
from fedsys.queries import Question, parse
from fedsys.queries.questions import Quantiles, Top
from fedsys.run_folder import RunFolder

__all__ = ["declared_by"]

_POPULATION = ("partition", "clients", "alpha", "shards", "held_out")


def declared_by(run: Path, *, named: str | None = None) -> dict[str, Any]:
    """Tables of a configuration: ``task``, ``population`` and ``tuning``.

    Args:
        named: the run's task, where it is custom code, as the user named it.
        run: a query's folder, on a task whose options declare ``ranges`` and ``values``. A column
            that was asked for ``quantiles`` gets the range from the lowest to the highest of them;
            one that was asked for ``top`` gets the values that came back.

    Raises:
        ConfigError: it is no query with a privacy claim whose audit holds, nothing that it asked
            declares a column, or an answer is too noisy for a range.
        RunFolderError: there is no such run.
    """
    folder = RunFolder.open(run)
    config = folder.read_config()
    wanted = NamedCode.of(config)
    replace(wanted, task=named).require(config, run)
    if config.job.kind != "query":
        raise ConfigError(f"{run}: a job of kind '{config.job.kind}'; ranges come from a query")
    checked = audit_run(run)
    if not checked.passed or checked.withheld is not None:
        failed = [each.name for each in checked.claims if each.holds is False]
        raise ConfigError(
            f"{run}: its audit does not hold ({', '.join(failed) or 'no privacy claim'}); see "
            f"`fedsys audit {run}`"
        )
    answers = (folder.read_summary().get("query") or {}).get("answers")
    if not answers:
        raise ConfigError(f"{run}: its round gave no answer")
    options = dict(config.task.options)
    found = 0
    for question, answer in zip(parse(config.query.questions), answers, strict=True):
        key, column, value = _declared(question, answer["estimates"], run)
        if key:
            options[key] = {**options.get(key, {}), column: value}
            found += 1
    if not found:
        raise ConfigError(
            f"{run}: asked neither for quantiles nor for the top values of a column, which declare "
            f"ranges and values"
        )
    population = {
        key: value
        for key in _POPULATION
        if (value := getattr(config.population, key)) is not None
        and key in config.population.model_fields_set
    }
    return {
        "task": {"name": config.task.name, "options": options},
        "population": population,
        "tuning": _charged(run, config),
    }


def _declared(
    question: Question, estimates: list[dict[str, Any]], run: Path
) -> tuple[str, str, Any]:
    """Key, column and value of one declaration; an empty key where a question declares nothing."""
    if isinstance(question, Top):
        return "values", question.column, [each["label"] for each in estimates]
    if not isinstance(question, Quantiles):
        return "", "", None
    quantiles = [each["value"] for each in estimates if each["label"].startswith("quantile")]
    low, high = (float(f"{value:.6g}") for value in (min(quantiles), max(quantiles)))
    if not low < high:
        raise ConfigError(
            f"{run}: question {question.name!r} gives the range {low:g} to {high:g}; ask for a low "
            f"and a high quantile, such as [0.01, 0.99], or spend more on it"
        )
    return "ranges", question.column, [low, high]


def _charged(run: Path, config: Config) -> dict[str, Any]:
    """``[tuning]``: the query, and the runs before it that its own header states."""
    view = read_ledger(run / "ledger.jsonl")
    plan = plan_of(view.header)
    if not plan.protected:
        raise ConfigError(f"{run}: mechanism 'none' promises nothing: choose a mechanism")
    parts = [part_of(plan, "outsider", replay(view, None)[0].outsider.steps())]
    before = Before.of(view.header.get("tuning"))
    if before is not None:
        if before.part is None:
            raise ConfigError(f"{run}: its header states earlier runs without their rounds")
        parts.append(before.part)
    epsilon, delta = cost_together(parts)
    return {
        "runs": 1 + (0 if before is None else before.runs),
        "epsilon": epsilon,
        "delta": delta,
        "heads": [*config.tuning.heads, view.head],
        "part": together(parts).to_json(),
    }
