"""`fedsys.simulate` with what a notebook has: objects, classes, NumPy's numbers, edited files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsys
from fedsys.config import load
from fedsys.errors import ConfigError
from fedsys.tasks.digits import Digits
from simulations.harness import RoundReport
from tests.fedsys.api.conftest import SMALL

ROOT = Path(__file__).resolve().parents[3]


class Own(Digits):
    """A task of one's own, with a state."""

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__({})
        self.slope = slope

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.slope * super().loss(outputs, targets)


PLAIN = {
    **SMALL,
    "privacy.mechanism": "none",
    "privacy.clip": 10.0,
    "engine.path": "loop",
    "engine.chunk": 16,
}
"""Without privacy, so that two runs of the same task give the same bits; updates stay unclipped."""


def simulate(out: Path, task: object | None = None, **more: Any) -> fedsys.Run:
    settings = {**PLAIN, **{key.replace("__", "."): value for key, value in more.items()}}
    return fedsys.simulate("quickstart", settings, task=task, out=out, progress=False)


def weights(run: fedsys.Run) -> Mapping[str, Any]:
    return torch.load(run.folder / "model.pt", weights_only=True)  # type: ignore[no-any-return]


def same(one: fedsys.Run, other: fedsys.Run) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_an_object_trains_alike_in_one_process_and_in_two(tmp_path: Path) -> None:
    one = simulate(tmp_path / "one", Own(2.0))
    two = simulate(tmp_path / "two", Own(2.0), engine__processes=2)
    other = simulate(tmp_path / "other", Own(0.5), engine__processes=2)
    assert load(two.folder / "config.toml").engine.processes == 2
    assert load(two.folder / "config.toml").task.name == f"{__name__}:Own(...)"
    assert same(one, two)
    assert not same(two, other)
    assert isinstance(two.task, Own)
    assert two.task.slope == 2.0


def test_a_class_an_object_and_a_name_train_alike(tmp_path: Path) -> None:
    made = simulate(tmp_path / "class", Own)
    named = simulate(tmp_path / "name", f"{__name__}:Own")
    ready = simulate(tmp_path / "object", Own())
    in_settings = simulate(tmp_path / "settings", task__name=Own)
    options = simulate(tmp_path / "options", Own, task__options={"slope": np.float64(1.0)})
    for run in (named, ready, in_settings, options):
        assert same(made, run)
    assert load(made.folder / "config.toml").task.name == f"{__name__}:Own"
    assert load(options.folder / "config.toml").task.options == {"slope": 1.0}


def test_a_task_takes_the_place_of_a_recipes_with_its_options(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    text = 'task.name = "digits"\ntask.options = { hidden = 3 }\nprivacy.mechanism = "none"\n'
    recipe.write_text(text, encoding="utf-8")
    settings = {"rounds.count": 1, "aggregation.protocol": "ideal", "engine.processes": 1}
    run = fedsys.simulate(recipe, settings, task=Own(), out=tmp_path / "run", progress=False)
    assert load(run.folder / "config.toml").task.options == {}


def test_only_one_place_says_what_to_train(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task and settings\['task.name'\] both say what"):
        simulate(tmp_path / "run", Own, task__name="digits")
    with pytest.raises(ConfigError, match="not of a loaded Config"):
        fedsys.simulate(load("quickstart"), {"rounds.count": 1}, out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"settings\['rounds.count'\]: a object is not a setting"):
        fedsys.simulate(settings={"rounds.count": object()}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loaded_configuration_and_settings_alone_serve_too(tmp_path: Path) -> None:
    settings = {"rounds": {"count": 1}, "aggregation": {"protocol": "ideal"}}
    alone = fedsys.simulate(settings, out=tmp_path / "alone", progress=False)
    assert (alone.summary["rounds"], alone.epsilon.outsider < 10) == (1, True)
    config = load("quickstart", values=settings)
    loaded = fedsys.simulate(config, task=Own, out=tmp_path / "loaded", progress=False)
    assert load(loaded.folder / "config.toml").task.name == f"{__name__}:Own"


def test_the_observer_hears_every_round(tmp_path: Path) -> None:
    heard: list[RoundReport | str] = []
    fedsys.simulate("quickstart", SMALL, out=tmp_path / "run", observer=heard.append)
    reports = [each for each in heard if isinstance(each, RoundReport)]
    assert [(each.number, each.of) for each in reports] == [(1, 3), (2, 3), (3, 3)]


def test_progress_is_on_standard_error_and_can_be_turned_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fedsys.simulate("quickstart", SMALL, out=tmp_path / "a")
    shown = capsys.readouterr()
    assert "round 3/3  accuracy" in shown.err
    assert shown.out == ""
    fedsys.simulate("quickstart", SMALL, out=tmp_path / "b", progress=False)
    assert capsys.readouterr().err == ""


def test_an_interrupted_run_of_an_object_goes_on_with_the_object(tmp_path: Path) -> None:
    def stop(event: RoundReport | str) -> None:
        if isinstance(event, RoundReport) and event.number == 2:
            raise KeyboardInterrupt

    run = fedsys.simulate(
        "quickstart", PLAIN, task=Own(2.0), out=tmp_path / "run", observer=stop, progress=False
    )
    assert run.interrupted
    assert len(run.history) == 2
    with pytest.raises(ConfigError, match=r"which its name cannot rebuild; give the same again"):
        fedsys.resume(run.folder, progress=False)
    done = fedsys.resume(run.folder, task=Own(2.0), progress=False)
    assert not done.interrupted
    assert same(done, simulate(tmp_path / "whole", Own(2.0)))


NOTEBOOK = """
import asyncio, sys
import numpy as np
from pathlib import Path
import fedsys
from fedsys.tasks.digits import Digits

class Mine(Digits):
    pick = staticmethod(lambda outputs: outputs.argmax(1))
    def __init__(self, width=3):
        super().__init__({})

heard = []
small = {
    "rounds.count": np.int64(1), "privacy.mechanism": "none", "aggregation.protocol": "ideal",
    "local.learning_rate": np.float32(0.1), "cohort.cap": None, "engine.processes": 2,
}

async def cell():
    for number, task in enumerate((Mine, Mine(), "__main__:Mine")):
        run = fedsys.simulate(
            "quickstart", small, task=task, out=Path(f"run-{number}"), observer=heard.append
        )
        print(run.summary["rounds"], type(run.model()).__name__)

asyncio.run(cell())
print(*[each for each in heard if isinstance(each, str)], sep="\\n")
"""


def test_a_class_of_the_notebook_itself_trains_and_says_why_in_one_process(tmp_path: Path) -> None:
    """From standard input, as a kernel: there is no file, a loop is running."""
    finished = subprocess.run(
        [sys.executable, "-P", "-"],
        input=NOTEBOOK,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[:3] == ["1 Sequential"] * 3 or lines[:3] == ["1 Linear"] * 3, lines
    assert len(lines) == 9
    for line, clipping in zip(lines[3::2], lines[4::2], strict=True):
        assert clipping.startswith("privacy.clip = 0.3 clips under mechanism 'none' too")
        assert line.startswith("engine.processes = 1: task __main__:Mine")
        assert line.endswith('say mytask.py, and give task="mytask:Mine"')
    for number in range(3):
        config = load(tmp_path / f"run-{number}" / "config.toml")
        assert config.engine.processes == 1


EDITED = """
from fedsys.tasks.digits import Digits

class Mine(Digits):
    def __init__(self):
        super().__init__({{}})
    def loss(self, outputs, targets):
        return {sign} * super().loss(outputs, targets)
    def metrics(self, outputs, targets):
        return {{"sign": {sign} + 0 * outputs[:, 0]}}
"""


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_edited_task_is_trained_and_evaluated_by_the_same_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    name = f"edited_task_{processes}"
    monkeypatch.chdir(tmp_path)
    runs = []
    for sign in (1, -1):
        (tmp_path / f"{name}.py").write_text(EDITED.format(sign=sign), encoding="utf-8")
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        out = tmp_path / f"run {sign}"
        runs.append(simulate(out, f"{name}:Mine", engine__processes=processes))
    rising, falling = runs
    assert (rising.metrics["sign"], falling.metrics["sign"]) == (1, -1), "the server's code"
    assert rising.metrics["loss"] > 0 > falling.metrics["loss"], "the server's code"
    steps = [
        (weights(run)[key] - rising.model().state_dict()[key]).abs().sum().item()
        for run in runs
        for key in weights(run)
    ]
    assert sum(steps[: len(steps) // 2]) == 0
    assert sum(steps[len(steps) // 2 :]) > 1, "the clients' code: they climbed"
