"""``fedsys doctor`` tells what is there, and never fails for what is optional."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fedsys import __version__
from fedsys.cli import doctor as module
from fedsys.cli.doctor import OPTIONAL, REQUIRED, Diagnosis, Line, diagnose

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _brief_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.aes_ctr_rate, "__defaults__", (0.01,))


def _run(*arguments: str) -> Any:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(module.doctor)
    return CliRunner().invoke(app, list(arguments))


def _lines(diagnosis: Diagnosis) -> dict[str, Line]:
    return {line.name: line for line in diagnosis.lines}


def test_it_names_every_version_and_the_machine() -> None:
    lines = _lines(diagnose({}))
    assert lines["fedsys"].value == __version__
    assert lines["Python"].value.startswith("3.")
    for name in REQUIRED:
        assert lines[name].state == "ok"
        assert lines[name].value.startswith(importlib.metadata.version(name))
    assert "OpenSSL" in lines["cryptography"].value
    assert set(OPTIONAL) <= set(lines)
    assert int(lines["cores"].value) >= 1
    assert "GiB free" in lines["memory"].value
    assert "GB/s" in lines["AES-256-CTR"].value
    assert lines["client"].value == str(ROOT / "client")
    assert lines["server"].value == str(ROOT / "server")


def test_every_extra_is_looked_for_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        name: {re.split(r"[^\w-]", each)[0] for each in packages}
        for name, packages in project["optional-dependencies"].items()
        if name != "dev"
    }
    for name, packages in extras.items():
        assert packages & set(OPTIONAL), f"nothing of the extra {name}"
    assert set(OPTIONAL) <= set().union(*extras.values())
    assert {"tensorboard", "mlflow-skinny", "optuna", "onnx", "safetensors"} <= set(OPTIONAL)


def test_the_device_that_would_run_is_torchs() -> None:
    import torch

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    diagnosis = diagnose({})
    assert diagnosis.figures["device"] == device
    assert _lines(diagnosis)["--device auto"].value.startswith(device)


def test_json_is_one_object_with_the_figures() -> None:
    result = _run("--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.output)
    assert document["healthy"] is True
    assert document["cores"] >= 1
    assert document["aes_ctr_bytes_per_second"] > 1e6
    assert document["memory_bytes"] > 2**20
    assert {"topic", "name", "value", "state"} == set(document["findings"][0])


def test_plain_output_has_a_line_a_finding() -> None:
    result = _run()
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len(lines) == len(diagnose().lines) + 1
    assert lines[-1] == "nothing needed is missing"


def test_missing_optional_packages_are_harmless_and_missing_needed_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.metadata.version
    gone = set(OPTIONAL)

    def version(name: str) -> str:
        if name in gone:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    result = _run("--json")
    assert result.exit_code == 0
    findings = {each["name"]: each for each in json.loads(result.output)["findings"]}
    assert {findings[name]["state"] for name in OPTIONAL} == {"absent"}
    assert "coordinator" in findings["torch"]["value"]
    gone.add("cryptography")
    result = _run()
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == "something needed is missing"


def test_the_engines_choice_and_what_it_refuses_are_told(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        '[job]\nname = "own"\n[cohort]\nexpected = 20\n[rounds]\ncount = 2\n'
        '[local]\noptimizer = "adam"\nlearning_rate = 0.01\n'
        "[engine]\nprocesses = 1\nthreads = 1\nchunk = 8\n"
        '[privacy]\nmechanism = "none"\n[aggregation]\nprotocol = "ideal"\n'
    )
    result = _run(str(own), "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.output)
    engine = document["engine"]
    assert engine["config"] == str(own)
    assert engine["path"] in ("batched", "loop")
    assert (engine["processes"], engine["threads"], engine["device"]) == (1, 1, "cpu")
    assert "'adam' has no dual form" in engine["refused"]["dual"]
    assert set(engine["clients_per_second"]) == {"batched/8", "loop/8"}
    findings = {each["name"]: each for each in document["findings"]}
    assert findings["not path dual"]["state"] == "absent"
    assert findings[str(own)]["value"] == (
        f"path {engine['path']}, {engine['chunk']} clients at once, 1 process x 1 thread, on cpu"
    )


def test_a_configuration_that_cannot_run_is_a_problem_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FEDSYS_DATA", raising=False)
    result = _run("w4")
    assert result.exit_code == 1
    assert "would run" in result.output
    assert "shakespeare.parquet not found" in result.output


def test_a_broken_driver_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def broken() -> bool:
        raise RuntimeError("no driver\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    diagnosis = diagnose({})
    assert _lines(diagnosis)["GPU"].value == "torch fails: RuntimeError: no driver"
    assert diagnosis.figures["device"] == "cpu"


def test_data_files_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "mnist.npz").write_bytes(bytes(2**20))
    lines = _lines(diagnose({"FEDSYS_DATA": str(tmp_path)}))
    assert lines["folder"].value == str(tmp_path)
    assert lines["mnist.npz"].value == "1.0 MiB"
    assert lines["shakespeare.parquet"].state == "absent"
    missing = _lines(diagnose({"FEDSYS_DATA": str(tmp_path / "nowhere")}))
    assert "no such folder" in missing["folder"].value
    assert missing["folder"].state == "absent"
    assert "not set" in _lines(diagnose({}))["folder"].value


def test_a_shadowed_package_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "client.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "client", raising=False)
    diagnosis = diagnose({})
    assert not diagnosis.healthy
    line = _lines(diagnosis)["client"]
    assert line.state == "problem"
    assert str(tmp_path / "client.py") in line.value


def test_importing_the_command_loads_nothing_heavy() -> None:
    code = (
        "import sys, fedsys.cli.doctor, fedsys.cli.init; "
        "print([m for m in ('torch', 'numpy', 'rich.console', 'cryptography') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
