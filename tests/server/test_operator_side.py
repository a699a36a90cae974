"""What an operator has while a host runs, and what is left when it ends."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from client.task_model import TaskModel
from fedsys.errors import ConfigError
from server.deployed.fleet import Fleet, Link
from server.deployed.queue import Deployment
from server.home.folder import Home
from server.home.state import NodeRow, State
from server.metrics import Metrics
from server.operator_side import operator_side


def scene(tmp_path: Path, **settings: str) -> tuple[Home, State, Fleet, Deployment]:
    home = Home.create(tmp_path / "c", hosts=["localhost"])
    text = home.settings_file.read_text("utf-8")
    for key, value in settings.items():
        assert f'\n{key} = ""\n' in text
        text = text.replace(f'\n{key} = ""\n', f'\n{key} = "{value}"\n')
    home.settings_file.write_text(text, "utf-8")
    state, fleet = State.open(home.path), Fleet()
    with state.transaction() as session:
        session.add(NodeRow(id=1, name="n", identity=bytes(32), status="active", enrolled_at=0.0))
    deployment = Deployment(
        home=home,
        state=state,
        registry=home.registry(state),
        fleet=fleet,
        models=TaskModel,
        metrics=Metrics(),
    )
    return home, state, fleet, deployment


def test_when_a_device_was_there_is_known_after_the_shortest_run(tmp_path: Path) -> None:
    home, state, fleet, deployment = scene(tmp_path)

    async def run() -> None:
        async with operator_side(
            home=home, state=state, fleet=fleet, deployment=deployment, metrics=Metrics()
        ):
            assert home.socket.exists()
            fleet.open(Link(node=1, version="7"))

    asyncio.run(run())
    (node,) = state.nodes()
    assert node.last_seen is not None
    assert node.version == "7"
    assert not home.socket.exists()
    state.close()


@pytest.mark.parametrize("key", ["metrics", "web"])
def test_an_address_that_cannot_be_served_leaves_nothing_open(tmp_path: Path, key: str) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{taken.getsockname()[1]}"
    home, state, fleet, deployment = scene(tmp_path, **{key: address})

    async def run() -> None:
        async with operator_side(
            home=home, state=state, fleet=fleet, deployment=deployment, metrics=Metrics()
        ):
            raise AssertionError("it is served")

    with taken, pytest.raises(ConfigError, match=f"{key} = '{address}'.*cannot listen there"):
        asyncio.run(run())
    assert not home.socket.exists()
    state.close()
