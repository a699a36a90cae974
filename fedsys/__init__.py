"""fedsys: federated learning that nobody has to take on trust.

The functions here are those of `fedsys.api`; they are imported when they are first used, so that
``import fedsys`` is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsys.api import Run, audit_run, resume, simulate

__all__ = ["Run", "__version__", "audit_run", "resume", "simulate"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("fedsys.api"), name)
    raise AttributeError(f"module 'fedsys' has no attribute {name!r}")
