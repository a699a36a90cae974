"""fedsys: federated learning that nobody has to take on trust.

The functions here are those of `fedsys.api`; they are imported on first use, so that ``import
fedsys`` is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsys.lazy_names import on_use

if TYPE_CHECKING:
    from fedsys import config, errors, privacy, tasks
    from fedsys.api import (
        Figures,
        Run,
        audit_run,
        compare,
        evaluate_clients,
        query,
        resume,
        simulate,
    )
else:
    __getattr__, __dir__ = on_use(
        __name__,
        {
            "api": (
                "Figures",
                "Run",
                "audit_run",
                "compare",
                "evaluate_clients",
                "query",
                "resume",
                "simulate",
            )
        },
        modules=("config", "errors", "privacy", "tasks"),
    )

__all__ = [
    "Figures",
    "Run",
    "__version__",
    "audit_run",
    "compare",
    "config",
    "errors",
    "evaluate_clients",
    "privacy",
    "query",
    "resume",
    "simulate",
    "tasks",
]

__version__ = "0.1.0"
