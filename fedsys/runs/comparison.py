"""Several runs side by side: what each achieved and cost, and in which settings they differ.

The notebook's table, ``fedsys compare`` and the pages are all made of this one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsys.errors import FedsysError, RunFolderError
from fedsys.privacy import Epsilons
from fedsys.run_folder import RunFolder
from fedsys.runs.drawing import draw_comparison
from fedsys.runs.progress import ProgressReader
from fedsys.runs.rows import Rows
from fedsys.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedsys.records import AuditResult

__all__ = ["Comparison", "compare"]

_NOT_SETTINGS = ("tuning.", "engine.")
"""Settings that affect speed only, or that `fedsys tune` writes; they are not compared."""


class Comparison(Rows):
    """One row per run: results, epsilons, and the settings in which the runs differ.

    Args:
        runs: the runs, by display name.

    Attributes:
        runs: as given.
        differing: the settings in which the runs differ, by dotted key.
        settings: by run, every setting that is compared.
    """

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self.runs = dict(runs)
        self.settings = settings = {name: _settings(run) for name, run in self.runs.items()}
        keys = dict.fromkeys(key for each in settings.values() for key in each)
        self.differing = tuple(
            key for key in keys if len({repr(each.get(key)) for each in settings.values()}) > 1
        )
        super().__init__(
            {
                "run": name,
                "status": run.summary.get("status"),
                "rounds": run.summary.get("rounds"),
                **run.metrics,
                "epsilon_outsider": run.epsilon.outsider,
                "epsilon_participant": run.epsilon.participant,
                "epsilon_server": run.epsilon.server,
                "delta": run.delta,
                **{key: settings[name].get(key) for key in self.differing},
            }
            for name, run in self.runs.items()
        )

    def plot(self, metric: str | None = None) -> Figure:
        """A metric of all runs over the rounds, and over the outsider's epsilon.

        Raises:
            FedsysError: not all runs have such a metric.
        """
        return draw_comparison({name: run.history for name, run in self.runs.items()}, metric)

    def together(self) -> AuditResult:
        """What all runs cost together, if they had the same clients: epsilons add up.

        Raises:
            AuditInputError: fewer than two runs, or units of privacy that do not add up.
        """
        from fedsys.audit import compose

        return compose([run.folder for run in self.runs.values()])


def compare(runs: Iterable[Run | Path | str] | Mapping[str, Run | Path | str]) -> Comparison:
    """A table of runs.

    Args:
        runs: runs or their folders, of runs that train still too; a mapping's keys name them,
            otherwise their folders do.

    Raises:
        FedsysError: no run is given, or a folder holds none.
    """
    if isinstance(runs, Mapping):
        named = {str(name): _opened(run) for name, run in runs.items()}
    else:
        opened = [_opened(run) for run in runs]
        short = [run.folder.name for run in opened]
        named = {
            name if short.count(name) == 1 else str(run.folder): run
            for name, run in zip(short, opened, strict=True)
        }
    if not named:
        raise FedsysError("compare: no run was given; give runs or their folders in a list")
    return Comparison(named)


def _opened(run: Run | Path | str) -> Run:
    if isinstance(run, Run):
        return run
    folder = Path(run)
    return Run.open(folder) if RunFolder(folder).summary.exists() else _unfinished(folder)


def _unfinished(folder: Path) -> Run:
    """A run that has no summary yet, as far as it got; unknown epsilons are not numbers."""
    if not RunFolder(folder).begun:
        raise RunFolderError(f"{folder}: no run here; give a folder that `fedsys simulate` wrote")
    found = ProgressReader(folder).read()
    unknown = Epsilons(outsider=math.nan, participant=None, server=None)
    return Run(
        folder=folder,
        summary={"status": found.status, "rounds": found.round},
        metrics=found.metrics,
        epsilon=found.spent or unknown,
        delta=math.nan if found.delta is None else found.delta,
        interrupted=False,
    )


def _settings(run: Run) -> dict[str, Any]:
    """The resolved configuration by dotted key, without the run's name."""
    flat: dict[str, Any] = {}

    def walk(table: Mapping[str, Any], prefix: str) -> None:
        for key, value in table.items():
            if isinstance(value, Mapping) and value:
                walk(value, f"{prefix}{key}.")
            elif value is not None and not f"{prefix}{key}".startswith(_NOT_SETTINGS):
                plain = isinstance(value, (str, int, float))
                flat[prefix + key] = value if plain else json.dumps(value, default=str)

    walk(RunFolder(run.folder).read_config().model_dump(), "")
    flat.pop("job.name", None)
    return flat
