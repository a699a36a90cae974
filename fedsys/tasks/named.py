"""Functions of the user's own that a configuration names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from fedsys.current_folder import importable_here
from fedsys.errors import ConfigError

__all__ = ["attribute_of"]


def attribute_of(name: str, key: str) -> Callable[..., Any]:
    """What ``"package.module:Attr"`` names, looked for in the current folder too.

    Args:
        name: As the configuration has it.
        key: The configuration's key, for errors.

    Raises:
        ConfigError: there is nothing callable of that name.
    """
    module_name, _, attribute = name.partition(":")
    try:
        with importable_here():
            found = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        words = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{key} = {name!r} cannot be loaded: {type(error).__name__}: {words}"
        ) from error
    if not callable(found):
        raise ConfigError(f"{key} = {name!r} is a {type(found).__name__}, not a function")
    made: Callable[..., Any] = found
    return made
