"""One job under every host: in process, over gRPC between processes, over Flower's Grid."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from client import flower_host as device
from client.task_model import TaskModel
from fedsys.audit import audit_run
from fedsys.config import dump
from fedsys.privacy import read_ledger
from server.flower_host import run_job
from simulations import harness
from simulations.replay import replay
from tests.e2e.processes import federation, silos
from tests.flower.grid import InProcessGrid, Node, identity

SILOS = 3


@pytest.fixture(autouse=True)
def task_identity() -> Iterator[None]:
    with identity():
        yield


def digests(run: Path) -> dict[int, tuple[str, str]]:
    """Of each round's aggregate, and of the model that it led to."""
    view = read_ledger(run / "ledger.jsonl")
    bodies = {each.round: each.body for each in view.rounds if each.outcome == "commit"}
    return {
        number: (body["aggregate_sha256"], body["weights_sha256"])
        for number, body in bodies.items()
    }


SCAFFOLD = ("local.procedure=scaffold", "server.strategy=scaffold", "privacy.clip=100")


@pytest.mark.parametrize(
    "settings",
    [
        (),
        pytest.param(
            (*SCAFFOLD, "cohort.weighting=examples", "cohort.weight_cap=1000"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["plain", "what clients keep, blocks and weights"],
)
def test_every_host_gives_the_same_aggregates(tmp_path: Path, settings: tuple[str, ...]) -> None:
    clip = "privacy.clip=1"  # without it, only a simulation would not clip
    usual = ("privacy.mechanism=none", "cohort.sampling=fixed", "rounds.count=3", clip)
    config = silos(*usual, *settings)
    simulated = harness.run(config, out=tmp_path / "run").folder
    with federation(tmp_path / "fed", SILOS) as fed:
        for number in range(SILOS):
            fed.allow_anything(number)
            fed.start_agent(number, SILOS)
        row = fed.wait(fed.submit(config))
        assert row.status == "completed", row.reason
    nodes = {
        1000 + number: Node(
            handler=device.app,
            config={
                "fedsys-agent": str(fed.root / f"a{number}"),
                "fedsys-data": "digits",
                "fedsys-shard": f"{number}/{SILOS}",
                "fedsys-corrupt": 0.0,
            },
        )
        for number in range(SILOS)
    }
    job = run_job(InProcessGrid(nodes), fed.home, dump(config), models=TaskModel, poll=0.02)
    again = asyncio.run(asyncio.wait_for(job, 200))
    assert again.status == "completed", again.reason
    over_grpc, over_flower = (fed.home.jobs / each.id for each in (row, again))
    expected = digests(simulated)
    assert sorted(expected) == [1, 2, 3]
    assert digests(over_grpc) == expected
    assert digests(over_flower) == expected
    assert (
        len({(run / "model.pt").read_bytes() for run in (simulated, over_grpc, over_flower)}) == 1
    )
    for run in (simulated, over_grpc, over_flower):
        assert audit_run(run).passed
        found = replay(run)
        assert (found.replayed, found.difference) == (3, None)
