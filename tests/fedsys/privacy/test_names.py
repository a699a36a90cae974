"""The package's names: the same for readers, type checkers and the interpreter."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fedsys.privacy
from fedsys.privacy import _NAMES

SOURCE = Path(fedsys.privacy.__file__).read_text("utf-8")


def imported_for_type_checkers() -> dict[str, tuple[str, ...]]:
    block = next(node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    found = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        assert statement.module is not None
        assert statement.module.startswith("fedsys.privacy.")
        assert not any(each.asname for each in statement.names)
        found[statement.module.removeprefix("fedsys.privacy.")] = tuple(
            each.name for each in statement.names
        )
    return found


def test_type_checkers_see_what_is_loaded() -> None:
    assert imported_for_type_checkers() == _NAMES
    assert sorted(name for names in _NAMES.values() for name in names) == sorted(
        fedsys.privacy.__all__
    )


def test_every_name_is_its_modules() -> None:
    for module, names in _NAMES.items():
        home = importlib.import_module(f"fedsys.privacy.{module}")
        for name in names:
            assert getattr(fedsys.privacy, name) is getattr(home, name)


def test_no_name_is_a_modules_name_too() -> None:
    """Importing a module binds its name in its package, over what else has that name."""
    modules = {each.name for each in pkgutil.iter_modules(fedsys.privacy.__path__)}
    assert not modules & set(fedsys.privacy.__all__)


def test_other_names_are_none_of_it() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(fedsys.privacy, "nonsense")  # noqa: B009
    assert set(fedsys.privacy.__all__) <= set(dir(fedsys.privacy))


def test_each_module_can_be_the_first_one_loaded() -> None:
    code = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    for other in [each for each in sys.modules if each.startswith("fedsys")]:
        del sys.modules[other]
"""
    modules = [
        f"fedsys.privacy.{each.name}" for each in pkgutil.iter_modules(fedsys.privacy.__path__)
    ]
    subprocess.run(
        [sys.executable, "-c", code, *modules],
        cwd=Path(fedsys.privacy.__file__).parents[2],
        check=True,
    )
