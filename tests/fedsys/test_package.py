"""The package as a whole: versions agree, imports are light, help is instant."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fedsys

ROOT = Path(__file__).resolve().parents[2]


def test_the_version_is_stated_once_and_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == fedsys.__version__


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import fedsys", {"torch", "numpy", "typer"}),
        ("import fedsys.cli.app", {"torch", "numpy", "scipy", "grpc", "flwr", "matplotlib"}),
        ("import secure_agg", {"torch", "flwr", "grpc", "scipy", "fedsys"}),
        ("import fedsys.privacy", {"torch", "opacus", "flwr", "grpc"}),
        ("import fedsys.audit", {"torch", "opacus", "flwr", "grpc"}),
        ("import server.coordinator", {"torch", "grpc", "flwr"}),
    ],
)
def test_an_import_brings_only_what_it_needs(statement: str, absent: set[str]) -> None:
    code = f"import sys; {statement}; print(*sorted({absent!r} & set(sys.modules)))"
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert finished.stdout.split() == []


def test_every_package_is_typed() -> None:
    for name in ("fedsys", "server", "client", "secure_agg", "simulations"):
        assert (ROOT / name / "py.typed").is_file()


def test_the_notebook_functions_are_there_and_unknown_names_are_not() -> None:
    assert callable(fedsys.simulate)
    assert callable(fedsys.audit_run)
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        getattr(fedsys, "simulat")  # noqa: B009


def test_the_packages_that_a_notebook_needs_are_attributes() -> None:
    code = (
        "import fedsys; print(fedsys.privacy.make_plan.__name__,"
        " fedsys.errors.ConfigError.__name__, fedsys.tasks.Examples.__name__,"
        " fedsys.config.load.__name__)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert finished.stdout.split() == ["make_plan", "ConfigError", "Examples", "load"]
    assert {"compare", "privacy", "simulate", "tasks"} <= set(dir(fedsys))
