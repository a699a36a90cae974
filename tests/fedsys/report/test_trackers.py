"""Trackers by name; TensorBoard for real; MLflow against a stand-in for its client."""

from __future__ import annotations

import doctest
import os
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedsys.errors import ConfigError
from fedsys.report import trackers
from fedsys.report.trackers import MLflow, TensorBoard, TrackedRun, Tracker, build_tracker, shown

RUN = TrackedRun(
    name="digits",
    job="ab" * 32,
    settings={"job.name": "digits", "privacy.epsilon": 8.0, "task.options": "a|b"},
)
FACTS = {"status": "completed", "model_sha256": "cd" * 32}


def tell(tracker: Tracker, *, rounds: int) -> None:
    tracker.started(RUN)
    for number in range(1, rounds + 1):
        tracker.round(number, {"accuracy": number / 10, "epsilon.outsider": float(number)})
    tracker.finished(FACTS)


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_tensorboard_reads_what_was_written_and_no_clock(tmp_path: Path) -> None:
    tell(TensorBoard(str(tmp_path)), rounds=3)
    events = read(tmp_path / "digits-abababab")
    assert set(events.Tags()["scalars"]) == {"accuracy", "epsilon/outsider"}
    scalars = events.Scalars("accuracy")
    assert [(one.step, one.wall_time) for one in scalars] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [one.value for one in scalars] == pytest.approx([0.1, 0.2, 0.3])
    (config,) = events.Tensors("config")
    text = config.tensor_proto.string_val[0].decode()
    assert "| privacy.epsilon | 8.0 |" in text
    assert "a\\|b" in text


def test_tensorboard_shows_a_resumed_run_once(tmp_path: Path) -> None:
    began = TensorBoard(str(tmp_path))
    began.started(RUN)
    for number in (1, 2, 3):
        began.round(number, {"accuracy": 0.5})
    began.finished({"status": "interrupted"})
    deadline = time.time() + 60  # event files are ordered by the second in their names
    while int(time.time()) == int(_file_second(tmp_path)) and time.time() < deadline:
        time.sleep(0.02)
    tell(TensorBoard(str(tmp_path)), rounds=4)
    scalars = read(tmp_path / "digits-abababab").Scalars("accuracy")
    assert [one.step for one in scalars] == [1, 2, 3, 4]


def _file_second(folder: Path) -> str:
    (file,) = folder.glob("*/events.out.tfevents.*")
    return file.name.split(".")[3]


class Client:
    """What `MLflow` uses of ``mlflow.tracking.MlflowClient``, with its limits."""

    def __init__(self, tracking_uri: str) -> None:
        self.uri, self.experiments, self.runs = tracking_uri, dict[str, Any](), dict[str, Any]()
        self.calls: list[str] = []

    def get_experiment_by_name(self, name: str) -> Any:
        self.calls.append("get_experiment_by_name")
        return self.experiments.get(name)

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = SimpleNamespace(experiment_id=f"id of {name}")
        return f"id of {name}"

    def search_runs(self, experiments: list[str], filter_string: str) -> list[Any]:
        key, _, value = filter_string.partition(" = ")
        return [
            run
            for run in self.runs.values()
            if run.tags[key.removeprefix("tags.").strip("`")] == value.strip("'")
        ]

    def create_run(self, experiment: str, *, run_name: str, tags: dict[str, str]) -> Any:
        info = SimpleNamespace(run_id=str(len(self.runs)), start_time=77)
        run = SimpleNamespace(
            info=info, tags=dict(tags), name=run_name, params={}, metrics=set(), end=None
        )
        self.runs[info.run_id] = run
        return run

    def log_batch(self, id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        self.calls.append("log_batch")
        assert len(params) <= 100
        assert len(metrics) <= 1000
        run = self.runs[id]
        run.params.update((one.key, one.value) for one in params)
        run.metrics.update((one.key, one.value, one.timestamp, one.step) for one in metrics)
        run.tags.update((one.key, one.value) for one in tags)

    def set_terminated(self, id: str, status: str, *, end_time: int) -> None:
        self.runs[id].end = (status, end_time)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> dict[str, Client]:
    """Clients by address, in place of the package."""
    clients: dict[str, Client] = {}

    def client(*, tracking_uri: str) -> Client:
        return clients.setdefault(tracking_uri, Client(tracking_uri))

    def pair(key: str, value: object) -> SimpleNamespace:
        return SimpleNamespace(key=key, value=value)

    def metric(key: str, value: float, *, timestamp: int, step: int) -> SimpleNamespace:
        return SimpleNamespace(key=key, value=value, timestamp=timestamp, step=step)

    entities, tracking = ModuleType("mlflow.entities"), ModuleType("mlflow.tracking")
    vars(entities).update(Metric=metric, Param=pair, RunTag=pair)
    vars(tracking).update(MlflowClient=client)
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    for setting in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_LOGGING_LEVEL"):
        monkeypatch.setenv(setting, "-")  # so that what the tracker sets is undone
        monkeypatch.delenv(setting)
    return clients


@pytest.mark.parametrize("uri", ["sqlite:///runs.db", "https://host"])
def test_mlflow_gets_one_run_even_if_it_is_resumed(server: dict[str, Client], uri: str) -> None:
    interrupted = MLflow(uri)
    interrupted.started(RUN)
    interrupted.round(1, {"accuracy": 0.1, "epsilon.outsider": 1.0})
    interrupted.finished({"status": "interrupted"})
    assert server[uri].runs["0"].end == ("KILLED", 77)
    tell(MLflow(uri), rounds=2)
    client = server[uri]
    assert list(client.experiments) == ["fedsys"]
    (run,) = client.runs.values()
    assert run.name == RUN.label
    assert run.params == {key: str(value) for key, value in RUN.settings.items()}
    assert run.metrics == {
        ("accuracy", 0.1, 1000, 1),
        ("accuracy", 0.2, 2000, 2),
        ("epsilon.outsider", 1.0, 1000, 1),
        ("epsilon.outsider", 2.0, 2000, 2),
    }
    assert run.tags["fedsys.model_sha256"] == FACTS["model_sha256"]
    assert run.end == ("FINISHED", 77), "how long it took would tell cohorts"


def test_a_server_hears_nothing_before_the_end_and_a_file_each_round(
    server: dict[str, Client],
) -> None:
    remote, local = MLflow("https://host"), MLflow("sqlite:///runs.db")
    for tracker in (remote, local):
        tracker.started(RUN)
        tracker.round(1, {"accuracy": 0.5})
    assert "https://host" not in server
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert len(server["sqlite:///runs.db"].runs["0"].metrics) == 1
    remote.finished(FACTS)
    assert len(server["https://host"].runs["0"].metrics) == 1


def test_many_settings_go_in_parts(server: dict[str, Client]) -> None:
    tracker = MLflow("sqlite:///runs.db")
    tracker.started(TrackedRun(name="a", job="b" * 64, settings={f"s.{n}": n for n in range(250)}))
    assert len(server["sqlite:///runs.db"].runs["0"].params) == 250


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError) as caught:
        build_tracker(f"{name}:sqlite:///x.db")
    assert caught.value.exit_code == 2
    lock = {"mlflow": "requirements-extra.lock", "tensorboard": "requirements.lock"}[name]
    assert str(caught.value) == (
        f"--track {name} needs the package {name}; install it: in the repository, pip install "
        f"--require-hashes -r {lock}"
    )


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("tensorboard", "give a place, as in tensorboard:DIR"),
        ("mlflow:", "give a place, as in mlflow:sqlite:///"),
        ("wandb", "expected tensorboard:DIR, mlflow:URI"),
        ("mlflow:mlruns", "no longer keeps runs in folders"),
        ("no.such.module:Attr", "cannot be created: ModuleNotFoundError"),
        ("json:Nothing", "cannot be created: AttributeError"),
        ("collections:OrderedDict", "returned a OrderedDict, which lacks started"),
        (f"tensorboard:{__file__}", "is a file; give a folder"),
    ],
)
def test_what_is_no_tracker_is_refused_in_one_line(
    spec: str, words: str, server: dict[str, Client]
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_tracker(spec)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ones_own_is_made_from_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tracker.py").write_text(
        "class Mine:\n"
        "    def started(self, run): self.run = run\n"
        "    def round(self, number, values): pass\n"
        "    def finished(self, facts): self.facts = facts\n"
    )
    monkeypatch.chdir(tmp_path)
    tracker = build_tracker("my_tracker:Mine")
    monkeypatch.delitem(sys.modules, "my_tracker")
    tell(tracker, rounds=1)
    assert vars(tracker) == {"run": RUN, "facts": FACTS}
    assert str(tmp_path) not in sys.path


def test_credentials_are_not_shown() -> None:
    assert shown("mlflow:https://me:pass@host:5000/x") == "mlflow:https://***@host:5000/x"
    assert shown("tensorboard:runs/tb") == "tensorboard:runs/tb"


def test_the_examples_in_the_module_run() -> None:
    result = doctest.testmod(trackers)
    assert result.attempted
    assert not result.failed
