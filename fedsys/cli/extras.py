"""One-line errors of commands that need more than the core packages."""

from __future__ import annotations

from importlib.util import find_spec

from fedsys.errors import ConfigError
from fedsys.installation import how_to_install

__all__ = ["require", "require_deploy"]


def require(*packages: str, extra: str) -> None:
    """Raise ConfigError where a package of an extra is not installed."""
    for package in packages:
        try:
            found = find_spec(package)
        except (ModuleNotFoundError, ValueError):
            found = None
        if found is None:
            raise ConfigError(
                f"this command needs the package {package}; install it: {how_to_install(extra)}"
            )


def require_deploy() -> None:
    """Raise ConfigError where a package of a deployment is not installed."""
    require(
        *("grpc", "grpc_health", "google.protobuf", "sqlalchemy", "prometheus_client"),
        extra="deploy",
    )
