"""Values given on the command line: ``section.key=value``."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from typing import Any

from fedsys.errors import ConfigError

__all__ = ["apply"]

_EXCLUSIVE = {"epsilon": "noise_multiplier", "noise_multiplier": "epsilon"}


def apply(overrides: Iterable[str], tree: dict[str, Any]) -> None:
    """Write values over those of a tree, in place.

    `privacy.epsilon` and `privacy.noise_multiplier` replace one another unless both are given, and
    mechanism "none" takes both away.

    Args:
        overrides: as `fedsys.config.load` takes them.
        tree: tables by name.

    Raises:
        ConfigError: an override of another form.
    """
    given: set[str] = set()
    for override in overrides:
        _apply(override, tree, given)


def _apply(override: str, tree: dict[str, Any], given: set[str]) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) < 2 or not all(parts):
        raise ConfigError(f"--set {override}: expected section.key=value")
    try:
        value = tomllib.loads(f"v = {text.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    node = tree
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {part} is a value, not a section")
        node = child
    node[parts[-1]] = value
    given.add(key.strip())
    if parts[0] == "privacy" and len(parts) == 2 and parts[1] in _EXCLUSIVE:
        other = _EXCLUSIVE[parts[1]]
        if f"privacy.{other}" not in given:
            node.pop(other, None)
    if parts == ["privacy", "mechanism"] and value == "none":
        for name in _EXCLUSIVE:
            if f"privacy.{name}" not in given:
                node.pop(name, None)
