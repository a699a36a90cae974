"""The package as a whole: what it imports, and that its documents are true."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import secure_agg
from secure_agg import SecAggParams, checks, errors
from secure_agg.messages import Kind
from secure_agg.params import PARAMS_SIZE

ROOT = Path(secure_agg.__file__).parent


def test_it_stands_alone() -> None:
    """Importing it brings in numpy and cryptography, and nothing else that has to be installed."""
    code = """
import sys
before = set(sys.modules)
import secure_agg
print(*{name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    compiled = {"_cffi_backend", "_openssl"}  # of cryptography
    assert set(found.stdout.split()) - compiled == {"secure_agg", "numpy", "cryptography"}


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
    pattern = r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) " + r"\| (\d+) " * 6 + r"\|$"
    rows = re.findall(pattern, text, re.M)
    assert len(rows) == 9
    for n, corrupt, dropout, *sizes in rows:
        params = SecAggParams.derive(
            n=int(n),
            corrupt=float(corrupt),
            dropout=float(dropout),
            modulus_bits=20,
            dimension=100_000,
        )
        found = (
            params.committee,
            params.colluders,
            params.quorum,
            params.threshold,
            params.packing,
            params.errors,
        )
        assert found == tuple(map(int, sizes))
    assert f"params ({PARAMS_SIZE})" in text


def test_every_check_is_used_and_taken_away_by_an_attack() -> None:
    """A refusal that no test removes is not known to matter."""
    own = {
        name
        for name, value in vars(checks).items()
        if inspect.isfunction(value) and value.__module__ == checks.__name__
    }
    code = "".join(path.read_text() for path in ROOT.glob("*.py"))
    attacks = "".join(
        path.read_text() for path in (ROOT.parent / "tests" / "adversary").glob("test_*.py")
    )
    for name in sorted(own):
        assert f"checks.{name}(" in code, f"{name} is not used"
        removed = f'without("{name}"' in attacks or f'"{name}"' in attacks
        assert removed, f"no attack takes {name} away"
