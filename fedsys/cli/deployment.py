"""What every command of a deployment begins with."""

from __future__ import annotations

import os

from fedsys.cli.extras import require_deploy

__all__ = ["prepare"]


def prepare() -> None:
    """Raise ConfigError where the packages of a deployment are not installed; keep gRPC's own log
    lines, which say less than our one, out of the terminal unless somebody asked for them."""
    require_deploy()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
