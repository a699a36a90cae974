"""Makes the pictures of the pages: ``python -m tests.screenshots [FOLDER]``.

The runs are simulated on the spot, the coordinator's devices are those of `tests.server.web.scene`.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

import fedsys
from fedsys.web.address import WebAddress
from fedsys.web.application import application
from fedsys.web.board import Board
from fedsys.web.runs import RunsPage
from fedsys.web.serving import PageServer
from server.web.sections import OperatorSections
from tests.fedsys.web.pages import TOKEN, loop_in_thread
from tests.server.web.scene import make_scene
from tests.webdriver import Browser, chromium, missing

__all__ = ["main", "serve"]

WHERE = Path(__file__).resolve().parents[1] / "docs" / "pictures"
ADDRESS = WebAddress.parse("localhost:0")
SCREENS = {
    "1280": ((1280, 800), False),
    "1280-dark": ((1280, 800), True),
    "390": ((390, 844), False),
}
_SETTINGS: dict[str, Any] = {"rounds.count": 30, "aggregation.protocol": "ideal"}
_RUNS: dict[str, dict[str, Any]] = {
    "noise-0.7": {"privacy.noise_multiplier": 0.7, "privacy.epsilon": 8},
    "noise-1.5": {"privacy.noise_multiplier": 1.5},
    "no-noise": {"privacy.mechanism": "none"},
}


@contextmanager
def serve(board: Board, shell: str, **options: Any) -> Iterator[str]:
    """Serves a board in a thread; gives the page's address."""
    with loop_in_thread() as loop:

        async def begin() -> PageServer:
            app = application(board, shell=shell, token=lambda: TOKEN, **options)
            server = PageServer(app, board, ADDRESS.listen())
            server.start()
            return server

        server = asyncio.run_coroutine_threadsafe(begin(), loop).result(60)
        try:
            yield ADDRESS.url(server.port, TOKEN)
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)


def simulated(folder: Path) -> list[Path]:
    """A few runs of the digits task."""
    found = [
        fedsys.simulate("quickstart", {**_SETTINGS, **more}, out=folder / name, progress=False)
        for name, more in _RUNS.items()
    ]
    return [run.folder for run in found]


def operator(browser: Browser, runs: list[Path], folder: Path) -> Iterator[tuple[str, bytes]]:
    """Pictures of the operator's page."""
    scene = make_scene(folder / "hospitals", [runs[1], runs[0]], now=time.time())
    scene.state.update_job("0de2f3c4a911", round=30, rounds=60)
    try:
        board = Board(OperatorSections(scene.home, scene.state, scene.fleet).read)
        with serve(board, "operator.html") as url:
            for name, (size, dark) in SCREENS.items():
                browser.size(*size, dark=dark)
                browser.open("about:blank")
                browser.open(url)
                browser.wait_for("#ledgers h2", "Ledgers")
                browser.wait_for("#live", "live")
                yield f"operator-{name}", browser.picture(full=True)
    finally:
        scene.state.close()


def researcher(browser: Browser, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Pictures of the page over runs: the list, a comparison, and one run."""
    page = RunsPage(folder)
    board = Board(page.read)
    with serve(board, "runs.html", questions={"compare": page.compared}) as url:
        for name, (size, dark) in SCREENS.items():
            browser.size(*size, dark=dark)
            browser.open("about:blank")
            browser.open(url)
            browser.wait_for("#run h2")
            browser.wait_for("#live", "live")
            for row in (1, 2, 3):
                browser.click(f".runs tbody tr:nth-child({row}) input")
            browser.click("button.main")
            browser.wait_for("#comparison h2")
            yield f"runs-{name}", browser.picture(full=True)


def smaller(picture: bytes, tallest: int) -> bytes:
    """The picture in 256 colours, cut at a height in pixels."""
    found = Image.open(io.BytesIO(picture)).convert("RGB")
    found = found.crop((0, 0, found.width, min(found.height, tallest)))
    out = io.BytesIO()
    found.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def main(where: Path = WHERE) -> None:
    """Writes the pictures."""
    if missing():
        raise SystemExit(missing())
    where = where.resolve()
    where.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        chromium() as browser,
    ):
        runs = simulated(Path("runs"))
        for name, picture in (
            *operator(browser, runs, Path()),
            *researcher(browser, Path("runs")),
        ):
            content = smaller(picture, 2700 if "1280" in name else 2400)
            (where / f"{name}.png").write_bytes(content)
            print(f"{name}.png: {len(content) / 1024:.0f} KiB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
