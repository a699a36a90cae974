"""The operator's page, served by a coordinator that runs."""

from __future__ import annotations

import asyncio
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.task_model import TaskModel
from fedsys.cli.app import app
from fedsys.errors import ConfigError
from server.grpc_service import run_coordinator
from server.home.folder import Home
from tests.fedsys.web.pages import HOST, Page


def with_web(folder: Path, web: str) -> Home:
    home = Home.create(folder, hosts=["127.0.0.1"])
    text = home.settings_file.read_text("utf-8")
    assert 'web = ""' in text
    home.settings_file.write_text(text.replace('web = ""', f'web = "{web}"'), "utf-8")
    return home


@contextmanager
def running(home: Home) -> Iterator[None]:
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    service = run_coordinator(
        home,
        listen="127.0.0.1:0",
        models=TaskModel,
        ready=lambda _port: ready.set(),
        stop=stop,
    )
    thread = threading.Thread(target=loop.run_until_complete, args=(service,))
    thread.start()
    try:
        assert ready.wait(60)
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        assert not thread.is_alive()
        loop.close()


def test_a_coordinator_serves_its_page_and_stops_with_it_open(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    home = with_web(tmp_path / "c", f"unix:{path}")
    page = Page(path=path)
    with running(home):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(home.web_token.stat().st_mode) == 0o600
        assert page.get("/health", HOST)[:2] == (200, '{"status":"serving"}')
        assert page.get("/events", HOST)[0] == 401
        shown = CliRunner().invoke(app, ["coordinator", "web", str(home.path)])
        token = re.fullmatch(r"http://127.0.0.1:7480/#token=([0-9a-f]{64})", shown.stdout.strip())
        assert token, shown.output
        with page.stream(token[1]) as events:
            found = dict([next(events), next(events)])
            assert found["page"]["kind"] == "operator"
            assert found["fleet"] == {"devices": [], "more": 0}


@pytest.mark.parametrize("web", ["0.0.0.0:7480", "localhost", "unix:web.sock", "nowhere:1"])
def test_an_address_that_others_reach_is_one_line(tmp_path: Path, web: str) -> None:
    home = with_web(tmp_path / "c", web)
    with pytest.raises(ConfigError, match=r"coordinator\.toml: web = ") as refused:
        home.settings()
    assert "\n" not in str(refused.value)


def test_an_address_that_is_taken_is_one_line_and_nothing_is_left_running(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        home = with_web(tmp_path / "c", address)

        async def serve() -> None:
            await run_coordinator(
                home, listen="127.0.0.1:0", models=TaskModel, ready=lambda _port: None
            )

        with pytest.raises(ConfigError, match=f"web = '{address}'.*: address already in use"):
            asyncio.run(serve())
    with running(home):
        pass


@pytest.mark.parametrize(
    ("web", "why"), [("", "web is not set"), ("localhost:0", "lets the system choose the port")]
)
def test_the_command_says_what_to_set(tmp_path: Path, web: str, why: str) -> None:
    home = with_web(tmp_path / "c", web)
    shown = CliRunner().invoke(app, ["coordinator", "web", str(home.path)])
    assert isinstance(shown.exception, ConfigError)
    assert why in str(shown.exception)
