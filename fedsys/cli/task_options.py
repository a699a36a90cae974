"""A task's options as commands take them: ``KEY=VALUE``, or a file with ``[task.options]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["options_in", "options_of"]


def options_of(given: list[str]) -> dict[str, Any]:
    """Options of ``KEY=VALUE``: a value is TOML, or else text.

    Raises:
        ConfigError: something else than ``KEY=VALUE``.
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
    """The options of a configuration file, which has to be of that task.

    Raises:
        ConfigError: there is no such file, or it is of another task.
    """
    from fedsys.config import load
    from fedsys.errors import ConfigError

    section = load(path).task
    if section.name != task:
        raise ConfigError(f"--options {path}: is of task {section.name}, not {task}")
    return dict(section.options)
