"""One-line errors of commands that need more than the core packages."""

from __future__ import annotations

from importlib.util import find_spec

from fedsys.errors import ConfigError
from fedsys.installation import how_to_install

__all__ = ["missing", "require"]

_EXTRAS = {
    "audit": ("dp_accounting", "jinja2", "matplotlib", "scipy"),
    "train": ("PIL", "opacus", "pyarrow", "sklearn", "threadpoolctl", "torch"),
    "deploy": ("grpc_health", "prometheus_client", "sqlalchemy"),
}


def require(*packages: str, extra: str) -> None:
    """Raise ConfigError where a package of an extra is not installed."""
    for package in packages:
        try:
            found = find_spec(package)
        except (ModuleNotFoundError, ValueError):
            found = None
        if found is None:
            raise _needed(package, extra)


def missing(error: ModuleNotFoundError) -> ConfigError | None:
    """The error for a package of an extra that a command tried to import; None for any other."""
    package = (error.name or "").partition(".")[0].replace("-", "_")
    for extra, packages in _EXTRAS.items():
        if package in packages:
            return _needed(package, extra)
    return None


def _needed(package: str, extra: str) -> ConfigError:
    how = how_to_install("torch" if package == "torch" else extra)
    return ConfigError(f"this command needs the package {package}; install it: {how}")
