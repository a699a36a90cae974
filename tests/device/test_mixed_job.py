"""A job of two agents in Python and a device in JavaScript."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fedsys import tasks
from fedsys.audit import audit_run
from fedsys.tasks.export import export_task
from fedsys.wire.countersign import FILE
from tests.device.test_vectors import NODE, needs_node
from tests.e2e.processes import federation, silos

AGENT = Path(__file__).with_name("node") / "agent.mjs"


@needs_node
@pytest.mark.slow
def test_javascript_takes_part_in_a_job(tmp_path: Path) -> None:
    task = tasks.load("digits")
    examples = task.clients(tasks.DataSource()).train
    made = export_task(task, examples, name="digits", options={}, batch_size=32)
    graph, data = tmp_path / "digits.graph", tmp_path / "data.json"
    graph.write_bytes(made.encoded)
    x, y = examples.x[2::3].numpy(), examples.y[2::3].numpy()
    data.write_text(json.dumps({"x": np.asarray(x, float).tolist(), "y": y.tolist()}))
    with federation(tmp_path / "fed", 3) as fed:
        for number in range(2):
            fed.allow_anything(number)
            fed.start_agent(number, 3)
        with (tmp_path / "node.log").open("w") as log:
            device = subprocess.Popen(
                [str(NODE), AGENT, fed.root / "a2", graph, data], stdout=log, stderr=log
            )
        try:
            job = fed.submit(silos(f"task.graph_sha256={made.sha256}"))
            row = fed.wait(job)
        finally:
            device.terminate()
            device.wait(30)
        said = (tmp_path / "node.log").read_text()
        assert row.status == "completed", (row.reason, said)
        outcome = audit_run(fed.home.jobs / job)
        assert outcome.passed
        (signed,) = [each for each in outcome.claims if each.name == "Countersignatures"]
        assert signed.holds, signed
        assert said.count("uploaded") == said.count("countersigned") == 3, said
        kept = (fed.home.jobs / job / FILE).read_text().splitlines()
        assert sorted(json.loads(line)["client"] for line in kept) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
