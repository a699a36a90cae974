"""Units and container files: what linters and an administrator look at first.

They passed, with their default rules: hadolint 2.15.1, yamllint 1.38.0 (``-s``), the JSON schema of
compose-spec, and ``systemd-analyze verify`` and ``security`` of systemd 252 (exposure 1.7 of the
coordinator, 2.0 of the agent, of 10). Here run those that are installed; what matters of the rest
is checked without them.
"""

from __future__ import annotations

import re
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
        "LimitCORE=0",
        "MemorySwapMax=0",
    ):
        assert needed in lines
    user = next(line for line in lines if line.startswith("User="))
    assert user != "User=root"


def test_an_agents_sealing_keys_outlive_its_restart_and_not_its_boot(folder: Path) -> None:
    """``RemoveIPC`` empties /dev/shm between two processes of a user that has no others."""
    lines = (folder / "fedsys-agent@.service").read_text().splitlines()
    for needed in (
        "RuntimeDirectory=fedsys-agent/%i",
        "RuntimeDirectoryMode=0700",
        "RuntimeDirectoryPreserve=restart",
    ):
        assert needed in lines


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


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("name", SERVICES)
def test_units_expose_little(folder: Path, tmp_path: Path, name: str) -> None:
    unit = tmp_path / name.replace("@.", "@ward.")
    unit.write_text((folder / name).read_text())
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=25", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze judges no files")
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.parametrize(
    ("linter", "file"),
    [(("hadolint",), "Containerfile"), (("yamllint", "-s"), "compose.yaml")],
)
def test_linters_that_are_installed_find_nothing(
    folder: Path, linter: tuple[str, ...], file: str
) -> None:
    if shutil.which(linter[0]) is None:
        pytest.skip(f"no {linter[0]} here; its rules that matter are tested below")
    done = subprocess.run(
        [*linter, str(folder / file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def instructions(text: str) -> list[tuple[str, str]]:
    """Instruction and argument of each line of a container file."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in whole)]


def container_findings(text: str) -> list[str]:
    """The numbers of hadolint's rules that a container file breaks, of those that matter here."""
    found, directory = [], False
    steps = instructions(text)
    stages = {arg.split(" AS ")[1] for name, arg in steps if name == "FROM" and " AS " in arg}
    for name, argument in steps:
        if name == "FROM":
            directory, image = False, argument.split()[0]
            if image not in stages and (":" not in image or image.endswith(":latest")):
                found.append("DL3006/DL3007 a base image without a version")
            if image not in stages and not re.search(r"@sha256:[0-9a-f]{64}$", image):
                found.append("a base image without a digest")
        if name == "WORKDIR":
            directory = True
            if not argument.startswith("/"):
                found.append("DL3000 a relative WORKDIR")
        if name == "COPY" and not directory and not argument.split()[-1].startswith("/"):
            found.append("DL3045 COPY to a relative place without a WORKDIR")
        if name == "ADD":
            found.append("DL3020 ADD where COPY does")
        if name == "MAINTAINER":
            found.append("DL4000 MAINTAINER")
        if name == "RUN":
            for command in (each for each in argument.split("&&") if "pip install" in each):
                if "--no-cache-dir" not in command:
                    found.append("DL3042 pip keeps its cache in the image")
                ours = command.split()[-1] == "." and "--no-deps" in command
                if "--require-hashes -" not in command and not ours:
                    found.append("DL3013 pip without versions and hashes")
            if "sudo " in argument:
                found.append("DL3004 sudo")
            if "apt-get install" in argument and "--no-install-recommends" not in argument:
                found.append("DL3015 apt-get with recommendations")
            if "|" in argument and "pipefail" not in text:
                found.append("DL4006 a pipe without pipefail")
        if name in ("CMD", "ENTRYPOINT") and not argument.startswith("["):
            found.append("DL3025 a command that goes through a shell")
        if name == "EXPOSE" and not 0 < int(argument) < 65536:
            found.append("DL3011 an impossible port")
    users = [argument for name, argument in steps if name == "USER"]
    if not users or users[-1].split(":")[0] in ("root", "0"):
        found.append("DL3002 the last USER is root")
    return found


def test_the_container_file_breaks_no_rule_that_matters(folder: Path) -> None:
    text = (folder / "Containerfile").read_text()
    (base,) = {arg.split()[0] for name, arg in instructions(text) if name == "FROM"}
    assert container_findings(text) == []
    for good, bad, rule in (
        (base, "python", "DL3006"),
        (base, "python:3.12-slim-bookworm", "without a digest"),
        ("COPY . .", "ADD . .", "DL3020"),
        ("WORKDIR /src\n", "", "DL3045"),
        ("--no-cache-dir ", "", "DL3042"),
        ("--require-hashes -r", "-r", "DL3013"),
        ("--no-deps --no-build", "--no-build", "DL3013"),
        ('ENTRYPOINT ["fedsys"]', "ENTRYPOINT fedsys", "DL3025"),
        ("USER 10001:10001", "USER root", "DL3002"),
        ("EXPOSE 7443", "EXPOSE 77443", "DL3011"),
    ):
        assert good in text
        assert any(rule in each for each in container_findings(text.replace(good, bad))), rule


class Strict(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that occurs twice, which the second would silently win."""


def _mapping(loader: Strict, node: yaml.MappingNode) -> dict[object, object]:
    keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    assert len(set(keys)) == len(keys), f"a key twice: {sorted(keys)}"
    loader.flatten_mapping(node)
    return {loader.construct_object(k): loader.construct_object(v, True) for k, v in node.value}


Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)

SERVICE_KEYS = {
    *(
        "image",
        "restart",
        "read_only",
        "tmpfs",
        "ulimits",
        "cap_drop",
        "security_opt",
        "command",
        "ports",
    ),
    *("volumes", "stop_grace_period"),
}
"""Keys of a service that are used here; each stands in the schema of compose-spec."""


def test_the_compose_file_is_well_formed(folder: Path) -> None:
    text = (folder / "compose.yaml").read_text()
    assert "\n---\n" in text
    assert text.endswith("\n")
    for line in text.splitlines():
        assert len(line) <= 80, line
        assert line == line.rstrip()
        assert "\t" not in line
    compose = yaml.load(text, Loader=Strict)
    assert {key for key in compose if not key.startswith("x-")} == {"services", "volumes"}
    for service in compose["services"].values():
        assert set(service) <= SERVICE_KEYS
        assert all(isinstance(word, str) for word in service["command"])
        for volume in service["volumes"]:
            assert volume.partition(":")[0] in compose["volumes"]
    with pytest.raises(AssertionError, match="a key twice"):
        yaml.load("a: 1\na: 2\n", Loader=Strict)


def test_what_the_templates_run_are_commands_of_ours(folder: Path) -> None:
    """Every command line in them parses: a renamed option would break a stranger's start."""
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    commands = [service["command"] for service in compose["services"].values()]
    for name in SERVICES:
        unit = (folder / name).read_text()
        line = next(x for x in unit.splitlines() if x.startswith("ExecStart="))
        commands.append(line.partition("=")[2].split()[1:])
    for command in commands:
        words = [word for word in command if not word.startswith("/") and "$" not in word]
        shown = CliRunner().invoke(app, [*words[:2], "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, shown.output
        for option in (word for word in words if word.startswith("--")):
            assert option in shown.output, f"{option} of {command}"


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
