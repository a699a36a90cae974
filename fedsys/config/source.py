"""Where a configuration comes from: a file, or a shipped recipe."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from fedsys.config.mistakes import did_you_mean
from fedsys.errors import ConfigError

__all__ = ["read", "recipes"]

MAX_BYTES = 1 << 20


def recipes() -> dict[str, str]:
    """The shipped recipes: name to TOML text."""
    folder = resources.files("simulations") / "recipes"
    return {
        entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    }


def read(source: Path | str | None) -> dict[str, Any]:
    """The tables of a source as written, not validated.

    Args:
        source: as for `fedsys.config.load`.

    Raises:
        ConfigError: there is no such source, or it is not TOML.
    """
    text, where = _text(source)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from None


def _text(source: Path | str | None) -> tuple[str, str]:
    """A source's text, and its name for messages."""
    if source is None:
        source = "quickstart"
    path = Path(source)
    shipped = recipes()
    if isinstance(source, str) and source in shipped and not path.exists():
        return shipped[source], f"recipe {source}"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than 1 MiB, the most that a configuration may be")
        return path.read_text(encoding="utf-8"), str(path)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; a configuration is a TOML file") from None
    except OSError as error:
        nearest = did_you_mean(str(source), shipped)
        raise ConfigError(
            f"{path}: {(error.strerror or 'cannot be read').lower()}; give a TOML file or one of "
            f"the recipes {', '.join(shipped)}{nearest}"
        ) from None
