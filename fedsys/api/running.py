"""`simulate` and `resume`: jobs from Python, with a notebook's own task and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsys import tasks
from fedsys.config import Config, load
from fedsys.config.named_code import NamedCode
from fedsys.errors import ConfigError
from fedsys.report.progress import observer as shown
from fedsys.run_folder import RunFolder
from fedsys.runs.run import Run
from fedsys.tasks.origin import OBJECT
from simulations import harness

__all__ = ["resume", "simulate"]

Observer = Callable[["harness.RoundReport | str"], None]
Source = Config | Mapping[str, Any] | Path | str | None


def simulate(
    config: Source = None,
    settings: Mapping[str, Any] | None = None,
    *,
    task: object | None = None,
    out: Path | str | None = None,
    data: Path | str | None = None,
    device: str = "auto",
    observer: Observer | None = None,
    progress: bool = True,
    population: Path | str | None = None,
    start: Path | str | None = None,
) -> Run:
    """Trains over virtual clients, as ``fedsys simulate`` does.

    Args:
        config: a loaded configuration, a TOML file, a recipe's name, or None for the quickstart; or
            settings alone, in the form of `settings`, applied to the quickstart.
        settings: keys to replace, ``{"privacy.epsilon": 4}``, None for a key's default; not with a
            loaded `config`.
        task: what to train: a task, a class that builds one from ``task.options``, or a name. An
            object or a class defined in the notebook trains in one process; see `fedsys.tasks`.
        out: the run's folder; by default the first free ``runs/<name>``.
        data: folder with data files.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        observer: called after each round with a `simulations.harness.RoundReport`, and with notices
            as text.
        progress: whether to show progress: in a notebook, on a terminal, or as lines on standard
            error.
        population: folder of all runs on these clients, under one budget.
        start: folder of a finished run whose model this one starts from; the rounds of both count
            in its total.

    Raises:
        FedsysError: with one line that says what is wrong.
    """
    chosen, origin = _job(config, settings or {}, task)
    with shown(quiet=not progress) as bar:
        result = harness.run(
            chosen,
            out=_path(out),
            data=_path(data),
            device=device,
            observer=_both(bar, observer),
            origin=origin,
            population=_path(population),
            start=_path(start),
        )
    return replace(Run.open(result.folder), task=origin.task)


def resume(
    folder: Path | str,
    *,
    task: object | None = None,
    strategy: str | None = None,
    cluster: str | None = None,
    code: Sequence[str] = (),
    data: Path | str | None = None,
    device: str = "auto",
    observer: Observer | None = None,
    progress: bool = True,
) -> Run:
    """Continues an interrupted run; arguments as for `simulate`.

    Args:
        folder: the run's folder.
        task: the task that it was started with, unless that is built in: a folder may name any
            code, so a name has to be given by you.
        strategy: the name of the strategy that it was started with, unless that is built in.
        cluster: the address of the Ray cluster that it uses, if it does.
        code: the names of its procedure, partition and metrics, as far as they are not built in.
        data: folder with data files.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        observer: called after each round, and with notices.
        progress: whether to show progress.

    Raises:
        FedsysError: there is no run, or it is damaged or cannot be continued.
    """
    path = Path(folder)
    stored = RunFolder.open(path).read_config().task
    named = NamedCode(
        task=task if isinstance(task, str) else None,
        strategy=strategy,
        cluster=cluster,
        code=tuple(code),
    )
    given = None if task is None or isinstance(task, str) else task
    if stored.name.endswith(OBJECT) and given is None:
        raise ConfigError(
            f"{path}: the run was given a task as an object, {stored.name}, which its name cannot "
            f"rebuild; give the same again: fedsys.resume(folder, task=...)"
        )
    origin = None if given is None else tasks.Origin.of(given, stored.options)
    with shown(quiet=not progress) as bar:
        result = harness.resume(
            path,
            data=_path(data),
            device=device,
            observer=_both(bar, observer),
            origin=origin,
            named=named,
        )
    trained = None if origin is None else origin.task
    if isinstance(task, str):
        trained = tasks.load(task, stored.options)
    return replace(Run.open(result.folder), task=trained)


def _job(
    config: Source, settings: Mapping[str, Any], task: object | None
) -> tuple[Config, tasks.Origin]:
    """The configuration, which names the task, and the task."""
    if isinstance(config, Config) and settings:
        raise ConfigError("settings replace keys of a file or recipe, not of a loaded Config")
    if isinstance(config, Mapping):
        settings = {**config, **settings}
        config = None
    tasks.look_beside(config)
    settings, given = _task_of(settings, task)
    chosen = config if isinstance(config, Config) else load(config, values=settings)
    section = chosen.task
    origin = tasks.Origin.of(section.name if given is None else given, section.options)
    named = section.model_copy(update={"name": origin.name, "options": dict(origin.options)})
    return chosen.model_copy(update={"task": named}), origin


def _task_of(settings: Mapping[str, Any], task: object | None) -> tuple[Mapping[str, Any], object]:
    """Settings without the task's name, and the given task; None if settings only name it.

    A task that replaces a recipe's task does not inherit its options.
    """
    named = settings.get("task.name")
    if task is not None and named is not None:
        raise ConfigError("task and settings['task.name'] both say what to train; give one of them")
    given = task if task is not None else None if isinstance(named, str) else named
    if given is None:
        return settings, None
    rest = {key: value for key, value in settings.items() if key != "task.name"}
    return {"task.options": {}, **rest}, given


def _both(first: Observer, second: Observer | None) -> Observer:
    if second is None:
        return first
    also = second

    def watch(event: harness.RoundReport | str) -> None:
        first(event)
        also(event)

    return watch


def _path(value: Path | str | None) -> Path | None:
    return None if value is None else Path(value)
