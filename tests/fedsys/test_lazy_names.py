"""Names that are loaded when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = """
from fedsys.lazy_names import on_use

__getattr__, __dir__ = on_use(
    __name__,
    {"circle": ("Circle", "unit"), "square": ("Square",)},
    modules=("line",),
)
"""


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "lazy_shapes"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE, encoding="utf-8")
    (folder / "circle.py").write_text("class Circle: pass\nunit = Circle()\n", encoding="utf-8")
    (folder / "square.py").write_text("raise OSError('no square')\n", encoding="utf-8")
    (folder / "line.py").write_text("length = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "lazy_shapes"
    for name in [each for each in sys.modules if each.startswith("lazy_shapes")]:
        del sys.modules[name]


def test_a_names_module_is_loaded_with_the_name_and_no_other(shapes: str) -> None:
    package = importlib.import_module(shapes)
    assert f"{shapes}.circle" not in sys.modules
    assert package.Circle is sys.modules[f"{shapes}.circle"].Circle
    assert vars(package)["Circle"] is package.Circle, "bound: not looked up again"
    assert "unit" not in vars(package)
    assert f"{shapes}.square" not in sys.modules


def test_a_module_can_be_a_name_itself(shapes: str) -> None:
    package = importlib.import_module(shapes)
    assert "line" in dir(package)
    assert f"{shapes}.line" not in sys.modules
    assert package.line.length == 1


def test_names_are_listed_without_being_loaded(shapes: str) -> None:
    package = importlib.import_module(shapes)
    assert {"Circle", "unit", "Square", "__name__"} <= set(dir(package))
    assert f"{shapes}.circle" not in sys.modules


def test_other_names_are_refused_and_a_modules_failure_is_its_own(shapes: str) -> None:
    package = importlib.import_module(shapes)
    with pytest.raises(AttributeError, match="module 'lazy_shapes' has no attribute 'triangle'"):
        getattr(package, "triangle")  # noqa: B009
    with pytest.raises(OSError, match="no square"):
        getattr(package, "Square")  # noqa: B009
