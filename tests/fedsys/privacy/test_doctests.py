"""The examples in the package's docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import fedsys.privacy

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fedsys.privacy.__path__, prefix="fedsys.privacy.")
    if module.name != "fedsys.privacy.tables.build"
)


@pytest.mark.parametrize("name", ["fedsys.privacy", *MODULES])
def test_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    count = sum(
        len(test.examples)
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
    )
    assert count > 30
