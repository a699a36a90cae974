"""What every deployment command does first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fedsys.cli.extras import require_deploy

if TYPE_CHECKING:
    from fedsys.errors import ConfigError

__all__ = ["no_core_dumps", "prepare", "unwritable"]


def prepare() -> None:
    """Raise ConfigError where a deployment's packages are not installed; keep gRPC's own log lines,
    which say less than ours, out of the terminal unless the user asked for them."""
    require_deploy()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


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
