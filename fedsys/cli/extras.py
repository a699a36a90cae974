"""Commands that need more than the core say so in one line."""

from __future__ import annotations

from importlib.util import find_spec

from fedsys.errors import ConfigError

__all__ = ["require_deploy"]


def require_deploy() -> None:
    """Raise ConfigError where the packages of a deployment are not installed."""
    for package in ("grpc", "grpc_health", "google.protobuf", "sqlalchemy", "prometheus_client"):
        try:
            found = find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ConfigError(
                f"this command needs the package {package}; install it with: pip install "
                f"'fedsys[deploy]'"
            )
