"""A named pipe as an argument is refused in a line; the shell's own pipes are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsys.cli.app import app
from fedsys.cli.pipes import refuse_pipes
from fedsys.errors import ConfigError


@pytest.mark.parametrize(
    "line",
    [
        "simulate {}",
        "audit {}",
        "predict . {}",
        "simulate --data={}",
        "agent run . --data digits={}",
    ],
)
def test_a_named_pipe_is_refused(line: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = CliRunner().invoke(app, line.format(tmp_path / "pipe").split())
    assert isinstance(done.exception, ConfigError)
    assert f"{tmp_path / 'pipe'}: is a named pipe" in str(done.exception)


def test_a_link_to_a_named_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(ConfigError, match="link: is a named pipe"):
        refuse_pipes([str(tmp_path / "link")])


def test_other_arguments_pass(tmp_path: Path) -> None:
    """Among them the shell's ``<(command)``, which is a pipe without a name."""
    reading, writing = os.pipe()
    try:
        refuse_pipes(
            ["simulate", str(tmp_path), "--set", "a=b", "", "\0", "x" * 9000, f"/dev/fd/{reading}"]
        )
    finally:
        os.close(reading)
        os.close(writing)
