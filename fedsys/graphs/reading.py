"""Graphs in files."""

from __future__ import annotations

from pathlib import Path

from fedsys.errors import ConfigError
from fedsys.graphs.errors import GraphError
from fedsys.graphs.vetting import Limits, Vetted, vet

__all__ = ["read_graph"]


def read_graph(path: Path, limits: Limits | None = None) -> Vetted:
    """The graph of a file, vetted.

    Raises:
        ConfigError: the file cannot be read.
        GraphError: names the file, and what is not allowed.
    """
    limits = limits or Limits()
    try:
        with path.open("rb") as file:
            raw = file.read(limits.bounds.file + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    try:
        return vet(raw, limits)
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from None
