"""What goes wrong where clients train, through the command line: over processes and over Ray.

The run goes on, or stops cleanly: one line that names client, cause and remedy, no traceback, no
process left behind, and a ledger that resumes.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from fedsys.privacy import read_ledger
from tests.e2e.conftest import CommandLine, Completed

JOB = """
[task]
name = "fragile_task:Fragile"
[population]
partition = "iid"
clients = 60
[cohort]
expected = 20
[rounds]
count = 2
[privacy]
mechanism = "none"
[aggregation]
protocol = "ideal"
[engine]
path = "loop"
chunk = 4
processes = 2
threads = 1
"""

BACKENDS = [
    "local",
    pytest.param(
        "ray",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(
                find_spec("ray") is None, reason="needs Ray, of requirements-extra.lock"
            ),
        ],
    ),
]


def simulate(fedsys: CommandLine, how: str, backend: str, *settings: str) -> tuple[Path, Completed]:
    run = fedsys.folder / f"{how}-{backend}"
    job, flag = fedsys.folder / "fragile.toml", fedsys.folder / f"{how}-{backend}.flag"
    job.write_text(JOB)
    options = f'task.options={{how="{how}", flag="{flag}"}}'
    given = [part for setting in (options, *settings) for part in ("--set", setting)]
    path = f"{fedsys.environment['PYTHONPATH']}:{Path(__file__).parent}"
    where: list[str | Path] = ["simulate", job, "--quiet", "--backend", backend, "--out", run]
    done = fedsys.run(*where, *given, PYTHONPATH=path)
    assert "Traceback" not in done.stderr
    left = [
        process.pid
        for process in psutil.process_iter(["environ", "cmdline"])
        if (process.info["environ"] or {}).get("FEDSYS_HOME") == fedsys.environment["FEDSYS_HOME"]
        and "simulations.engine.worker" in (process.info["cmdline"] or [])
    ]
    assert not left, "no worker outlives its run"
    return run, done


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "how", ["killed-once", pytest.param("memory-once", marks=pytest.mark.slow)]
)
def test_what_happens_once_costs_nothing(fedsys: CommandLine, how: str, backend: str) -> None:
    run, done = simulate(fedsys, how, backend)
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["rounds"]) == ("completed", 2)
    if how == "memory-once":
        said = r"out of memory with [2-4] clients at once: going on with half"
        assert len(re.findall(said, done.stderr)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", r"error: client \d+: training on its 24 examples failed: ValueError: the label"),
        (
            "memory",
            r"error: client \d+: out of memory with this client alone, .*local\.batch_size",
        ),
        (
            "killed",
            r"error: clients \d+, .*\([1-4] at once\): 3 .* died, the last .*; lower engine\.",
        ),
    ],
)
def test_what_happens_always_ends_the_run_in_one_line(
    fedsys: CommandLine, how: str, said: str, backend: str
) -> None:
    run, done = simulate(fedsys, how, backend)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    assert re.match(said, errors[0])
    view = read_ledger(run / "ledger.jsonl")
    assert view.closed is None, "the run may be resumed"
    assert len(view.rounds) == 1, "the round that failed counts as spent"


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_worker_that_hangs_meets_its_deadline(fedsys: CommandLine, backend: str) -> None:
    _, done = simulate(fedsys, "hangs", backend, "engine.deadline=90")
    assert done.returncode == 2
    assert re.search(r"\([1-4] at once\): a ", done.stderr)
    assert "gave no answer for 90 s; raise engine.deadline" in done.stderr
