"""A task's options as commands take them: ``KEY=VALUE``, or a file with ``[task.options]``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedsys.config.sections import TaskSection

__all__ = ["TaskOfRun", "options_in", "options_of", "task_in"]

TaskOfRun = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:ATTR", help="Import this task, which the run names; only if you trust it."
    ),
]
"""The option that names a task of one's own, which a run's folder names too."""


def options_of(given: list[str]) -> dict[str, Any]:
    """Options from ``KEY=VALUE``: a value is TOML, or otherwise text.

    Raises:
        ConfigError: one is not ``KEY=VALUE``.
    """
    import tomllib

    from fedsys.errors import ConfigError

    found: dict[str, Any] = {}
    for each in given:
        key, equals, text = each.partition("=")
        if not equals or not key:
            raise ConfigError(f"--option {each}: expected KEY=VALUE")
        try:
            found[key] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            found[key] = text
    return found


def options_in(path: Path, task: str) -> dict[str, Any]:
    """The options of a configuration file, which must be for that task.

    Raises:
        ConfigError: there is no such file, or it is for another task.
    """
    from fedsys.errors import ConfigError

    section = task_in(path)
    if section.name != task:
        raise ConfigError(f"--options {path}: is for task {section.name}, not {task}")
    return dict(section.options)


def task_in(path: Path) -> TaskSection:
    """The table ``[task]`` of a file that may hold nothing else.

    Raises:
        ConfigError: there is no such file, or no such table in it.
    """
    from pydantic import ValidationError

    from fedsys.bounded_toml import read_toml
    from fedsys.config.sections import TaskSection
    from fedsys.errors import ConfigError

    try:
        return TaskSection.model_validate(read_toml(path)["task"])
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except KeyError:
        raise ConfigError(f"{path}: has no table [task]") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["task", *map(str, first["loc"])])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
