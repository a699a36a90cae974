"""What exactly ran: versions of everything that affects numbers, and a hash of our own code."""

from __future__ import annotations

import functools
import hashlib
import platform
from importlib import metadata
from pathlib import Path

import fedsys

__all__ = ["code_hash", "versions"]

_DISTRIBUTIONS = ("torch", "numpy", "scipy", "cryptography", "dp-accounting", "opacus")
_PACKAGES = ("fedsys", "server", "client", "secure_agg", "simulations")
_NOT_THE_PRODUCT = frozenset({"benchmarks", "deterministic", "testbed"})
"""Folders of `simulations` that no run executes and no wheel contains."""


def versions() -> dict[str, str]:
    """Versions of Python, fedsys and the libraries that affect a run's numbers."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "fedsys": fedsys.__version__}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def code_hash() -> str:
    """SHA-256 over the five packages' Python sources, in order of path.

    Benchmarks, testbed and the deterministic world are left out: they are not in the wheel, and
    editing them must not make an earlier run's code claim undecidable.
    """
    root = Path(fedsys.__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).parts
            if parts[0] == "simulations" and parts[1] in _NOT_THE_PRODUCT:
                continue
            name = "/".join(parts).encode()
            content = path.read_bytes()
            digest.update(len(name).to_bytes(4, "big") + name)
            digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()
