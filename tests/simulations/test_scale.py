"""A population is an index: memory is flat from ten thousand clients to a million."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
from fedsys import config
from simulations import harness
job = config.load("w5", [
    f"population.clients={sys.argv[1]}", f"cohort.expected={sys.argv[2]}", "rounds.count=2",
    "evaluation.data=none", "engine.path=dual", "engine.chunk=64", "engine.processes=1",
])
run = harness.run(job, out=Path(sys.argv[3]))
peak = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
trained = json.loads((run.folder / "summary.json").read_text())["clients_trained"]
print(json.dumps({"peak": int(peak[0].split()[1]) * 1024, "trained": trained}))
"""


def peak(population: int, cohort: int, folder: Path) -> tuple[int, int]:
    """Peak resident bytes of a run of its own, and how many clients it trained."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(population), str(cohort), str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={"FEDSYS_HOME": str(folder.parent / "home"), "OMP_NUM_THREADS": "1", "PATH": ""},
        cwd=Path(__file__).parents[2],
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return found["peak"], found["trained"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("cohort", [1_000, 10_000])
def test_memory_is_flat_in_the_population(cohort: int, tmp_path: Path) -> None:
    small, trained = peak(10_000, cohort, tmp_path / "small")
    large, others = peak(1_000_000, cohort, tmp_path / "large")
    assert min(trained, others) > 1.8 * cohort
    assert large < 1.1 * small
    assert large < 3e9
