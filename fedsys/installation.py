"""How an optional package is installed: from the lock file that holds it, as the README says.

>>> how_to_install("ray")
'in the repository, pip install --require-hashes -r requirements-extra.lock'
"""

from __future__ import annotations

__all__ = ["how_to_install"]

_LOCKS = {
    "deploy": "requirements-deploy.lock",
    "parquet": "requirements-deploy.lock",
    "ray": "requirements-extra.lock",
    "hf": "requirements-hf.lock",
    "mlflow": "requirements-extra.lock",
}
_EVERYTHING_ELSE = "requirements.lock"
_TORCH = "--no-deps --index-url https://download.pytorch.org/whl/cpu -r torch-cpu.lock"


def how_to_install(what: str) -> str:
    """The command that installs an extra of ``pyproject.toml``, or a package of one, by hash."""
    if what == "torch":
        return f"in the repository, pip install --require-hashes {_TORCH}"
    lock = _LOCKS.get(what, _EVERYTHING_ELSE)
    return f"in the repository, pip install --require-hashes -r {lock}"
