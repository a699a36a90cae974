"""The live pages in headless Chromium: clicked through, by keyboard, on a phone, under attack."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fedsys
from fedsys.web.board import Board
from fedsys.web.runs import RunsPage
from server.deployed.fleet import Link
from server.home.state import NodeRow, RefusalRow
from server.web.sections import OperatorSections
from tests.e2e.processes import federation, silos
from tests.fedsys.api.conftest import SMALL
from tests.fedsys.web.pages import TOKEN
from tests.screenshots import serve
from tests.server.web.scene import make_scene
from tests.webdriver import Browser, chromium, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def simulated(folder: Path, name: str, noise: float) -> Path:
    """A run of three rounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(folder / "home"))
        settings = {**SMALL, "privacy.noise_multiplier": noise}
        run = fedsys.simulate("quickstart", settings, out=folder / name, progress=False)
    return run.folder


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run."""
    return simulated(tmp_path_factory.mktemp("quiet"), "quiet", 1.5)


def forget(browser: Browser) -> None:
    """What was requested and logged before does not count."""
    browser.requested()
    browser.log()


def count_rows(browser: Browser, selector: str, wanted: int) -> None:
    """Wait until so many elements match."""
    end = time.monotonic() + 120
    while (found := len(browser.texts(selector))) != wanted:
        assert time.monotonic() < end, f"{found} of {wanted} {selector}"
        time.sleep(0.1)


def fits(browser: Browser, width: int) -> bool:
    """Whether nothing makes the page wider than the screen."""
    return bool(
        browser.script("return document.documentElement.scrollWidth <= arguments[0]", width)
    )


def require_quiet(browser: Browser, url: str) -> None:
    """Nothing was asked of anybody else, the token is in no address, and nothing was refused."""
    here = url.partition("/#")[0]
    # Of `data:` nobody is asked: Chromium's own start page has such a picture.
    nobodys = ("about:blank", "data:")
    asked = [each for each in browser.requested() if not each.startswith(nobodys)]
    assert asked
    assert all(each.startswith(f"{here}/") for each in asked), asked
    assert not any(TOKEN in each for each in asked), asked
    assert browser.log() == []
    assert browser.script("return location.hash").find("token") == -1


def test_the_operators_page_is_clicked_through(
    browser: Browser, quiet: Path, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "fleet", [quiet, quiet], now=time.time())
    with scene.state.transaction() as session:
        evil = {"identity": b"e" * 32, "status": "active", "enrolled_at": 0.0, "labels": HOSTILE}
        session.add(NodeRow(id=66, name=HOSTILE, **evil))
        session.add(
            RefusalRow(
                job="0de2f3c4a911",
                node=66,
                cause="policy",
                round=1,
                reason=HOSTILE,
                count=1,
                at=time.time(),
            )
        )
    board = Board(OperatorSections(scene.home, scene.state, scene.fleet).read, seconds=0.1)
    with serve(board, "operator.html") as url:
        forget(browser)
        browser.size(1280, 800)
        browser.open(url)
        browser.wait_for("#live", "live")
        browser.wait_for("h1", "fleet")
        assert browser.wait_for(".stats", "4 of 7")
        browser.wait_for(".detail h3", "triage-v2")  # the job that runs is chosen

        browser.click('a[href="#job-77a0c4be1f55"]')
        assert "needs 5, until 19:20:00" in browser.wait_for(".detail .why")
        browser.script("document.querySelector('.entries a').focus()")
        browser.press("tab", "enter")
        browser.wait_for(".detail h3", "triage-v2")
        browser.wait_for(".detail .view h4", "The server")
        assert browser.texts(".detail .view h4") == ["An outsider", "A participant", "The server"]
        browser.wait_for(".refusals", HOSTILE)

        browser.script("document.querySelector('[data-chart]').focus()")
        browser.press("right", "right")
        browser.wait_for("[data-chart] figcaption", "round 2")
        browser.press("escape")

        scene.state.update_job("0de2f3c4a911", round=13, stage="answer")
        browser.wait_for(".detail .facts", "13 of 40")
        scene.fleet.open(Link(node=5, version="9.9-new"))
        browser.wait_for(".stats", "5 of 7")
        assert browser.focused().startswith("Accuracy"), "an update takes the focus from nobody"

        browser.click('[data-filter="away"]')
        browser.wait_for('[data-filter="away"][aria-pressed="true"]')
        count_rows(browser, ".devices tbody tr", 2)
        browser.wait_for(".devices tbody th", "lab-turin")
        browser.wait_for(".devices tbody th", HOSTILE)
        browser.click('[data-filter="all"]')
        browser.type("input[type=search]", "9.9 lab")
        browser.wait_for(".devices tbody th", "lab-basel")
        count_rows(browser, ".devices tbody tr", 1)

        for width in (1280, 390):
            browser.size(width, 844)
            assert fits(browser, width), width
        browser.call("POST", "/refresh", {})
        browser.wait_for("#live", "live")
        browser.wait_for("h1", "fleet")
        assert "owned" not in browser.script("return document.title")
        assert (
            browser.script("return document.querySelectorAll('#page img, #page script').length")
            == 0
        )
        require_quiet(browser, url)
    scene.state.close()
    browser.wait_for("#live", "connection lost")


def test_without_the_token_nothing_is_shown(browser: Browser) -> None:
    board = Board(lambda: {"page": {"kind": "runs", "order": [], "root": "secret", "version": "1"}})
    with serve(board, "runs.html") as url:
        for address in (url.partition("#")[0], url[:-1] + ("0" if url[-1] != "0" else "1")):
            browser.open("about:blank")
            browser.open(address)
            browser.wait_for("#live", "no access")
            assert "The token is missing or no longer valid" in browser.text("#page")
            assert "secret" not in browser.text()
        browser.open("about:blank")
        browser.open(url)
        browser.wait_for("#runs", "No run here yet")
        browser.log()


@pytest.mark.slow
def test_runs_are_watched_while_they_train_and_compared(
    browser: Browser, quiet: Path, tmp_path: Path
) -> None:
    loud = simulated(tmp_path, "loud", 0.7)
    growing = tmp_path / "runs" / "growing"
    shutil.copytree(loud, growing)
    (growing / "summary.json").unlink()
    metrics = (growing / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (growing / "metrics.jsonl").write_bytes(metrics[0])
    shutil.copytree(quiet, tmp_path / "runs" / "<b>quiet")
    page = RunsPage(tmp_path / "runs")
    board = Board(page.read, seconds=0.1)
    with serve(board, "runs.html", questions={"compare": page.compared}) as url:
        forget(browser)
        browser.size(390, 844)
        browser.open(url)
        browser.wait_for(".runs th", "growing")
        browser.wait_for("#run .headline", "running")
        before = browser.text("#run .facts")
        (growing / "metrics.jsonl").write_bytes(b"".join(metrics))
        end = time.monotonic() + 60
        while browser.text("#run .facts") == before:
            assert time.monotonic() < end
        (growing / "summary.json").write_bytes((loud / "summary.json").read_bytes())
        browser.wait_for("#run .headline", "completed")

        browser.click(".runs tbody tr:nth-child(2) a")
        browser.wait_for("#run h2", "<b>quiet")
        for row in (1, 2):
            browser.click(f".runs tbody tr:nth-child({row}) input")
        browser.wait_for("button.main", "Compare 2")
        browser.script("document.querySelector('button.main').focus()")
        browser.press("enter")
        text = browser.wait_for("#comparison", "privacy.noise_multiplier")
        table = fedsys.compare([growing, tmp_path / "runs" / "<b>quiet"])
        for each in table:
            assert f"{each['accuracy']:.1%}".replace("%", " %") in text
        assert browser.script("return document.activeElement.id") == "comparison"
        for width in (1280, 390):
            browser.size(width, 844)
            assert fits(browser, width), width
        require_quiet(browser, url)


@pytest.mark.slow
def test_a_job_of_real_devices_is_watched_to_its_end(browser: Browser, tmp_path: Path) -> None:
    with federation(tmp_path, 3) as fed:
        settings = fed.home.settings_file
        text = settings.read_text("utf-8")
        settings.write_text(text.replace('web = ""', 'web = "localhost:0"'), "utf-8")
        fed.restart_coordinator()
        port = re.findall(r"page at port (\d+)", fed.log("coordinator"))[-1]
        token = fed.home.web_token.read_text("ascii").strip()
        browser.size(1280, 800)
        browser.open("about:blank")
        browser.open(f"http://127.0.0.1:{port}/#token={token}")
        browser.wait_for(".stats", "0 of 3")
        job = fed.submit(silos("rounds.count=3", "privacy.epsilon=9"))
        browser.wait_for(".attention", "waits")
        for number in range(3):
            fed.start_agent(number, 3)
        browser.wait_for(".stats", "3 of 3")
        assert fed.wait(job).status == "completed"
        browser.wait_for(".detail .headline", "completed")
        browser.wait_for(".detail .facts", "3 of 3")
        head: Any = fed.ledger(job)[-1]["hash"]
        browser.wait_for("#ledgers td.head", head)
        assert fed.stop("c", signal.SIGTERM) == 0, "an open page does not keep it from stopping"
        rows = fed.state.nodes()
        assert all(row.last_seen is not None and row.version for row in rows)
