"""From a name to a task: built in, the user's own, and every way to get it wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fedsys.errors import ConfigError, DataError
from fedsys.tasks import (
    DataSource,
    Examples,
    FederatedData,
    Origin,
    Task,
    builtin_names,
    load,
    look_beside,
)

OWN = """
import torch
from fedsys.tasks import Examples, FederatedData, seeded

class Mine:
    name = "mine"
    def __init__(self, width=3):
        self.width = width
    def init_model(self, seed):
        with seeded(seed):
            return torch.nn.Linear(self.width, 2)
    def loss(self, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
    def metrics(self, outputs, targets):
        return {"accuracy": (outputs.argmax(1) == targets).float()}
    def clients(self, source):
        some = Examples(x=torch.zeros(4, self.width), y=torch.zeros(4, dtype=torch.int64))
        return FederatedData(train=some, test=some)

ready = Mine()
half = object()
class Lacking:
    name = "lacking"
class Raising:
    def __init__(self, how="KeyError"):
        raise {"KeyError": KeyError, "OSError": OSError, "SystemExit": SystemExit}[how]("a\\nb")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_task_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("name", [name for name in builtin_names() if name != "tabular"])
def test_builtin_tasks_initialise_from_their_seed_alone(name: str) -> None:
    needed: dict[str, dict[str, object]] = {
        "images": {"path": "x", "classes": ["a", "b"]},
        "leaf": {"path": "x", "model": "mlp"},
        "hf": {"path": "x", "image": "i", "label": "y", "classes": ["a", "b"], "size": 8},
    }
    task = load(name, needed.get(name))
    assert isinstance(task, Task)
    assert task.name == name
    before = torch.get_rng_state()
    one, same, other = (task.init_model(seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], same[key]) for key in one)
    if name != "digits":
        assert any(not torch.equal(one[key], other[key]) for key in one)


def test_ones_own_task_from_the_current_folder(own: str) -> None:
    task = load(f"{own}:Mine", {"width": 5})
    assert task.init_model(0).in_features == 5
    assert load(f"{own}:ready").name == "mine"
    assert len(task.clients(DataSource()).train) == 4


def test_a_task_next_to_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its neighbours are found while its methods run, here and in other processes, and what it
    prints is not taken for a command's output."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    (project / "config.toml").touch()
    (project / "neighbour_7f.py").write_text("WIDTH = 7\n")
    text = OWN.replace(
        "return torch.nn.Linear(self.width",
        "from neighbour_7f import WIDTH\n            return torch.nn.Linear(WIDTH",
    )
    (project / "beside_7f.py").write_text("print('hello')\n" + text)
    (elsewhere / "beside_7f.py").write_text("raise SystemExit\n")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr("fedsys.tasks.loading._beside", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    look_beside("quickstart")
    look_beside(project / "config.toml")
    origin = Origin.named("beside_7f:Mine")
    assert origin.task.init_model(0).in_features == 7
    out, err = capsys.readouterr()
    assert (out, err) == ("", "hello\n")
    monkeypatch.setattr("fedsys.tasks.loading._beside", [])  # as in another process
    assert origin.recipe().build().init_model(0).in_features == 7


def test_wrong_names_are_one_clear_line(own: str) -> None:
    with pytest.raises(ConfigError, match=r"'mnits': no such task \(did you mean mnist\?\)"):
        load("mnits")
    with pytest.raises(ConfigError, match=r"has no 'Mime' \(did you mean Mine\?\)"):
        load(f"{own}:Mime")
    with pytest.raises(ConfigError, match=rf"No module named .*did you mean {own}\?"):
        load(f"{own}x:Mine")
    with pytest.raises(ConfigError, match="lacks init_model, loss, metrics, clients"):
        load(f"{own}:Lacking")
    with pytest.raises(ConfigError, match="neither a task nor something that makes one"):
        load(f"{own}:half")
    with pytest.raises(ConfigError, match=r"cannot be built with options \{'depth': 3\}"):
        load(f"{own}:Mine", {"depth": 3})
    with pytest.raises(ConfigError, match=r"cannot be built with options \{\}: KeyError: 'a"):
        load(f"{own}:Raising")
    with pytest.raises(ConfigError, match=r"'how': 'OSError'\}: OSError: a b$"):
        load(f"{own}:Raising", {"how": "OSError"})
    with pytest.raises(ConfigError, match=r"SystemExit: a b$"):
        load(f"{own}:Raising", {"how": "SystemExit"})
    with pytest.raises(ConfigError, match="is a finished task and takes none"):
        load(f"{own}:ready", {"width": 3})


def test_a_module_that_fails_on_import_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_task_module.py").write_text("1 / 0\n")
    (tmp_path / "leaving_task_module.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="failed: ZeroDivisionError"):
        load("broken_task_module:Mine")
    with pytest.raises(ConfigError, match="failed: SystemExit: 0"):
        load("leaving_task_module:Mine")


def test_wrong_options_are_one_clear_line() -> None:
    with pytest.raises(ConfigError, match=r"task\.options\.modle: .*did you mean model\?"):
        load("mnist", {"modle": "cnn"})
    with pytest.raises(ConfigError, match=r"task\.options\.model = 'cn': allowed are mlp, cnn"):
        load("mnist", {"model": "cn"})
    with pytest.raises(ConfigError, match=r"task\.options\.hidden = 'x': .* takes a int"):
        load("digits", {"hidden": "x"})
    with pytest.raises(ConfigError, match=r"task\.options\.hidden = -1: allowed are 0 to"):
        load("digits", {"hidden": -1})
    with pytest.raises(ConfigError, match=r"test_fraction = 1\.0: must lie between 0 and 1"):
        load("shakespeare", {"test_fraction": 1.0})
    with pytest.raises(ConfigError, match=r"task\.options\.path is missing"):
        load("tabular")


def test_data_is_looked_for_in_order_and_its_absence_explained(tmp_path: Path) -> None:
    given, environment = tmp_path / "given", tmp_path / "environment"
    given.mkdir()
    environment.mkdir()
    source = DataSource.locate(given, {"FEDSYS_DATA": str(environment)})
    (environment / "f").write_text("")
    assert source.find("f", "how") == environment / "f"
    (given / "f").write_text("")
    assert source.find("f", "how") == given / "f"
    with pytest.raises(DataError, match=rf"g not found \(looked in --data={given}, FEDSYS_DATA="):
        source.find("g", "how")
    with pytest.raises(DataError, match="neither --data nor FEDSYS_DATA is set"):
        load("mnist").clients(DataSource.locate(None, {}))


def test_examples_and_clients_must_fit_together() -> None:
    some = Examples(x=torch.zeros(3, 2), y=torch.zeros(3))
    with pytest.raises(DataError, match="3 inputs but 2 targets"):
        Examples(x=torch.zeros(3, 2), y=torch.zeros(2))
    with pytest.raises(DataError, match="no training example is left"):
        FederatedData(train=Examples(x=torch.zeros(0, 2), y=torch.zeros(0)), test=some)
    with pytest.raises(DataError, match="2 client ids for 3 training examples"):
        FederatedData(train=some, test=some, natural=torch.tensor([0, 1]))
