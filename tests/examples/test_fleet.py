"""The script of a fleet, as an operator runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "fleet.sh"


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_thirty_devices_three_jobs_at_once_a_backup_and_a_copy(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "fleet")],
        cwd=tmp_path,
        env={
            **os.environ,
            "FEDSYS": f"{sys.executable} -P -m fedsys",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=2300,
        check=False,
    )
    assert done.returncode == 0, (done.stdout[-4000:], done.stderr[-4000:])
    said = done.stdout.partition("== What happened\n")[2].splitlines()
    checks = [line for line in said if line.startswith(("yes", "NO"))]
    assert len(checks) == 7
    assert all(line.startswith("yes") for line in checks)
