"""A researcher's page: the runs below a folder, live while they train, and side by side."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedsys import __version__
from fedsys.errors import ConfigError, FedsysError, RunFolderError
from fedsys.printable import printable
from fedsys.report.comparison import Comparison as Page
from fedsys.runs.comparison import compare
from fedsys.runs.listing import run_folders
from fedsys.runs.progress import ProgressReader
from fedsys.runs.side_by_side import page_of
from fedsys.web.address import WebAddress
from fedsys.web.application import application
from fedsys.web.board import Board
from fedsys.web.charts import chart_json
from fedsys.web.run_section import RunSections
from fedsys.web.serving import PageServer
from fedsys.web.token import new_token

__all__ = ["RunsPage", "serve_runs"]

_MOST_COMPARED = 12
_ORDER = {"running": 0}


class RunsPage:
    """The sections of the page.

    Args:
        root: the folder with the runs, or a run's.
        now: seconds since 1970.
    """

    def __init__(self, root: Path, *, now: Callable[[], float] = time.time) -> None:
        self._root = root
        self._now = now
        self._lock = threading.Lock()
        self._readers: dict[str, ProgressReader] = {}
        self._folders: dict[str, Path] = {}
        self._sections = RunSections()

    def read(self) -> dict[str, Any]:
        """All sections; of what did not change, nothing is read.

        Raises:
            RunFolderError: the folder is gone.
        """
        with self._lock:
            self._find()
            rows = []
            for key, reader in self._readers.items():
                try:
                    progress = reader.read()
                except (FedsysError, OSError):  # removed at this moment
                    continue
                folder = printable(progress.folder, 1000)
                rows.append({**self._sections.of(key, progress), "key": key, "folder": folder})
            rows.sort(key=lambda row: (_ORDER.get(row["status"], 1), -row["written"], row["key"]))
            return {
                "page": {
                    "kind": "runs",
                    "root": printable(self._root, 1000),
                    "version": __version__,
                    "order": [row["key"] for row in rows],
                },
                **{f"run/{row['key']}": row for row in rows},
            }

    def compared(self, query: Mapping[str, list[str]]) -> dict[str, Any]:
        """The comparison of the runs that a query names.

        Raises:
            FedsysError: none is named, too many are, or one is not on the page.
        """
        keys = list(dict.fromkeys(query.get("run", [])))
        with self._lock:
            folders = {key: self._folders.get(key) for key in keys}
        found = {key: folder for key, folder in folders.items() if folder is not None}
        if not 1 <= len(keys) <= _MOST_COMPARED or len(found) < len(keys):
            raise RunFolderError(f"choose 1 to {_MOST_COMPARED} of the runs on the page")
        command = " ".join(["fedsys compare", *(str(folder) for folder in found.values())])
        return _page_json(page_of(compare(found), command=command))

    def _find(self) -> None:
        folders = {_key(self._root, folder): folder for folder in run_folders(self._root)}
        for key in [key for key in self._readers if folders.get(key) != self._folders.get(key)]:
            del self._readers[key]
            self._sections.drop(key)
        for key in folders.keys() - self._readers.keys():
            self._readers[key] = ProgressReader(folders[key])
        self._folders = folders


def _key(root: Path, folder: Path) -> str:
    return printable(folder.name if folder == root else folder.relative_to(root), 300)


def _page_json(page: Page) -> dict[str, Any]:
    return {
        "title": page.title,
        "intro": page.intro,
        "chart": None if page.chart is None else chart_json(page.chart),
        "findings": [list(each) for each in page.findings],
        "tables": [
            {
                "title": table.title,
                "lead": table.lead,
                "columns": list(table.columns),
                "rows": [[name, [cell for cell, _fine in cells]] for name, cells in table.rows],
            }
            for table in page.tables
        ],
        "origin": [list(each) for each in page.origin],
    }


async def serve_runs(
    root: Path,
    listen: str,
    *,
    ready: Callable[[str], None],
    stop: asyncio.Event | None = None,
) -> None:
    """Serve the page until SIGTERM, SIGINT or `stop`.

    Args:
        root: the folder with the runs.
        listen: an address of this machine, or a Unix socket.
        ready: called with the page's address once it listens.
        stop: ends the service when set; signals are then not handled.

    Raises:
        RunFolderError: there is no such folder.
        ConfigError: the address cannot be listened on.
    """
    page = RunsPage(root)
    run_folders(root, most=1)  # that it is there is said before anything is served
    address, token = _address(listen), new_token()
    try:
        listener = address.listen()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"--listen {listen}: {reason}; give another address") from None
    if stop is None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
    board = Board(page.read)
    app = application(
        board,
        shell="runs.html",
        token=lambda: token,
        questions={"compare": page.compared},
    )
    server = PageServer(app, board, listener)
    server.start()
    try:
        ready(address.url(server.port, token))
        await stop.wait()
    finally:
        await server.stop()


def _address(listen: str) -> WebAddress:
    try:
        return WebAddress.parse(listen)
    except ConfigError as error:
        raise ConfigError(f"--listen {listen}: {error}") from None
