"""Where a configuration comes from: a file, or a shipped recipe."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from fedsys.bounded_toml import MAX_BYTES, parse_toml
from fedsys.config.mistakes import did_you_mean
from fedsys.errors import ConfigError

__all__ = ["read", "recipes", "tables_of"]


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
    content, where = _content(source)
    return tables_of(content, where)


def tables_of(content: bytes, where: str) -> dict[str, Any]:
    """The tables of a configuration's bytes, which are untrusted.

    Args:
        content: TOML.
        where: the subject of an error's message.

    Raises:
        ConfigError: it is not TOML, or larger or deeper than a configuration is.
    """
    try:
        return parse_toml(content)
    except ValueError as error:
        raise ConfigError(f"{where}: not a configuration in TOML: {error}") from None


def _content(source: Path | str | None) -> tuple[bytes, str]:
    """A source's bytes, one more at most than are allowed, and its name for messages."""
    if source is None:
        source = "quickstart"
    path = Path(source)
    shipped = recipes()
    if isinstance(source, str) and source in shipped and not path.exists():
        return shipped[source].encode(), f"recipe {source}"
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1), str(path)
    except OSError as error:
        nearest = did_you_mean(str(source), shipped)
        raise ConfigError(
            f"{path}: {(error.strerror or 'cannot be read').lower()}; give a TOML file or one of "
            f"the recipes {', '.join(shipped)}{nearest}"
        ) from None
