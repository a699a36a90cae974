"""The script that a new user can follow, as it stands: real commands, sockets and ``kill -9``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import simulations
from fedsys.audit import audit_run
from fedsys.privacy import read_ledger
from tests.e2e.test_deployment_crashes import STAGES, lines_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SCRIPT = Path(simulations.__file__).with_name("recipes") / "deployment.sh"
AGENTS = 5


@pytest.mark.parametrize("task", ["digits", "mnist"])
def test_the_walkthrough(task: str, tmp_path: Path) -> None:
    data = os.environ.get("FEDSYS_DATA", "")
    if task == "mnist" and not Path(data, "mnist.npz").is_file():
        pytest.skip("FEDSYS_DATA names no folder with mnist.npz (the file that Keras calls so)")
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "walkthrough")],
        env={
            "PATH": os.environ["PATH"],
            "RUNTIME_DIRECTORY": os.environ["RUNTIME_DIRECTORY"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(SCRIPT.parents[2]),
            "FEDSYS": f"{sys.executable} -P -m fedsys",
            "FEDSYS_DATA": data,
            "TASK": task,
        },
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-9000:]
    killed = re.findall(r"^round (\d+), stage (\w+)$", done.stdout, flags=re.MULTILINE)
    assert [stage for _, stage in killed] == ["upload", *STAGES]
    run = tmp_path / "walkthrough" / "run"
    rounds = {each.round: each for each in read_ledger(run / "ledger.jsonl").rounds}
    assert sorted(rounds) == list(range(1, len(STAGES) + 5))
    committed = [number for number, each in rounds.items() if each.outcome == "commit"]
    # in the last stage the sum, and then the commit, may be made before it has stopped
    assert not {int(number) for number, stage in killed[1:] if stage != "answer"} & {*committed}
    assert len(committed) >= 2
    for line in lines_of(run):
        if line["round"] in committed:
            assert 3 <= len({*line["survivors"]} & {*range(AGENTS)}) == len(line["survivors"])
    assert audit_run(run).passed
    assert f"{len(committed)} rounds are bit-identical" in done.stdout
    assert re.search(r"^model +bit-identical: [0-9a-f]{64}$", done.stdout, flags=re.MULTILINE)
