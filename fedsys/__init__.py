"""fedsys: federated learning that nobody has to take on trust.

The functions here are those of `fedsys.api`; they are imported when they are first used, so that
``import fedsys`` is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsys.lazy_names import on_use

if TYPE_CHECKING:
    from fedsys.api import Run, audit_run, resume, simulate
else:
    __getattr__, __dir__ = on_use(__name__, {"api": ("Run", "audit_run", "resume", "simulate")})

__all__ = ["Run", "__version__", "audit_run", "resume", "simulate"]

__version__ = "0.1.0"
