"""A file of questions as a job's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsys.bounded_toml import read_toml
from fedsys.errors import ConfigError
from fedsys.run_folder import RunFolder

__all__ = ["asking_tree", "spec_settings"]

_INHERITED = ("partition", "clients", "alpha", "shards", "examples", "held_out")


def spec_settings(spec: Path, *, task: str | None, of: Path | None) -> dict[str, Any]:
    """The tables of a configuration from a file of questions.

    The file is a configuration whose questions may stand at the top, as ``[[questions]]``.

    Args:
        spec: the file.
        task: name of the task, where the file does not say it.
        of: folder of the run whose model is evaluated.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or contradicts the arguments; or the
            run's task is custom code, which nobody named here.
    """
    try:
        tree = read_toml(spec)
    except OSError as error:
        raise ConfigError(f"{spec}: {(error.strerror or 'cannot be read').lower()}") from None
    except ValueError as error:
        raise ConfigError(f"{spec}: not valid TOML: {error}") from None
    said = tree.get("task")
    named = (task, said.get("name") if isinstance(said, dict) else None)
    tree = asking_tree(tree, str(spec), of)
    inherited = tree.get("task", {}).get("name", "") if of is not None else ""
    if ":" in str(inherited) and inherited not in named:
        raise ConfigError(
            f"{spec}: {of} was made with the custom code {inherited}; if you trust it, name it "
            f"there: task.name = {inherited!r}"
        )
    if task is not None:
        section = tree.setdefault("task", {})
        if isinstance(section, dict):
            if section.get("name", task) != task:
                raise ConfigError(
                    f"{spec}: task.name = {section['name']!r}, but {task!r} is asked: leave one out"
                )
            section["name"] = task
    return tree


def asking_tree(
    tree: dict[str, Any], where: str, of: Path | None, *, partition: object = None
) -> dict[str, Any]:
    """A tree with its questions in place, and what an evaluation takes from its run.

    Args:
        tree: tables by name, with the questions at the top or in ``query``; changed.
        where: what it came from, for messages.
        of: folder of the run whose model is evaluated.
        partition: name of a partition that the tree will have in place of the run's.

    Raises:
        ConfigError: nothing is asked, or in two places; or the run's partition is custom code,
            which nobody named here.
        RunFolderError: there is no such run.
    """
    questions, kind = tree.pop("questions", None), tree.pop("kind", None)
    asked = dict(tree.get("query") or {}) if isinstance(tree.get("query") or {}, dict) else {}
    if questions is not None:
        if "questions" in asked:
            raise ConfigError(f"{where}: has questions twice, at the top and in [query]")
        asked["questions"] = questions
    if not asked.get("questions"):
        raise ConfigError(f"{where}: asks nothing; add a table [[questions]] with ask and name")
    job = dict(tree.get("job") or {})
    job.setdefault("kind", kind or ("query" if of is None else "evaluate"))
    tree["job"] = job
    if of is not None:
        asked["model"] = str(of)
        _inherit(tree, of, where, partition)
    tree["query"] = asked
    return tree


def _inherit(tree: dict[str, Any], of: Path, where: str, partition: object) -> None:
    """Task, population and seed as the evaluated run had them, where the tree does not say."""
    there = RunFolder.open(of).read_config()
    task = dict(tree.get("task") or {})
    task.setdefault("name", there.task.name)
    task.setdefault("options", there.task.options)
    tree["task"] = task
    population = dict(tree.get("population") or {})
    deals = there.population.partition
    if ":" in deals and "partition" not in population and deals != partition:
        raise ConfigError(
            f"{where}: {of} was made with the custom code {deals}; if you trust it, name it there: "
            f"population.partition = {deals!r}"
        )
    for key in _INHERITED:
        value = getattr(there.population, key)
        if value is not None:
            population.setdefault(key, value)
    tree["population"] = population
    tree["job"].setdefault("seed", there.job.seed)
