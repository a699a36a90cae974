"""The notebook's way in: what the commands do, as functions that return values.

>>> import fedsys
>>> run = fedsys.simulate("quickstart", {"rounds.count": 3}, out="run")     # doctest: +SKIP
>>> run.metrics["accuracy"], run.epsilon.outsider                            # doctest: +SKIP
>>> fedsys.audit_run(run.folder).passed                                    # doctest: +SKIP
True
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsys import report
from fedsys.audit import audit_run
from fedsys.config import Config, load
from fedsys.privacy import Epsilons
from simulations import harness

__all__ = ["Run", "audit_run", "resume", "simulate"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's folder and what its summary says.

    Attributes:
        folder: holds everything that the run left.
        summary: ``summary.json``.
        metrics: of the last evaluation.
        epsilon: at ``delta``, by view.
        delta: of every epsilon.
        interrupted: whether there are rounds left, for `resume`.
    """

    folder: Path
    summary: Mapping[str, Any]
    metrics: Mapping[str, float]
    epsilon: Epsilons
    delta: float
    interrupted: bool

    @property
    def report(self) -> Path:
        """The page, made on the first call."""
        page = self.folder / "report.html"
        if page.exists():
            return page
        return report.build(self.folder, audit_run(self.folder), private=True)


def simulate(
    config: Config | Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    out: Path | str | None = None,
    data: Path | str | None = None,
    device: str = "auto",
) -> Run:
    """Train over virtual clients, as ``fedsys simulate`` does.

    Args:
        config: a loaded one, a TOML file, a recipe's name, or None for the quickstart.
        settings: keys to replace, ``{"privacy.epsilon": 4}``; not with a loaded `config`.
        out: the run's folder; by default the first free ``runs/<name>``.
        data: folder with data files.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        FedsysError: with one line that says what does not fit.
    """
    if not isinstance(config, Config):
        replaced = [f"{key}={_toml(value)}" for key, value in (settings or {}).items()]
        config = load(config, replaced)
    elif settings:
        raise TypeError("settings replace keys of a file or recipe, not of a loaded Config")
    result = harness.run(config, out=_path(out), data=_path(data), device=device)
    return _open(result.folder)


def resume(folder: Path | str, *, data: Path | str | None = None, device: str = "auto") -> Run:
    """Continue an interrupted run."""
    return _open(harness.resume(Path(folder), data=_path(data), device=device).folder)


def _open(folder: Path) -> Run:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    privacy = summary["privacy"]
    epsilons = {
        view: math.inf if value == "inf" else value for view, value in privacy["epsilon"].items()
    }
    return Run(
        folder=folder,
        summary=summary,
        metrics=summary["metrics"],
        epsilon=Epsilons(**epsilons),
        delta=privacy["delta"],
        interrupted=summary["status"] == "interrupted",
    )


def _path(value: Path | str | None) -> Path | None:
    return None if value is None else Path(value)


def _toml(value: Any) -> str:
    return json.dumps(value)
