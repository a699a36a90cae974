"""The notebook's cells and the scripts of examples/ run as they stand."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

KERNEL = """
import ast, json, sys

# Cell by cell in __main__, as a kernel does; what a cell's last line gives is shown.
notebook = json.loads(open(sys.argv[1], encoding="utf-8").read())
for number, cell in enumerate(notebook["cells"]):
    if cell["cell_type"] == "code":
        tree = ast.parse("".join(cell["source"]), filename=f"cell {number}")
        shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), globals())
        if shown is not None:
            value = eval(compile(ast.Expression(shown.value), f"cell {number}", "eval"), globals())
            ways = ("_repr_html_", "_repr_png_")
            pages = [way for way in ways if hasattr(value, way) and getattr(value, way)()]
            print("SHOWN", repr(value), *pages)
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", *words],
        cwd=folder,
        env={
            **os.environ,
            "FEDSYS_HOME": str(folder / "home"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
@pytest.mark.slow
def test_a_notebooks_cells_run_in_their_order(path: Path, tmp_path: Path) -> None:
    finished = run(tmp_path, "-c", KERNEL, str(path))
    assert finished.returncode == 0, finished.stderr
    shown = [line for line in finished.stdout.splitlines() if line.startswith("SHOWN")]
    assert shown[0].startswith("SHOWN Run(folder=PosixPath('runs/quickstart')")
    ways = [line.split()[-1] for line in shown]
    assert ways.count("_repr_html_") == 3, "a run, its history, a comparison"
    assert ways.count("_repr_png_") == 2, "their pictures"
    assert "outsider's epsilon of both runs together: " in finished.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_the_sweep_prints_a_line_a_run_and_draws(tmp_path: Path) -> None:
    finished = run(tmp_path, str(EXAMPLES / "sweep.py"))
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["epsilon 2", "epsilon 4", "epsilon 8"]
    assert lines[3].startswith("all runs together")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {
        "cartpole.py",
        "contrastive.py",
        "distillation.py",
        "first_steps.ipynb",
        "fleet.sh",
        "gan.py",
        "lora.py",
        "personalisation.py",
        "sweep.py",
    }


def quickly(name: str, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """What a script's quick version finds, in this process."""
    patch.chdir(folder)
    patch.setenv("FEDSYS_HOME", str(folder / "home"))
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module.main(quick=True)


@pytest.mark.slow
def test_a_policy_learns_to_hold_the_pole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its return is that of a random policy, about 22, and more than 20 steps; a whole run's is the
    most there is."""
    found = quickly("cartpole", tmp_path, monkeypatch)
    assert found["trained"] > found["random"] + 20


def test_models_of_ones_own_are_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = quickly("personalisation", tmp_path, monkeypatch)
    shared = found["shared model"]
    for name in ("fine-tuned", "own heads"):
        assert found[name].mean > shared.mean + 0.1
        assert found[name].worst_decile > shared.worst_decile + 0.1


@pytest.mark.slow
def test_a_generator_comes_close_and_an_encoder_brings_neighbours_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    made = quickly("gan", tmp_path / "a", monkeypatch)
    assert made["after"] < made["before"] / 2
    encoded = quickly("contrastive", tmp_path / "b", monkeypatch)
    assert encoded["after"] > encoded["before"]


@pytest.mark.slow
def test_adapters_of_a_small_part_learn_what_the_base_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = quickly("lora", tmp_path, monkeypatch)
    assert found["after"] > found["before"] + 0.2
    assert found["sent"] < 0.05


@pytest.mark.slow
def test_a_student_learns_from_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far above a guess, .1; RESULTS says where plain averaging is better."""
    found = quickly("distillation", tmp_path, monkeypatch)
    assert found["distillation"] > 0.3
