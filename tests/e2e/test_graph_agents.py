"""A job in which devices without torch train from a graph, besides one that has the task's code."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from fedsys import tasks
from fedsys.audit import audit_run
from fedsys.config import load, validate
from fedsys.graphs import Kind
from fedsys.tasks.export import export_task
from tests.e2e.base_packages import WITHOUT
from tests.e2e.processes import Federation, federation, silos

_WITHOUT = f"{WITHOUT}from fedsys.cli import main\nmain()\n"
_WITH = "from fedsys.cli import main; main()"
_ROOT = Path(__file__).parents[2]


def _files(folder: Path, kind: Kind = "gradient") -> tuple[Path, str, list[Path]]:
    """The graph of task digits, its hash, and the thirds of the examples."""
    task = tasks.load("digits")
    examples = task.clients(tasks.DataSource()).train
    size = 32 if kind == "gradient" else 1
    made = export_task(task, examples, name="digits", options={}, batch_size=size, kind=kind)
    graph = folder / "digits.graph"
    graph.write_bytes(made.encoded)
    parts = []
    for number in range(3):
        path = folder / f"part{number}.npz"
        np.savez(path, x=examples.x[number::3].numpy(), y=examples.y[number::3].numpy())
        parts.append(path)
    return graph, made.sha256, parts


def _start(
    fed: Federation, number: int, graph: Path, data: Path, engine: str = "numpy"
) -> subprocess.Popen[str]:
    arguments = ["agent", "run", str(fed.root / f"a{number}"), "--graph", str(graph)]
    arguments += ["--engine", engine]
    if not (fed.root / f"a{number}" / "policy.toml").exists():
        arguments += ["--corrupt", "0"]
    return subprocess.Popen(
        [
            *(sys.executable, "-c", _WITHOUT if engine == "numpy" else _WITH),
            *(*arguments, "--data", str(data)),
        ],
        cwd=_ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def _stop(agents: list[subprocess.Popen[str]]) -> list[str]:
    for agent in agents:
        agent.terminate()
    return [agent.communicate(timeout=60)[1] for agent in agents]


def test_two_devices_without_torch_and_one_with_it_finish_a_job(tmp_path: Path) -> None:
    graph, sha256, parts = _files(tmp_path)
    with federation(tmp_path / "fed", 3) as fed:
        for number in range(3):
            fed.allow_anything(number)  # without noise, so that what was learnt is seen
        agents = [_start(fed, number, graph, parts[number]) for number in (0, 1)]
        try:
            fed.start_agent(2, 3)
            job = fed.submit(silos(f"task.graph_sha256={sha256}", "privacy.mechanism=none"))
            row = fed.wait(job)
        finally:
            said = _stop(agents)
        assert row.status == "completed", (row.reason, said)
        run = fed.home.jobs / job
        outcome = audit_run(run)
        assert outcome.passed
        (signed,) = [each for each in outcome.claims if each.name == "Countersignatures"]
        assert signed.holds, signed
        accuracy = json.loads((run / "summary.json").read_text())["metrics"]["accuracy"]
        assert accuracy > 0.8
        assert all("round 3: trained in a process of its own" in each for each in said)


@pytest.mark.slow
def test_devices_without_torch_protect_examples(tmp_path: Path) -> None:
    """The silo recipe, DP-SGD in each device, from a graph of examples' gradients."""
    graph, sha256, parts = _files(tmp_path, kind="example-gradients")
    with federation(tmp_path / "fed", 3) as fed:
        agents = [_start(fed, number, graph, parts[number]) for number in range(3)]
        try:
            job = fed.submit(load("silo", [f"task.graph_sha256={sha256}"]))
            row = fed.wait(job)
            plain = fed.submit(silos(f"task.graph_sha256={sha256}", "rounds.count=1"))
            assert fed.wait(plain).status == "failed"
        finally:
            said = _stop(agents)
        assert row.status == "completed", (row.reason, said)
        run = fed.home.jobs / job
        assert audit_run(run).passed
        summary = json.loads((run / "summary.json").read_text())
        assert summary["metrics"]["accuracy"] > 0.8
    assert all("a graph of kind gradient is needed" in each for each in said)


@pytest.mark.slow
def test_engines_may_differ_within_a_job(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs `pip install onnxruntime`")
    graph, sha256, parts = _files(tmp_path)
    with federation(tmp_path / "fed", 3) as fed:
        engines = ("ort", "ort", "numpy")
        agents = [_start(fed, k, graph, parts[k], engine) for k, engine in enumerate(engines)]
        try:
            row = fed.wait(fed.submit(silos(f"task.graph_sha256={sha256}")))
        finally:
            said = _stop(agents)
    assert row.status == "completed", (row.reason, said)
    assert all("round 3: trained in a process of its own" in each for each in said)


@pytest.mark.slow
def test_devices_without_torch_answer_questions_about_their_rows(tmp_path: Path) -> None:
    graph, sha256, parts = _files(tmp_path)
    asked = [
        {"ask": "count", "name": "rows", "rows": 500},
        {"ask": "labels", "name": "digits", "classes": 10, "rows": 500},
    ]
    config = validate(
        {
            "job": {"kind": "query"},
            "task": {"name": "digits", "graph_sha256": sha256},
            "population": {"partition": "iid", "clients": 3},
            "cohort": {"expected": 3, "cap": 3, "min_survivors": 2},
            "privacy": {"mechanism": "none"},
            "aggregation": {"dropout": 0.0, "corrupt": 0.0},
            "query": {"questions": asked},
        }
    )
    with federation(tmp_path / "fed", 3) as fed:
        for number in range(3):
            fed.allow_anything(number)
        agents = [_start(fed, number, graph, parts[number]) for number in (0, 1)]
        try:
            fed.start_agent(2, 3)
            job = fed.submit(config)
            row = fed.wait(job)
        finally:
            said = _stop(agents)
        assert row.status == "completed", (row.reason, said)
        run = fed.home.jobs / job
        assert audit_run(run).passed
        rows, digits = json.loads((run / "summary.json").read_text())["query"]["answers"]
        assert rows["estimates"][0]["value"] == pytest.approx(1437, abs=5)
        assert sum(each["value"] for each in digits["estimates"]) == pytest.approx(1437, abs=20)


@pytest.mark.slow
def test_a_job_that_names_another_graph_is_refused(tmp_path: Path) -> None:
    graph, _, parts = _files(tmp_path)
    with federation(tmp_path / "fed", 3) as fed:
        agents = [_start(fed, number, graph, parts[number]) for number in range(3)]
        try:
            job = fed.submit(silos(f"task.graph_sha256={'0' * 64}"))
            row = fed.wait(job)
        finally:
            said = _stop(agents)
    assert row.status == "failed"
    assert any(f"graph {'0' * 64}) is not the one that this device has" in each for each in said)


@pytest.mark.slow
def test_a_graph_that_was_exchanged_needs_the_owners_approval_again(tmp_path: Path) -> None:
    graph, sha256, parts = _files(tmp_path)
    with federation(tmp_path / "fed", 3) as fed:
        path = fed.root / "a0" / "policy.toml"
        agents = [_start(fed, number, graph, parts[number]) for number in range(3)]
        try:
            job = fed.submit(silos(f"task.graph_sha256={sha256}", "rounds.count=1"))
            assert fed.wait(job).status == "completed"
            policy = tomllib.loads(path.read_text())
            assert policy["tasks"]["digits"]["sha256"] == sha256
            path.write_text(path.read_text().replace(sha256, "1" * 64))
            job = fed.submit(silos(f"task.graph_sha256={sha256}", "rounds.count=1"))
            row = fed.wait(job)
        finally:
            said = _stop(agents)
    assert row.status == "failed"
    assert f"is not what the owner approved ({'1' * 64})" in said[0]


MISTAKES = [
    (["--graph", "none.graph", "--data", "a.npz"], "none.graph: no such file"),
    (["--graph", "GRAPH", "--data", "digits"], "with --graph, give FILE.npz"),
    (
        ["--graph", "GRAPH", "--data", "DATA", "--shard", "0/3"],
        "--shard, --option, --options and --procedure are for",
    ),
    (["--graph", "GRAPH", "--data", "DATA", "--engine", "x"], "--engine x: allowed are numpy"),
    (["--graph", "DATA", "--data", "DATA"], "the file is no ONNX model"),
]


@pytest.mark.slow
def test_mistakes_are_one_line(tmp_path: Path) -> None:
    graph, _, parts = _files(tmp_path)
    places = {"GRAPH": str(graph), "DATA": str(parts[0])}
    with federation(tmp_path / "fed", 1) as fed:
        for arguments, why in MISTAKES:
            done = subprocess.run(
                [
                    sys.executable,
                    *("-c", _WITHOUT, "agent", "run", str(fed.root / "a0")),
                    *(places.get(each, each) for each in arguments),
                ],
                cwd=_ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 2
            assert why in done.stderr
            assert "Traceback" not in done.stderr
