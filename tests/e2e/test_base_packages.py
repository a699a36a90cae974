"""An agent needs the base dependencies alone, and counts its privacy loss by the same figures."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

from client.journal import JobRecord
from fedsys.privacy import guaranteed_epsilon
from fedsys.privacy.planning import make_plan
from fedsys.privacy.views import VIEWS
from tests.e2e.base_packages import ABSENT, WITHOUT

_ROOT = Path(__file__).parents[2]
_COUNT = """
import json
import client.grpc_host, client.session, client.graphs.child, fedsys.cli.agent_graph
from client.admission import check_participation
from client.journal import JobRecord
from fedsys.privacy import PrivacyPlan, guaranteed_epsilon
for body in json.load(sys.stdin):
    plan = PrivacyPlan.from_json(body)
    check_participation(plan, 20, 1)
    record = JobRecord("", "", "", plan, joined=[2, 5], highest=5)
    views = [record.after(7, view) for view in ("outsider", "participant", "server")]
    print(json.dumps([guaranteed_epsilon(plan), *views]))
"""
_PLANS = (
    {"mechanism": "central-gaussian", "population": 100, "expected_cohort": 20, "delta": 1e-5},
    {
        "mechanism": "distributed-gaussian",
        "population": 1000,
        "expected_cohort": 200,
        "delta": 1e-6,
    },
    {
        "mechanism": "distributed-gaussian",
        "population": 9,
        "expected_cohort": 9,
        "sampling": "fixed",
        "delta": 1e-5,
    },
)


def test_every_view_costs_the_same_without_the_packages_of_extras() -> None:
    plans = [
        make_plan(rounds=40, dimension=1000, clip=1.0, noise_multiplier=1.0, **each)  # type: ignore[arg-type]
        for each in _PLANS
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + _COUNT],
        cwd=_ROOT,
        input=json.dumps([plan.to_json() for plan in plans]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for plan, line in zip(plans, done.stdout.splitlines(), strict=True):
        record = JobRecord("", "", "", plan, joined=[2, 5], highest=5)
        views = [record.after(7, view) for view in VIEWS]
        assert json.loads(line) == [guaranteed_epsilon(plan), *views]


def test_a_command_of_an_extra_names_it() -> None:
    for words, lock in (
        (("simulate",), "torch-cpu.lock"),
        (("coordinator", "init", "x"), "requirements-deploy.lock"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", f"{WITHOUT}from fedsys.cli import main; main()", *words],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: this command needs the package ")
        assert done.stderr.endswith(f" -r {lock}\n")
        assert done.stderr.count("\n") == 1


def test_no_base_dependency_is_counted_as_absent() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {each.partition(">")[0].replace("-", "_") for each in project["dependencies"]}
    assert not names & set(ABSENT)
    assert {"numpy", "cryptography", "grpcio", "mpmath"} <= names


def test_the_agents_lock_has_nothing_of_an_extra() -> None:
    text = (_ROOT / "requirements-agent.lock").read_text("utf-8")
    named = {line.partition("==")[0] for line in text.splitlines() if "==" in line}
    assert not named & {"torch", "scipy", "dp-accounting", "matplotlib", "pyarrow", "sqlalchemy"}
