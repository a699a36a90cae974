"""What trackers are told of a run: all that is published, and nothing else; whatever they do."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedsys.audit import audit_run
from fedsys.cli.app import app
from fedsys.config import load
from fedsys.errors import ConfigError, RunFolderError
from fedsys.release.publication import publish_run
from fedsys.report.following import Following, send
from fedsys.report.trackers import TrackedRun, Tracker, Value
from server.home.folder import Home
from server.home.state import JobRow, State
from simulations import harness

SMALL = [
    "rounds.count=4",
    "cohort.expected=40",
    "aggregation.protocol=ideal",
    "evaluation.every=2",
    "engine.path=batched",
    "engine.chunk=64",
    "engine.processes=1",
]


class Recording:
    """Keeps every word that it is told."""

    def __init__(self) -> None:
        self.runs: list[TrackedRun] = []
        self.rounds: list[tuple[int, dict[str, float]]] = []
        self.facts: list[dict[str, Value]] = []

    def started(self, run: TrackedRun) -> None:
        self.runs.append(run)

    def round(self, number: int, values: Mapping[str, float]) -> None:
        self.rounds.append((number, dict(values)))

    def finished(self, facts: Mapping[str, Value]) -> None:
        self.facts.append(dict(facts))

    @property
    def told(self) -> Any:
        return self.runs, self.rounds, self.facts


class Failing(Recording):
    def round(self, number: int, values: Mapping[str, float]) -> None:
        super().round(number, values)
        raise ConnectionError("no route to https://me:secret@host")


MADE: list[Recording] = []


def made() -> Recording:
    """What ``--track`` names in a test."""
    MADE.append(Recording())
    return MADE[-1]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recording, list[str]]:
    """A run, a tracker that followed it, and what the user was told besides."""
    folder, live, notices = tmp_path_factory.mktemp("runs") / "run", Recording(), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(folder.parent / "home"))
        with Following(folder, {"live": live}, say=notices.append) as following:
            harness.run(
                load("quickstart", SMALL), out=folder, observer=lambda _event: following.look()
            )
    return folder, live, notices


def test_a_tracker_is_told_every_round_while_the_run_goes_on(
    simulated: tuple[Path, Recording, list[str]],
) -> None:
    folder, live, notices = simulated
    assert notices == []
    (run,) = live.runs
    assert run.name == "quickstart"
    assert run.label == f"quickstart-{run.job[:8]}"
    assert run.settings["rounds.count"] == 4
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line.pop("round") for line in lines] == [2, 4]
    assert [number for number, _ in live.rounds] == [1, 2, 3, 4]
    found = [dict(values) for _, values in live.rounds]
    spent = [values.pop("epsilon.outsider") for values in found]
    assert found == [{}, lines[0], {}, lines[1]]
    curve = audit_run(folder).curve
    assert spent == pytest.approx([point.spent.outsider for point in curve], rel=1e-12)
    (facts,) = live.facts
    summary = json.loads((folder / "summary.json").read_text())
    assert facts["status"] == "completed"
    assert facts["model_sha256"] == summary["model_sha256"]


def test_nothing_goes_out_that_a_published_folder_does_not_hold(
    simulated: tuple[Path, Recording, list[str]], tmp_path: Path
) -> None:
    """The same is told of the private folder and of the published one, which has no secrets."""
    folder, live, _ = simulated
    publish_run(folder, tmp_path / "public")
    assert not (tmp_path / "public" / "private.jsonl").exists()
    private, public = Recording(), Recording()
    send(folder, {"a": private}, say=pytest.fail)
    send(tmp_path / "public", {"b": public}, say=pytest.fail)
    assert private.told == public.told
    assert private.runs == live.runs
    assert private.facts == live.facts
    assert [one for one in live.rounds if one[0] % 2 == 0] == private.rounds
    names = {name for _, values in live.rounds for name in values}
    assert names == {"accuracy", "loss", "epsilon.outsider"}
    assert set(live.facts[0]) == {
        *("status", "rounds", "model_sha256", "ledger_head", "signer", "protocol", "reproducible")
    }
    config = tomllib.loads((tmp_path / "public" / "config.toml").read_text())
    assert {key.split(".")[0] for key in live.runs[0].settings} <= set(config)


def test_a_failing_tracker_is_named_once_and_the_others_go_on(
    simulated: tuple[Path, Recording, list[str]],
) -> None:
    folder, _, _ = simulated
    failing, sound, notices = Failing(), Recording(), list[str]()
    both: dict[str, Tracker] = {"mlflow:https://me:secret@host": failing, "sound": sound}
    send(folder, both, say=notices.append)
    assert len(failing.rounds) == 1
    assert failing.facts == []
    assert len(sound.rounds) == 2
    assert len(sound.facts) == 1
    (notice,) = notices
    assert notice.startswith("tracker mlflow:https://***@host: ConnectionError: no route")
    assert "secret" not in notice
    assert "\n" not in notice


def test_a_tracker_that_hangs_is_left_behind(
    simulated: tuple[Path, Recording, list[str]],
) -> None:
    folder, _, _ = simulated
    release, notices = threading.Event(), list[str]()

    class Hanging(Recording):
        def started(self, run: TrackedRun) -> None:
            release.wait()

    try:
        with Following(folder, {"slow": Hanging()}, say=notices.append, patience=0.05):
            pass
    finally:
        release.set()
    (notice,) = notices
    assert notice.startswith("tracker slow: did not answer in time")


def test_a_run_that_never_began_is_not_mixed_up_with_what_lies_there(
    simulated: tuple[Path, Recording, list[str]],
) -> None:
    folder, _, _ = simulated
    tracker = Recording()
    with (
        pytest.raises(RunFolderError, match="not empty"),
        Following(folder, {"a": tracker}, say=pytest.fail),
    ):
        harness.run(load("quickstart", SMALL), out=folder)
    assert tracker.told == ([], [], [])


def test_a_run_that_breaks_off_is_told_as_interrupted(
    simulated: tuple[Path, Recording, list[str]], tmp_path: Path
) -> None:
    folder, live, _ = simulated
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    tracker = Recording()

    def break_off() -> None:
        with Following(tmp_path / "run", {"a": tracker}, say=pytest.fail) as following:
            following.look()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk"):
        break_off()
    assert tracker.facts == [{"status": "interrupted"}]
    assert tracker.runs == live.runs


def test_a_damaged_folder_ends_the_following_in_one_line(
    simulated: tuple[Path, Recording, list[str]], tmp_path: Path
) -> None:
    shutil.copytree(simulated[0], tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("{\n")
    notices = list[str]()
    send(tmp_path / "run", {"a": Recording()}, say=notices.append)
    (notice,) = notices
    assert notice.startswith("tracking stopped: ")
    with pytest.raises(RunFolderError, match="no run to track"):
        send(tmp_path / "nowhere", {}, say=notices.append)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a tracker that lies in the current folder; what it makes is in `MADE`."""
    (tmp_path / "mine.py").write_text("from tests_following import made as Mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tests_following", sys.modules[__name__])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    MADE.clear()
    return "mine:Mine"


def test_a_deployed_job_is_told_when_it_is_fetched(
    simulated: tuple[Path, Recording, list[str]], tmp_path: Path, own: str
) -> None:
    home = Home.create(tmp_path / "hq", hosts=["localhost"])
    shutil.copytree(simulated[0], home.jobs / "a1")
    state = State.open(tmp_path / "hq")
    with state.transaction() as session:
        session.add(
            JobRow(number=1, id="a1", name="a", config="", status="completed", submitted_at=0.0)
        )
    state.close()
    fetch = ["job", "fetch", "hq", "a1"]
    refused = CliRunner().invoke(app, [*fetch, "bad", "--track", "nothing"])
    assert isinstance(refused.exception, ConfigError)
    assert not (tmp_path / "bad").exists()
    result = CliRunner().invoke(app, [*fetch, "out", "--track", own])
    assert result.exit_code == 0, result.output
    (tracker,) = MADE
    assert tracker.runs == simulated[1].runs
    assert tracker.facts == simulated[1].facts


@pytest.mark.slow
def test_the_command_follows_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    settings = [word for setting in SMALL for word in ("--set", setting)]
    result = CliRunner().invoke(
        app, ["simulate", *settings, "--set", "privacy.mechanism=none", "--track", own]
    )
    assert result.exit_code == 0, result.output
    (tracker,) = MADE
    assert [number for number, _ in tracker.rounds] == [2, 4]
    assert all("epsilon.outsider" not in values for _, values in tracker.rounds)
    assert tracker.facts[0]["status"] == "completed"
    assert (tmp_path / "runs" / "quickstart" / "summary.json").is_file()
