"""Units and container files: what linters and an administrator look at first."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fedsys.cli.app import app

SERVICES = ("fedsys-coordinator.service", "fedsys-agent@.service")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    done = CliRunner().invoke(app, ["coordinator", "templates", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    return tmp_path / "out"


@pytest.mark.parametrize("name", SERVICES)
def test_units_restart_and_are_hardened(folder: Path, name: str) -> None:
    lines = (folder / name).read_text().splitlines()
    for needed in (
        "Restart=always",
        "StartLimitIntervalSec=0",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "CapabilityBoundingSet=",
        "SystemCallFilter=@system-service",
        "UMask=0077",
    ):
        assert needed in lines
    user = next(line for line in lines if line.startswith("User="))
    assert user != "User=root"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("name", SERVICES)
def test_units_verify(folder: Path, tmp_path: Path, name: str) -> None:
    unit = tmp_path / name.replace("@.", "@ward.")
    text = (folder / name).read_text().replace("/opt/fedsys/bin/fedsys", "/bin/true")
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(unit) not in done.stderr


def test_containers_run_without_privileges(folder: Path) -> None:
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["restart"] == "always"
        assert "privileged" not in service
    assert "ports" not in compose["services"]["agent"]
    lines = (folder / "Containerfile").read_text().splitlines()
    assert "USER 10001:10001" in lines
    assert lines.index("USER 10001:10001") < lines.index('ENTRYPOINT ["fedsys"]')
    assert not any(line.startswith("FROM") and ":latest" in line for line in lines)


def test_nothing_is_overwritten(folder: Path) -> None:
    done = CliRunner().invoke(app, ["coordinator", "templates", str(folder)])
    assert done.exit_code != 0
