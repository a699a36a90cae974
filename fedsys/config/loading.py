"""Loads a configuration from its source, and writes it back as TOML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError

from fedsys.config.mistakes import explain
from fedsys.config.overrides import apply, apply_values
from fedsys.config.source import read, tables_of
from fedsys.config.tree import Config
from fedsys.errors import ConfigError

__all__ = ["dump", "load", "parse", "validate"]


def load(
    source: Path | str | None,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
) -> Config:
    """Read a configuration.

    Args:
        source: A TOML file, the name of a shipped recipe, or None for the quickstart.
        overrides: ``section.key=value`` each, applied in order; the value is read as TOML, and
            as a bare string where it is not valid TOML.
        values: the same from Python, ``{"section.key": value}``; None removes a key.

    Raises:
        ConfigError: one line naming the key, its value, what is allowed and the nearest name.
    """
    tree = read(source)
    apply(overrides, tree)
    apply_values(values or {}, tree)
    return validate(tree)


def parse(content: bytes, where: str) -> Config:
    """The configuration that untrusted bytes hold.

    Args:
        content: TOML.
        where: the subject of an error's message.

    Raises:
        ConfigError: they hold none; nothing that they name is imported.
    """
    tree = tables_of(content, where)
    try:
        return validate(tree)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def validate(tree: Mapping[str, Any]) -> Config:
    """Build a `Config` from a parsed tree; raises ConfigError as `load` does."""
    try:
        return Config.model_validate(_widen(dict(tree), Config))
    except ValidationError as error:
        raise ConfigError(explain(error, Config)) from None


def dump(config: Config) -> str:
    """The configuration as TOML; `load` reads it back as an equal `Config`."""
    return tomli_w.dumps(config.model_dump(exclude_none=True))


def _widen(tree: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Integers where a float is expected become floats (TOML writes 4 for 4.0)."""
    widened = {}
    for key, value in tree.items():
        field = model.model_fields.get(key)
        if field is not None:
            kind = field.annotation
            if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
                value = _widen(value, kind)
            elif type(value) is int and _wants_float(kind):
                value = float(value)
        widened[key] = value
    return widened


def _wants_float(kind: Any) -> bool:
    if kind is float:
        return True
    return get_origin(kind) is not None and any(_wants_float(arg) for arg in get_args(kind))
