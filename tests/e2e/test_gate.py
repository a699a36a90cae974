"""What the gate installs before the tests: only what is missing, and never fails for it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGES = Path(__file__).resolve().parents[2] / ".ci" / "packages"
NEEDED = {"node": "nodejs", "chromium": "chromium", "chromedriver": "chromium-driver"}


def _run(folder: Path, present: list[str], apt: str | None) -> tuple[str, list[str]]:
    """What is said, and how apt-get was called, on a machine that has nothing but these."""
    called = folder / "called"
    called.touch()
    for name in ("bash", "timeout", "env", "id"):
        (folder / name).symlink_to(str(shutil.which(name)))
    scripts = dict.fromkeys(present, "exit 0")
    if apt is not None:
        scripts["apt-get"] = f'echo "$@" >> {called}; {apt}'
        scripts["sudo"] = 'shift; exec "$@"'
    for name, text in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    done = subprocess.run(
        [str(shutil.which("bash")), str(PACKAGES)],
        env={"PATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout, called.read_text("utf-8").splitlines()


def test_nothing_is_done_where_nothing_is_missing(tmp_path: Path) -> None:
    assert _run(tmp_path, list(NEEDED), "exit 1") == ("", [])


@pytest.mark.parametrize("lacking", NEEDED)
def test_what_is_missing_is_installed(tmp_path: Path, lacking: str) -> None:
    said, called = _run(tmp_path, [name for name in NEEDED if name != lacking], "exit 0")
    assert said == f"installed: {NEEDED[lacking]}\n"
    assert len(called) == 2
    assert all(each.endswith(f" {NEEDED[lacking]}") for each in called)
    assert "--download-only" in called[0]
    assert "--no-download" in called[1]


@pytest.mark.parametrize("apt", ["exit 100", None])
def test_where_apt_does_not_work_the_line_that_would_install_is_printed(
    tmp_path: Path, apt: str | None
) -> None:
    said, called = _run(tmp_path, [], apt)
    assert said.endswith("are skipped: apt-get install nodejs chromium chromium-driver\n")
    assert not any("--no-download" in each for each in called)
