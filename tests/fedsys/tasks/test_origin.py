"""Tasks that are handed over as they are: their names, and how another process gets the same."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from types import ModuleType

import pytest
import torch

from fedsys.errors import ConfigError
from fedsys.tasks import Origin, Recipe, load
from fedsys.tasks.digits import Digits


class Bare(Digits):
    """Without a state of its own."""

    def __init__(self) -> None:
        pass


class Wide(Digits):
    """With a state."""

    def __init__(self, width: int = 2) -> None:
        super().__init__({})
        self.width = width


class Unsaved(Wide):
    """That no pickle can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.pick = lambda: 0


def factory(width: int = 7) -> Wide:
    return Wide(width)


HERE = __name__


@pytest.mark.parametrize(
    ("given", "name", "built"),
    [
        ("digits", "digits", True),
        (Bare(), f"{HERE}:Bare", True),
        (Wide, f"{HERE}:Wide", True),
        (factory, f"{HERE}:factory", True),
        (Wide(3), f"{HERE}:Wide(...)", False),
        (Unsaved(), f"{HERE}:Unsaved(...)", False),
    ],
)
def test_a_name_says_whether_it_can_rebuild_the_task(given: object, name: str, built: bool) -> None:
    origin = Origin.of(given)
    assert (origin.name, origin.built) == (name, built)


def test_a_class_takes_options_and_an_object_none() -> None:
    origin = Origin.of(Wide, {"width": 5})
    assert isinstance(origin.task, Wide)
    assert (origin.task.width, origin.options) == (5, {"width": 5})
    with pytest.raises(ConfigError, match="is a finished task and takes none"):
        Origin.of(Wide(3), {"width": 5})
    with pytest.raises(ConfigError, match="neither a task nor something that makes one"):
        Origin.of(3)
    with pytest.raises(ConfigError, match="lacks name, init_model"):
        Origin.of(dataclasses.make_dataclass("Nothing", []))


def test_a_class_inside_a_function_is_an_object_too() -> None:
    class Inner(Bare):
        pass

    origin = Origin.of(Inner)
    assert not origin.built
    assert "cannot be pickled for other processes" in origin.obstacle
    assert "give a task that is built from its name" in origin.obstacle


@pytest.mark.parametrize("given", ["digits", Bare(), Wide, Wide(3), factory])
def test_another_process_gets_the_same(given: object) -> None:
    origin = Origin.of(given)
    assert origin.obstacle == ""
    recipe = pickle.loads(pickle.dumps(origin.recipe()))  # noqa: S301
    task = recipe.build()
    assert type(task) is type(origin.task)
    assert getattr(task, "width", None) == getattr(origin.task, "width", None)


def test_another_device_gets_the_object_itself() -> None:
    origin = Origin.of(Unsaved())
    assert origin.recipe(pickled=False).build() is origin.task
    with pytest.raises(ConfigError, match="cannot be pickled"):
        origin.recipe()


def test_a_task_of_the_notebook_itself_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    exec(
        "from fedsys.tasks.digits import Digits\n"
        "class Mine(Digits):\n"
        "    def __init__(self): pass\n",
        vars(main),
    )
    monkeypatch.setitem(sys.modules, "__main__", main)
    for given in (main.Mine, main.Mine(), "__main__:Mine"):
        origin = Origin.of(given)
        assert origin.name == "__main__:Mine"
        assert origin.obstacle == (
            "task __main__:Mine is defined in the notebook or script itself, which other "
            "processes cannot import; to train in several, write it to a file, say mytask.py, and "
            'give task="mytask:Mine"'
        )
        assert origin.recipe(pickled=False).build() is origin.task, "Ray pickles it by itself"


def test_names_that_rebuild_nothing_say_why() -> None:
    with pytest.raises(ConfigError, match=r"which its name cannot rebuild; .*resume\(folder, task"):
        load(f"{HERE}:Wide(...)")
    with pytest.raises(ConfigError, match="notebook or script that is not running here"):
        load("__main__:NoSuchTask")


def test_a_pickle_that_fails_elsewhere_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"task mine: the object cannot be unpickled .*processes"):
        Recipe(name="mine", given=b"no pickle").build()


def test_a_task_that_holds_tensors_travels() -> None:
    task = Wide()
    task.held = torch.arange(3)  # type: ignore[attr-defined]
    found = Origin.of(task).recipe().build()
    assert torch.equal(found.held, torch.arange(3))  # type: ignore[attr-defined]
