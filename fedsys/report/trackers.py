"""Experiment trackers, which show a run's figures next to those of other runs.

A tracker is named on the command line, ``--track tensorboard:DIR``, ``--track mlflow:URI`` or
``--track package.module:Attr``. Your own has three methods::

    class Mine:
        def started(self, run):                 # a TrackedRun
            print(run.name, run.settings["privacy.mechanism"])

        def round(self, number, values):        # {"accuracy": .91, "epsilon.outsider": 3.2}
            print(number, values)

        def finished(self, facts):              # {"status": "completed", "model_sha256": ...}
            print(facts)

It receives what a published folder holds (see `fedsys.report.following`). That contains no times,
since the duration of a round reveals how many clients were in its cohort: where a tracker needs a
time, round t is at t seconds after the epoch.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import urlsplit

from fedsys.current_folder import importable_here
from fedsys.errors import ConfigError
from fedsys.installation import how_to_install

__all__ = ["MLflow", "TensorBoard", "TrackedRun", "Tracker", "build_tracker", "shown"]

_MLFLOW = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}

Value = str | int | float | bool
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What is known before the first round.

    Attributes:
        name: the job's name.
        job: its identity, 64 hex digits; a resumed run keeps it.
        settings: the resolved configuration, one entry per key: ``{"rounds.count": 40, ...}``.
    """

    name: str
    job: str
    settings: Mapping[str, Value]

    @property
    def label(self) -> str:
        """The name, made unique and the same after a resume."""
        return f"{self.name}-{self.job[:8]}"


@runtime_checkable
class Tracker(Protocol):
    """Shows a run; called from its own thread, one call at a time.

    A resumed run is sent again from its first round, with the same values.
    """

    def started(self, run: TrackedRun) -> None:
        """Before the first round."""
        ...

    def round(self, number: int, values: Mapping[str, float]) -> None:
        """After a round: its evaluation, if there was one, and ``epsilon.outsider`` so far."""
        ...

    def finished(self, facts: Mapping[str, Value]) -> None:
        """At the end: status, rounds, hash of the model, head of the ledger, its signer."""
        ...


def shown(spec: str) -> str:
    """A tracker's name for display, without the credentials in its address.

    >>> shown("mlflow:https://me:secret@host/x")
    'mlflow:https://***@host/x'
    """
    return re.sub(r"//[^/@\s]*@", "//***@", spec)


def build_tracker(spec: str) -> Tracker:
    """The tracker that `spec` names; nothing is written or sent yet.

    Args:
        spec: ``tensorboard:DIR``, ``mlflow:URI`` or ``package.module:Attr``, a callable that
            takes nothing and returns a `Tracker`.

    Raises:
        ConfigError: an unknown name, a package that is not installed, or no tracker.
    """
    name, colon, rest = spec.partition(":")
    if name in _BUILTIN and not rest:
        raise ConfigError(f"--track {shown(spec)}: give a place, as in {_BUILTIN[name][1]}")
    if not colon or not rest:
        raise ConfigError(
            f"--track {shown(spec)}: expected tensorboard:DIR, mlflow:URI or your own "
            f'"package.module:Attr"'
        )
    if name in _BUILTIN:
        tracker: Tracker = _BUILTIN[name][0](rest)
        return tracker
    return _own(spec, name, rest)


class TensorBoard:
    """Scalars and the configuration as event files in the run's own folder under `folder`.

    Args:
        folder: the argument of ``tensorboard --logdir``.
    """

    def __init__(self, folder: str) -> None:
        _require("tensorboard", "tensorboard")
        self._folder = Path(folder)
        if self._folder.exists() and not self._folder.is_dir():
            raise ConfigError(f"--track tensorboard:{folder}: is a file; give a folder")
        self._writer: Any = None

    def started(self, run: TrackedRun) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(self._folder / run.label), flush_secs=1)
        again = SessionLog(status=SessionLog.START)  # earlier files' steps from 1 on are void
        self._writer.add_event(Event(wall_time=1.0, step=1, session_log=again))
        rows = [f"| {key} | {_cell(value)} |" for key, value in run.settings.items()]
        self._text("config", "\n".join(["| key | value |", "| --- | --- |", *rows]))

    def round(self, number: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [
            Summary.Value(tag=name.replace(".", "/"), simple_value=value)
            for name, value in values.items()
        ]
        summary = Summary(value=scalars)
        self._writer.add_event(Event(wall_time=float(number), step=number, summary=summary))

    def finished(self, facts: Mapping[str, Value]) -> None:
        rows = [f"| {key} | {_cell(value)} |" for key, value in facts.items()]
        self._text("result", "\n".join(["| | |", "| --- | --- |", *rows]))
        self._writer.close()

    def _text(self, tag: str, text: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        value = Summary.Value(
            tag=tag,
            metadata=SummaryMetadata(
                plugin_data=SummaryMetadata.PluginData(plugin_name="text"),
            ),
            tensor=TensorProto(
                dtype=DT_STRING,
                string_val=[text.encode()],
                tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
            ),
        )
        self._writer.add_event(Event(wall_time=0.0, step=0, summary=Summary(value=[value])))


class MLflow:
    """A run in the experiment ``$MLFLOW_EXPERIMENT_NAME``, by default ``fedsys``.

    A database file on this machine is updated round by round. A server gets everything when the
    run ends: from earlier calls it would learn when each round ended. A resumed run continues the
    MLflow run that it started.

    Args:
        uri: the tracking store: ``sqlite:///mlflow.db``, ``https://...``.
    """

    _MOST = 100
    """Parameters or metrics per call; MLflow accepts 100 and 1000."""

    def __init__(self, uri: str) -> None:
        for name, value in _MLFLOW.items():
            os.environ.setdefault(name, value)
        _require("mlflow", "mlflow")
        scheme = urlsplit(uri).scheme
        if scheme in ("", "file"):
            raise ConfigError(
                f"--track mlflow:{uri}: MLflow no longer keeps runs in folders; give a database, "
                f"mlflow:sqlite:///mlflow.db, or a server, mlflow:https://HOST"
            )
        if scheme.startswith("sqlite"):
            _require("sqlalchemy", "mlflow")
        self._uri, self._local = uri, scheme.startswith("sqlite")
        self._run: TrackedRun | None = None
        self._kept: list[tuple[int, Mapping[str, float]]] = []
        self._client: Any = None
        self._id, self._since = "", 0

    def started(self, run: TrackedRun) -> None:
        self._run = run
        if self._local:
            self._open(run)

    def round(self, number: int, values: Mapping[str, float]) -> None:
        self._kept.append((number, values))
        if self._local:
            self._send()

    def finished(self, facts: Mapping[str, Value]) -> None:
        from mlflow.entities import RunTag

        if self._run is not None and not self._local:
            self._open(self._run)
        self._send()
        tags = [RunTag(f"fedsys.{key}", str(value)) for key, value in facts.items()]
        self._client.log_batch(self._id, tags=tags)
        outcome = "KILLED" if facts.get("status") == "interrupted" else "FINISHED"
        self._client.set_terminated(self._id, outcome, end_time=self._since)

    def _open(self, run: TrackedRun) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = client = MlflowClient(tracking_uri=self._uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fedsys"
        experiment = client.get_experiment_by_name(name)
        id = experiment.experiment_id if experiment else client.create_experiment(name)
        begun = client.search_runs([id], filter_string=f"tags.`fedsys.job` = '{run.job}'")
        found = (
            begun[0]
            if begun
            else client.create_run(id, run_name=run.label, tags={"fedsys.job": run.job})
        )
        self._id, self._since = found.info.run_id, found.info.start_time
        parameters = [Param(key, str(value)[:6000]) for key, value in run.settings.items()]
        for part in _parts(parameters, self._MOST):
            client.log_batch(self._id, params=part)

    def _send(self) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, timestamp=1000 * number, step=number)
            for number, values in self._kept
            for name, value in values.items()
        ]
        self._kept = []
        for part in _parts(metrics, self._MOST):
            self._client.log_batch(self._id, metrics=part)


_BUILTIN: dict[str, tuple[Any, str]] = {
    "tensorboard": (TensorBoard, "tensorboard:DIR"),
    "mlflow": (MLflow, "mlflow:sqlite:///mlflow.db or mlflow:https://HOST"),
}


def _require(module: str, tracker: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"--track {tracker} needs the package {module}; install it: {how_to_install(tracker)}"
        ) from None


def _own(spec: str, module: str, attribute: str) -> Tracker:
    try:
        with importable_here():
            tracker = getattr(importlib.import_module(module), attribute)()
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--track {spec}: cannot be created: {type(error).__name__}: {text}; built in are "
            f"tensorboard:DIR and mlflow:URI"
        ) from error
    if not isinstance(tracker, Tracker):
        raise ConfigError(
            f"--track {spec}: returned a {type(tracker).__name__}, which lacks started(run), "
            f"round(number, values) or finished(facts)"
        )
    return tracker


def _cell(value: Value) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _parts(items: Sequence[T], most: int) -> Iterator[list[T]]:
    rest = iter(items)
    while part := list(islice(rest, most)):
        yield part
