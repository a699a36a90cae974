"""What an operator hands in: a configuration that holds becomes a job in the queue."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from fedsys.bounded_toml import parse_toml
from fedsys.config import validate
from fedsys.errors import ConfigError
from server.home.state import JobRow, State

__all__ = ["submit"]


def submit(state: State, text: str) -> JobRow:
    """Queue a job; durable when this returns.

    Raises:
        ConfigError: the configuration does not hold.
    """
    try:
        tree: Mapping[str, Any] = parse_toml(text.encode())
    except ValueError as error:
        raise ConfigError(f"the configuration is not valid TOML: {error}") from None
    config = validate(tree)
    row = JobRow(
        id=os.urandom(6).hex(),
        name=config.job.name,
        config=text,
        status="submitted",
        submitted_at=time.time(),
        rounds=config.rounds.count,
    )
    with state.transaction() as session:
        session.add(row)
    return row
