"""What every deployment command does first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fedsys.cli.extras import require

if TYPE_CHECKING:
    from fedsys.errors import ConfigError

__all__ = ["no_core_dumps", "prepare", "prepare_coordinator", "unwritable"]


def prepare() -> None:
    """Keep gRPC's own log lines, which say less than ours, out of the terminal.

    Unless the user asked for them.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def prepare_coordinator() -> None:
    """`prepare`, and raise ConfigError where a coordinator's packages are not installed."""
    require("grpc_health", "sqlalchemy", "prometheus_client", extra="deploy")
    prepare()


def no_core_dumps() -> None:
    """Keep this process's memory, with its keys, updates and noise, out of core dumps."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))


def unwritable(what: str, path: Path, error: OSError) -> ConfigError:
    """The error for a file that cannot be written."""
    from fedsys.errors import ConfigError

    reason = (error.strerror or str(error)).lower()
    return ConfigError(f"{what} {path}: {reason}; give a writable path")
