"""Runs many trials of one job, to find the best settings and what the search cost in privacy.

Every trial is a complete run with its own folder and ledger, inside the study's folder::

    config.toml    what is varied
    search.json    the keys, their ranges, the metric and its direction
    study.sqlite   Optuna's: which settings were tried, and their results
    trial-0001/    a run's folder
    total.json     what all trials cost together
    best.toml      the best trial's configuration, for the final run

Costs of trials on one population add up: anyone who saw the results saw all of them. ``best.toml``
states what was spent before it, and the final run's ledger repeats that.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedsys import tasks
from fedsys.audit import audit_run, compose, to_json
from fedsys.config import Tuning, dump
from fedsys.config.named_code import NamedCode
from fedsys.config.tuning import TuningPart
from fedsys.durable import write_atomically
from fedsys.errors import ConfigError, MechanismError, RunFolderError, TrainingError
from fedsys.improvement import STOPPED
from fedsys.privacy.accounting.adding import MOST_STEPS
from fedsys.records import AuditResult
from fedsys.run_folder import RunFolder, disk_errors
from fedsys.tasks.options import nearest
from simulations import harness
from simulations.search import OPTIONS, Search, Value, setting, with_settings
from simulations.setting import partition_of

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

__all__ = ["Trial", "Tuned", "tune"]

Observer = Callable[["harness.RoundReport | str"], None]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial that has ended.

    Attributes:
        number: The trial's number, from 1.
        settings: Values of the keys that are varied.
        value: Value of the metric; None if the trial failed.
        folder: The folder of its run.
    """

    number: int
    settings: Mapping[str, Value]
    value: float | None
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The state of a search.

    Attributes:
        folder: of the study.
        metric: that was sought.
        minimize: whether less of it is better.
        trials: in their order.
        best: of those that did not fail; None if all did.
        total: of every run that was begun, failed ones included; None where no run was.
        protected: whether the runs had privacy at all.
    """

    folder: Path
    metric: str
    minimize: bool
    trials: tuple[Trial, ...]
    best: Trial | None
    total: AuditResult | None
    protected: bool


def tune(
    search: Search | None,
    folder: Path,
    *,
    trials: int,
    data: Path | None = None,
    device: str = "auto",
    observer: Observer = lambda _event: None,
    finish: Callable[[Path], object] = lambda _run: None,
    named: NamedCode | None = None,
) -> Tuned:
    """Start a search in a new folder, or resume one.

    Args:
        search: What to search; None resumes the search in `folder`.
        folder: The study's folder.
        trials: Number of trials in all, earlier ones included.
        data: Folder with data files.
        device: As for `harness.run`.
        observer: Called with a line for each trial, and with the reports of its rounds.
        finish: Called with the folder of each run that has ended, to audit and report it.
        named: For a search that is resumed, code of the user's own that it uses, named by the user.

    Raises:
        FedsysError: The settings, data or folder are not valid; the message is one line.
        KeyboardInterrupt: The search was interrupted; it can be resumed.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    if search is None:
        search = Search.stored(folder)
        (named or NamedCode()).require(search.base, folder)
        _check_metric(search, data)
    else:
        _check_metric(search, data)
        _check_populations(search, data)
        search.store(folder)
    runner = _Runner(
        search=search, folder=folder, data=data, device=device, observer=observer, finish=finish
    )
    try:
        with disk_errors(folder), _study(search, folder) as study:
            runner.run_trials(study, trials)
            return _conclude(study, search, folder)
    except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise RunFolderError(
            f"{folder / 'study.sqlite'}: {reason}; mend that, then go on with --resume"
        ) from error


def _check_metric(search: Search, data: Path | None) -> None:
    """Evaluate an untrained model on one example, so that a wrong metric name costs no trial."""
    import torch

    config = search.base
    task = tasks.load(config.task.name, config.task.options)
    test = tasks.read_data(task, tasks.DataSource.locate(data)).test
    model = tasks.init_model(task, config.job.seed, test).eval()
    one = tasks.conformed(model, test[:1])
    with torch.inference_mode():
        names = ["loss", *task.metrics(model(one.x), one.y)]
    if search.metric not in names:
        raise ConfigError(
            f"--metric {search.metric}: task {config.task.name} has no such metric"
            f"{nearest(search.metric, names)}; it has {', '.join(names)}"
        )
    if search.minimize is None:
        raise ConfigError(
            f"--metric {search.metric}: its name does not say whether more or less of it is "
            f"better; add --minimize or --maximize"
        )


def _check_populations(search: Search, data: Path | None) -> None:
    """Require all values of the task's options to give the same clients, on which a trial's cost
    depends."""
    if search.base.privacy.mechanism == "none":
        return
    counts: dict[str, int] = {}
    for space in search.spaces:
        if not space.key.startswith(OPTIONS):
            continue
        for choice in space.choices:
            config = with_settings(search.base, {space.key: choice})
            task = tasks.load(config.task.name, config.task.options)
            held = tasks.read_data(task, tasks.DataSource.locate(data))
            counts[setting(space.key, choice)] = partition_of(config, held).clients
    if len(set(counts.values())) > 1:
        words = ", ".join(f"{count} with {text}" for text, count in counts.items())
        raise ConfigError(
            f"--over: the number of clients would depend on the trial ({words}), and with it what "
            f"a trial costs: then costs do not add up; leave that key out, or set "
            f"population.clients"
        )


@contextmanager
def _study(search: Search, folder: Path) -> Iterator[Study]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / 'study.sqlite').resolve()}")
    try:
        study = optuna.create_study(
            storage=storage,
            study_name="fedsys",
            direction="minimize" if search.minimize else "maximize",
            load_if_exists=True,
        )
        seed = (search.base.job.seed * 1_000_003 + len(study.trials)) % 2**32
        study.sampler = optuna.samplers.TPESampler(seed=seed)  # a resume seeds it differently
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


@dataclass(frozen=True, kw_only=True)
class _Runner:
    """Runs trials, one after the other."""

    search: Search
    folder: Path
    data: Path | None
    device: str
    observer: Observer
    finish: Callable[[Path], object]

    def run_trials(self, study: Study, trials: int) -> None:
        """Finish interrupted trials first, then run new ones up to this number."""
        from optuna.trial import TrialState

        distributions = {space.key: space.distribution() for space in self.search.spaces}
        begun = [trial for trial in study.trials if trial.state == TrialState.RUNNING]
        while begun or len(study.trials) < trials:
            if begun:
                number, settings = begun[0].number, dict(begun.pop(0).params)
            else:
                asked = study.ask(distributions)
                number, settings = asked.number, dict(asked.params)
            if set(settings) != set(distributions):
                study.tell(number, state=TrialState.FAIL)  # killed while its settings were written
                continue
            words = "  ".join(setting(key, value) for key, value in settings.items())
            self.observer(f"trial {number + 1} of {max(trials, number + 1)}  {words}")
            value, problem = self._value_of(number, settings)
            run = _folder(self.folder, number)
            if RunFolder(run).begun:
                self.finish(run)
            if value is None:
                self.observer(f"trial {number + 1} failed: {problem}")
                study.tell(number, state=TrialState.FAIL)
            else:
                study.tell(number, value)

    def _value_of(self, number: int, settings: dict[str, Value]) -> tuple[float | None, str]:
        """A trial's value of the metric, or None and the reason why it has none."""
        try:
            metrics = self._metrics_of(RunFolder(_folder(self.folder, number)), number, settings)
        except (ConfigError, MechanismError, TrainingError) as error:
            return None, str(error)
        value = metrics.get(self.search.metric, math.nan)
        if not math.isfinite(value):
            return None, f"its {self.search.metric} is {value}: training diverged"
        return value, ""

    def _metrics_of(
        self, run: RunFolder, number: int, settings: dict[str, Value]
    ) -> dict[str, float]:
        """Run the trial, or what is left of it."""
        if run.summary.is_file() and _ended(run):
            return run.last_metrics()
        if run.begun:
            result = harness.resume(
                run.path,
                data=self.data,
                device=self.device,
                observer=self.observer,
                named=NamedCode.of(self.search.base),
            )
        else:
            if run.path.exists():
                shutil.rmtree(run.path)  # its ledger was not begun, so nothing was spent
            config = with_settings(self.search.base, settings)
            job = config.job.model_copy(
                update={"name": f"{config.job.name[:80]}-trial-{number + 1}"}
            )
            result = harness.run(
                config.model_copy(update={"job": job}),
                out=run.path,
                data=self.data,
                device=self.device,
                observer=self.observer,
            )
        if result.interrupted:
            raise KeyboardInterrupt
        return result.metrics


def _ended(run: RunFolder) -> bool:
    return run.read_summary().get("status") in ("completed", "budget-exhausted", STOPPED)


def _folder(folder: Path, number: int) -> Path:
    return folder / f"trial-{number + 1:04d}"


def _conclude(study: Study, search: Search, folder: Path) -> Tuned:
    """Write the total and the best configuration to disk."""
    found = tuple(_outcome(trial, folder) for trial in study.trials)
    begun = [trial.folder for trial in found if RunFolder(trial.folder).begun]
    total = None
    if begun:
        total = compose(begun) if len(begun) > 1 else audit_run(begun[0])
        write_atomically(folder / "total.json", to_json(total).encode())
    sign = -1 if search.minimize else 1
    sound = [trial for trial in found if trial.value is not None]
    best = max(sound, key=lambda trial: sign * (trial.value or 0.0), default=None)
    if best is not None and total is not None:
        chosen = with_settings(search.base, dict(best.settings))
        spent = chosen.model_copy(update={"tuning": _spent(search.base.tuning, total, len(begun))})
        write_atomically(folder / "best.toml", dump(spent).encode())
    return Tuned(
        folder=folder,
        metric=search.metric,
        minimize=bool(search.minimize),
        trials=found,
        best=best,
        total=total,
        protected=search.base.privacy.mechanism != "none",
    )


def _outcome(trial: FrozenTrial, folder: Path) -> Trial:
    return Trial(
        number=trial.number + 1,
        settings=dict(trial.params),
        value=trial.value,
        folder=_folder(folder, trial.number),
    )


def _spent(before: Tuning, total: AuditResult, runs: int) -> Tuning:
    """What the final run's ledger states as spent before it.

    The epsilon of an earlier search, stated in `before`, is added, which is always sound.
    """
    heads = total.details.get("heads", [total.ledger_head])
    spent = total.curve[-1].spent.outsider if total.curve else 0.0
    delta, part = total.delta, total.details.get("outsider_part")
    if before.runs:
        spent += math.inf if before.epsilon is None else before.epsilon
        delta, part = (before.delta or 0.0) + (delta or 0.0), None
    if part is not None and (len(part["steps"]) > MOST_STEPS or math.isinf(spent)):
        part = None
    return Tuning(
        runs=before.runs + runs,
        epsilon=spent,
        delta=delta,
        heads=[*before.heads, *(str(head) for head in heads if head)],
        part=None if part is None else TuningPart(**part),
    )
