"""The package as a whole: what it imports, how fast, and that its documents are true."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import secure_agg
from secure_agg import SecAggParams, errors
from secure_agg.messages import Kind

ROOT = Path(secure_agg.__file__).parent


def test_it_stands_alone() -> None:
    """No torch, flwr, grpc or scipy comes with it."""
    code = (
        "import sys, secure_agg; "
        "print(sorted({'torch', 'flwr', 'grpc', 'scipy', 'fedsys'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert found.stdout.strip() == "[]"


def test_it_imports_quickly() -> None:
    """Under 0.2 s of CPU beyond the interpreter's own start; the best of five."""
    code = (
        "import time; start = time.process_time(); import secure_agg; "
        "print(time.process_time() - start)"
    )
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True, text=True, check=True, cwd=ROOT.parent,
            ).stdout
        )
        for _ in range(5)
    ]  # fmt: skip
    assert min(times) < 0.2


@pytest.mark.parametrize("name", sorted(p.stem for p in ROOT.glob("*.py") if p.stem[0] != "_"))
def test_examples_run(name: str) -> None:
    module = importlib.import_module(f"secure_agg.{name}")
    extra = {"np": np, "SecAggParams": SecAggParams, "os": importlib.import_module("os")}
    assert doctest.testmod(module, extraglobs=extra).failed == 0


def test_the_package_example_runs() -> None:
    assert doctest.testmod(secure_agg).failed == 0


def test_public_names() -> None:
    for name in secure_agg.__all__:
        assert getattr(secure_agg, name) is not None
    for name in errors.__all__:
        error = getattr(errors, name)
        assert issubclass(error, secure_agg.SecureAggError)
        assert error.__doc__


def test_the_document_lists_every_message_and_derived_value() -> None:
    text = (ROOT / "PROTOCOL.md").read_text()
    for kind in Kind:
        assert f"| {int(kind)} {kind.name} |" in text
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| (\d+) \| (\d+) \|$", text, re.M)
    assert len(rows) == 9
    for n, corrupt, dropout, degree, threshold in rows:
        params = SecAggParams.derive(n=int(n), corrupt=float(corrupt), dropout=float(dropout))
        assert (params.degree, params.threshold) == (int(degree), int(threshold))
