"""The examples in the package's docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["merkle", "note", "checkpoint"])
def test_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"fedsys.transparency.{name}"))
    assert result.attempted
    assert not result.failed
