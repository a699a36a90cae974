"""Values that replace those of a source: ``section.key=value``, or typed ones from Python."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from fedsys.errors import ConfigError

__all__ = ["apply", "apply_values", "plain"]

_EXCLUSIVE = {"epsilon": "noise_multiplier", "noise_multiplier": "epsilon"}


def apply(overrides: Iterable[str], tree: dict[str, Any]) -> None:
    """Replace values in a tree, in place.

    `privacy.epsilon` and `privacy.noise_multiplier` replace each other unless both are given, and
    mechanism "none" removes both.

    Args:
        overrides: as for `fedsys.config.load`.
        tree: tables by name.

    Raises:
        ConfigError: an override is malformed.
    """
    given: set[str] = set()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: expected section.key=value")
        try:
            value = tomllib.loads(f"v = {text.strip()}")["v"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        _assign(key.strip(), value, tree, given, f"--set {override}")


def apply_values(values: Mapping[str, Any], tree: dict[str, Any]) -> None:
    """The same with values from Python, ``{"privacy.epsilon": 4}`` or ``{"privacy": {...}}``.

    NumPy's and torch's scalars and arrays count as the numbers and lists that they hold, paths as
    text. None removes a key, so that its default applies.

    Raises:
        ConfigError: a value has no TOML type; the message names its key.
    """
    given: set[str] = set()
    for key, value in _flat(values):
        where = f"settings[{key!r}]"
        if value is None:
            _remove(key, tree)
        else:
            _assign(key, plain(value, where), tree, given, where)


def plain(value: Any, where: str) -> Any:
    """A value from Python as TOML would hold it.

    >>> import numpy as np
    >>> plain({"rate": np.float64(0.5), "sizes": np.arange(2)}, "settings")
    {'rate': 0.5, 'sizes': [0, 1]}

    Raises:
        ConfigError: the value has no TOML type; the message starts with `where`.
    """
    if isinstance(value, (bool, int, float, str)):
        # An int or float may be of a subclass, such as numpy.float64.
        kind: type = next(each for each in (bool, int, float, str) if isinstance(value, each))
        return value if type(value) is kind else kind(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each, f"{where}[{key!r}]") for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each, where) for each in value]
    if hasattr(value, "tolist"):  # NumPy and torch, without importing either
        return plain(value.tolist(), where)
    raise ConfigError(
        f"{where}: a {type(value).__name__} is not a setting; give a number, text, a path, a list "
        f"or a table of them"
    )


def _flat(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if "." not in str(key) and isinstance(value, Mapping):
            yield from ((f"{key}.{name}", each) for name, each in value.items())
        else:
            yield str(key), value


def _remove(key: str, tree: dict[str, Any]) -> None:
    *sections, last = key.split(".")
    node: Any = tree
    for section in sections:
        node = node.get(section) if isinstance(node, dict) else None
    if isinstance(node, dict):
        node.pop(last, None)


def _assign(key: str, value: Any, tree: dict[str, Any], given: set[str], where: str) -> None:
    parts = key.split(".")
    if len(parts) < 2 or not all(parts):
        raise ConfigError(f"{where}: expected section.key=value")
    node = tree
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{where}: {part} is a value, not a section")
        node = child
    node[parts[-1]] = value
    given.add(key)
    if parts[0] == "privacy" and len(parts) == 2 and parts[1] in _EXCLUSIVE:
        other = _EXCLUSIVE[parts[1]]
        if f"privacy.{other}" not in given:
            node.pop(other, None)
    if parts == ["privacy", "mechanism"] and value == "none":
        for name in _EXCLUSIVE:
            if f"privacy.{name}" not in given:
                node.pop(name, None)
