"""Files of a task that are edited while the process lives: read again, refused, never half."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsys import tasks
from fedsys.errors import ConfigError
from fedsys.tasks import Origin
from fedsys.tasks.sources import check_sources, edited, forget, own_modules, sources_of

TASK = """
from {helper} import SCALE, scaled

class Mine:
    name = "mine"
    scale = SCALE
    def init_model(self, seed): return {answer}
    def loss(self, outputs, targets): return scaled()
    def metrics(self, outputs, targets): return {{}}
    def clients(self, source): return None
"""
HELPER = "SCALE = {scale}\ndef scaled(): return {scale} * 2\n"

Write = Callable[..., None]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """A task's module and its helper's, not yet written."""
    tail = tmp_path.name.replace("-", "_")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = (f"task_{tail}", f"helper_{tail}")
    yield found
    for name in found:
        sys.modules.pop(name, None)


@pytest.fixture
def write(tmp_path: Path, names: tuple[str, str]) -> Write:
    task, helper = names

    def both(answer: int = 1, scale: int = 10) -> None:
        text = TASK.format(helper=helper, answer=answer)
        (tmp_path / f"{task}.py").write_text(text, encoding="utf-8")
        (tmp_path / f"{helper}.py").write_text(HELPER.format(scale=scale), encoding="utf-8")
        importlib.invalidate_caches()

    both()
    return both


def load(name: str) -> Any:
    """The task, whose methods answer with plain numbers."""
    return tasks.load(name)


def taken(given: object) -> Any:
    """The task of an object or class, likewise."""
    return Origin.of(given).task


def age(folder: Path) -> None:
    """Files that were there before this process."""
    for path in folder.glob("*.py"):
        os.utime(path, (1_000_000_000, 1_000_000_000))


def test_a_task_is_read_again_when_its_file_was_edited(
    names: tuple[str, str], write: Write
) -> None:
    name = f"{names[0]}:Mine"
    before = load(name)
    assert load(name).__class__ is before.__class__, "nothing was edited"
    write(answer=2)
    after = load(name)
    assert (before.init_model(0), after.init_model(0)) == (1, 2), "an older object stays whole"


def test_a_helper_is_read_again_too(names: tuple[str, str], write: Write) -> None:
    name = f"{names[0]}:Mine"
    before = load(name)
    write(scale=30)
    after = load(name)
    assert (before.loss(None, None), before.scale) == (20, 10)
    assert (after.loss(None, None), after.scale) == (60, 30)


def test_a_name_that_the_edit_took_away_is_gone(
    tmp_path: Path, names: tuple[str, str], write: Write
) -> None:
    load(f"{names[0]}:Mine")
    path = tmp_path / f"{names[0]}.py"
    path.write_text(path.read_text().replace("class Mine", "class Other"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has no 'Mine'"):
        load(f"{names[0]}:Mine")
    assert load(f"{names[0]}:Other").name == "mine"


def test_an_edit_with_a_mistake_is_told_and_mended(
    tmp_path: Path, names: tuple[str, str], write: Write
) -> None:
    load(f"{names[0]}:Mine")
    (tmp_path / f"{names[0]}.py").write_text("class Mine(:\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="failed: SyntaxError"):
        load(f"{names[0]}:Mine")
    write(answer=3)
    assert load(f"{names[0]}:Mine").init_model(0) == 3


def test_an_object_of_an_edited_class_is_refused_and_the_next_import_is_new(
    names: tuple[str, str], write: Write
) -> None:
    module = importlib.import_module(names[0])
    assert taken(module.Mine()).init_model(0) == 1
    write(answer=2)
    with pytest.raises(ConfigError, match=rf"{names[0]}\.py was edited after it was imported"):
        Origin.of(module.Mine())
    with pytest.raises(ConfigError, match="was imported again since, or forgotten; import it"):
        Origin.of(module.Mine)
    again = importlib.import_module(names[0])
    assert taken(again.Mine()).init_model(0) == 2
    with pytest.raises(ConfigError, match="was imported again since, or forgotten; import it"):
        Origin.of(module.Mine)


def test_a_reload_of_the_users_own_is_noticed(names: tuple[str, str], write: Write) -> None:
    module = importlib.import_module(names[0])
    assert edited(module) == []
    write(answer=2)
    assert [each.__name__ for each in edited(module)] == [names[0]]
    importlib.reload(module)
    assert edited(module) == []
    assert taken(module.Mine()).init_model(0) == 2


def test_an_edit_before_the_first_look_is_seen_in_the_functions(
    names: tuple[str, str], write: Write
) -> None:
    module = importlib.import_module(names[0])
    write(answer=2)
    assert [each.__name__ for each in edited(module)] == [names[0]]


def test_an_old_file_needs_no_comparison(
    tmp_path: Path, names: tuple[str, str], write: Write
) -> None:
    age(tmp_path)
    module = importlib.import_module(names[0])
    assert edited(module) == []


def test_only_the_users_modules_are_looked_at(names: tuple[str, str], write: Write) -> None:
    module = importlib.import_module(names[0])
    assert [each.__name__ for each in own_modules(module)] == [names[1], names[0]]
    for name in ("json", "numpy", "fedsys.tasks.digits", "__main__"):
        assert own_modules(importlib.import_module(name)) == []


def test_modules_that_import_each_other_end(
    tmp_path: Path, names: tuple[str, str], write: Write
) -> None:
    (tmp_path / f"{names[1]}.py").write_text(
        f"SCALE = 1\ndef scaled():\n    import {names[0]}\n    return {names[0]}\n", "utf-8"
    )
    module = importlib.import_module(names[0])
    assert {each.__name__ for each in own_modules(module)} == set(names)
    assert edited(module) == []


def test_another_process_compares_files(names: tuple[str, str], write: Write) -> None:
    module = importlib.import_module(names[0])
    expected = sources_of(module)
    assert set(expected) == set(names)
    check_sources(expected)
    write(scale=11)
    with pytest.raises(ConfigError, match=rf"{names[1]}\.py: was edited after the run had"):
        check_sources(expected)


def test_what_is_forgotten_is_no_longer_its_packages_attribute(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    package = tmp_path / names[0]
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "part.py").write_text("answer = 1\n", encoding="utf-8")
    part = importlib.import_module(f"{names[0]}.part")
    (package / "part.py").write_text("answer = 2\n", encoding="utf-8")
    forget([part])
    exec(f"from {names[0]} import part as new", found := {})  # type: ignore[var-annotated]
    assert (part.answer, found["new"].answer) == (1, 2)
    sys.modules.pop(f"{names[0]}.part")
