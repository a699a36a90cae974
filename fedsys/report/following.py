"""Sends a run's progress to trackers, only from the files that `fedsys publish` would copy.

``config.toml``, ``ledger.jsonl``, ``metrics.jsonl`` and the public part of ``summary.json`` are
read as they grow. Neither ``private.jsonl`` nor the process that runs the job is consulted, so
nothing can go out that the outsider's epsilon does not cover.
"""

from __future__ import annotations

import json
import math
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsys.errors import FedsysError, RunFolderError
from fedsys.privacy import plan_of
from fedsys.privacy.accounting.outsider import OutsiderLoss
from fedsys.privacy.events import event_from_json
from fedsys.privacy.ledger.files import open_regular
from fedsys.privacy.ledger.lines import MAX_LINE_BYTES, parse_object
from fedsys.report.trackers import TrackedRun, Tracker, Value, shown
from fedsys.run_folder import RunFolder

__all__ = ["Feed", "Following", "send"]

PATIENCE = 30.0
"""Seconds to wait for trackers at the end of a run."""

MAX_BYTES = 1 << 32

_RESULT = ("status", "rounds", "model_sha256", "ledger_head", "signer", "protocol", "reproducible")


class Feed:
    """The public files of one run, read as they grow.

    Args:
        folder: the run's folder, private or published; it may not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ledger = _Lines(folder / "ledger.jsonl")
        self._metrics = _Lines(folder / "metrics.jsonl")
        self._spent: OutsiderLoss | None = None
        self._private = False

    def start(self) -> TrackedRun | None:
        """What is known before the first round; None until the ledger has its header."""
        for line in self._ledger.new(1):
            plan = plan_of(line["body"])
            withheld = line["body"].get("withheld") is not None
            self._spent, self._private = OutsiderLoss(plan), plan.protected and not withheld
            settings = RunFolder(self._folder).read_config().model_dump(exclude_none=True)
            return TrackedRun(
                name=str(line["body"]["name"]),
                job=str(line["body"]["job"]),
                settings=dict(_flat(settings)),
            )
        return None

    def rounds(self) -> Iterator[tuple[int, dict[str, float]]]:
        """New rounds with their evaluation and epsilon.

        A round without an evaluation is omitted if a later round has been reserved already.
        """
        evaluated: dict[int, dict[str, float]] = {}
        for line in self._metrics.new():
            number = int(line.pop("round"))
            evaluated[number] = _finite(line)
        reserved = [line["body"] for line in self._ledger.new() if line["kind"] == "reserve"]
        for at, body in enumerate(reserved, start=1):
            number, spent = int(body["round"]), self._spent
            values = evaluated.pop(number, {})
            if spent is not None:
                spent.add(event_from_json(body["event"]))
                if self._private and (values or at == len(reserved)):
                    values["epsilon.outsider"] = spent.epsilon()
            if values:
                yield number, _finite(values)
        yield from evaluated.items()

    def result(self) -> dict[str, Value] | None:
        """The public part of the summary; None while there is none."""
        folder = RunFolder(self._folder)
        if not folder.summary.is_file():
            return None
        summary = folder.read_summary()
        return {key: summary[key] for key in _RESULT if summary.get(key) is not None}


class _Lines:
    """Yields each complete line of a growing file once."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def new(self, most: int | None = None) -> Iterator[dict[str, Any]]:
        if not self._path.is_file():
            return
        with open_regular(self._path, MAX_BYTES) as file:
            file.seek(self._at)
            while most != 0 and (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                self._at += len(line)
                most = None if most is None else most - 1
                yield parse_object(line[:-1], self._path.name)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (str, int, float)):
            yield prefix + key, value
        else:
            yield prefix + key, json.dumps(value, default=str)


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }


Call = Callable[[Tracker], None]


@dataclass(eq=False)
class _Courier:
    """Calls one tracker in its own thread, so that the run never waits for it."""

    spec: str
    tracker: Tracker
    problem: str | None = None
    told: bool = False
    _calls: queue.SimpleQueue[Call | None] = field(default_factory=queue.SimpleQueue)
    _thread: threading.Thread | None = None

    def open(self) -> None:
        self._thread = threading.Thread(target=self._deliver, name="tracker", daemon=True)
        self._thread.start()

    def hand(self, call: Call | None) -> None:
        self._calls.put(call)

    def wait(self, seconds: float) -> None:
        if self._thread is None:
            return
        self._thread.join(max(seconds, 0.0))
        if self._thread.is_alive() and self.problem is None:
            self.problem = "did not answer in time; what it has not received is lost to it"

    def _deliver(self) -> None:
        while (call := self._calls.get()) is not None:
            if self.problem is None:
                try:
                    call(self.tracker)
                except (Exception, SystemExit) as error:  # whatever a tracker does, the run goes on
                    self.problem = _reason(error, self.spec)


def _reason(error: BaseException, spec: str) -> str:
    """One line without the credentials that an address may hold."""
    text = " ".join(str(error).split())[:200]
    for secret in re.findall(r"//([^/@\s]*)@", spec):
        for part in {secret, *secret.split(":")} - {""}:
            text = text.replace(part, "***")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Following:
    """Follows one run for some trackers; as a context manager, until the run has ended.

    Args:
        folder: the run's folder.
        trackers: by the name that the user gave.
        say: receives one line about each tracker that fails; that tracker gets nothing more.
        patience: seconds to wait for all of them at the end.
    """

    def __init__(
        self,
        folder: Path,
        trackers: Mapping[str, Tracker],
        *,
        say: Callable[[str], None],
        patience: float = PATIENCE,
    ) -> None:
        self._feed, self._say, self._patience = Feed(folder), say, patience
        self._couriers = [_Courier(spec, tracker) for spec, tracker in trackers.items()]
        self._begun = False
        self._broken = False

    def __enter__(self) -> Following:
        for courier in self._couriers:
            courier.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._begun or kind is None:  # otherwise the folder may hold another run
            self._read(self._end)
        for courier in self._couriers:
            courier.hand(None)
        deadline = time.monotonic() + self._patience
        for courier in self._couriers:
            courier.wait(deadline - time.monotonic())
        self._complain()

    def look(self) -> None:
        """Sends what is new; raises nothing."""
        self._read(self._rounds)
        self._complain()

    def _read(self, what: Callable[[], None]) -> None:
        """An unreadable folder stops tracking, not the run."""
        if self._broken:
            return
        try:
            what()
        except (OSError, ValueError, KeyError, TypeError, FedsysError) as error:
            self._broken = True
            self._say(f"tracking stopped: {type(error).__name__}: {error}; the run goes on")

    def _rounds(self) -> None:
        if not self._begun:
            run = self._feed.start()
            if run is None:
                return
            self._begun = True
            self._tell(lambda tracker: tracker.started(run))
        for number, values in self._feed.rounds():
            self._tell(_round(number, values))

    def _end(self) -> None:
        self._rounds()
        if self._begun:
            result = self._feed.result() or {"status": "interrupted"}
            self._tell(lambda tracker: tracker.finished(result))

    def _tell(self, call: Call) -> None:
        for courier in self._couriers:
            courier.hand(call)

    def _complain(self) -> None:
        for courier in self._couriers:
            if courier.problem is not None and not courier.told:
                courier.told = True
                self._say(
                    f"tracker {shown(courier.spec)}: {courier.problem}; the run goes on without it"
                )


def _round(number: int, values: Mapping[str, float]) -> Call:
    return lambda tracker: tracker.round(number, values)


def send(folder: Path, trackers: Mapping[str, Tracker], *, say: Callable[[str], None]) -> None:
    """Sends a finished run to trackers.

    Raises:
        RunFolderError: there is no run.
    """
    if not (folder / "ledger.jsonl").is_file():
        raise RunFolderError(f"{folder}: no run to track here (ledger.jsonl is missing)")
    with Following(folder, trackers, say=say):
        pass
