"""Strikes a running job with faults, then checks the invariants."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsys.config import Config, validate
from fedsys.privacy import read_ledger
from simulations.testbed.faults import Fault
from simulations.testbed.federation import COORDINATOR, Federation, TestbedError
from simulations.testbed.resources import Sample, leaks, longest_lives, look

__all__ = ["Claim", "Report", "Trial", "endless"]

_PROGRESS = 3
_PATIENCE = 120.0
_LOOK = 10.0


@dataclass(frozen=True)
class Claim:
    """An invariant, and whether it held.

    Attributes:
        text: The invariant.
        held: Whether it held.
        detail: Figures, or what went wrong.
    """

    text: str
    held: bool
    detail: str = ""


@dataclass
class Report:
    """What was done to a federation, and what held.

    Attributes:
        strikes: Each fault: seconds from the start, the fault's name, what was done.
        claims: The invariants that were checked.
        samples: Resources of every party, in order of time.
        seconds: Duration of the faults.
    """

    strikes: list[tuple[float, str, str]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether everything held."""
        return all(claim.held for claim in self.claims)

    def claim(self, text: str, held: bool, detail: str = "") -> None:
        """Record that an invariant was checked."""
        self.claims.append(Claim(text, held, detail))

    @property
    def broken(self) -> str:
        """The invariants that did not hold, as text."""
        return "; ".join(f"{each.text}: {each.detail}" for each in self.claims if not each.held)

    def lines(self) -> list[str]:
        """The whole report as plain text."""
        done = Counter(name for _, name, _ in self.strikes)
        return [
            f"{self.seconds:.0f} s: " + ", ".join(f"{n} x {name}" for name, n in done.items()),
            *(
                f"{'held  ' if claim.held else 'BROKEN'}  {claim.text}  {claim.detail}".rstrip()
                for claim in self.claims
            ),
            "party   age s     MB  threads  descriptors",
            *(
                f"{each.name:5s} {each.age:7.0f} {each.rss / 1e6:6.1f} {each.threads:8d} "
                f"{each.descriptors:12d}"
                for life in longest_lives(self.samples)
                for each in (life[0], life[len(life) // 2], life[-1])
            ),
        ]


def endless(agents: int, *settings: tuple[str, str, object]) -> Config:
    """An endless job in which one agent may be lost; of fewer than five, none.

    Args:
        agents: Number of agents in the population.
        settings: Settings to replace, as (section, key, value).
    """
    least, few = max(2, agents // 2), agents < 5
    tree: dict[str, dict[str, object]] = {
        "job": {"name": "trial", "seed": 0},
        "task": {"name": "digits"},
        "population": {"partition": "iid", "clients": agents},
        "cohort": {
            "expected": agents if few else agents - 1,
            "cap": agents,
            "min_survivors": least,
        },
        "rounds": {"count": 1_000_000},
        "local": {"batch_size": 32, "learning_rate": 0.5},
        "server": {"strategy": "fedavg"},
        "privacy": {"mechanism": "none"},
        "aggregation": {"dropout": 0.0 if few else 0.2, "corrupt": 0.0},
        "engine": {"path": "loop", "chunk": 1},
        "evaluation": {"data": "none"},
    }
    for section, key, value in settings:
        tree[section][key] = value
    return validate(tree)


class Trial:
    """One federation, one endless job, faults that strike it.

    Args:
        federation: A federation with a running coordinator; agents are started here.
        faults: Faults to draw from at random.
        seed: Seed of the draws: which party is struck, by what and when. What then happens also
            depends on the machine, so a seed repeats the faults but not the run.
        say: Called with a line for each event as it happens.
    """

    def __init__(
        self,
        federation: Federation,
        faults: Sequence[Fault],
        *,
        seed: int,
        say: Callable[[str], object] = lambda _line: None,
    ) -> None:
        self._federation = federation
        self._faults = list(faults)
        self._dice = random.Random(seed)  # noqa: S311  # of faults, not of secrets
        self._say = say
        self._report = Report()
        self._seen: dict[int, dict[str, Any]] = {}
        self._job = ""

    def run(self, *, seconds: float = 0.0, strikes: int = 0) -> Report:
        """Strike for at least this long and this often, then check.

        The last agent is never struck, nor the coordinator in the first half of a trial that is
        measured in seconds, so that their memory can be watched.
        """
        federation, report = self._federation, self._report
        for name in federation.names:
            federation.start(name)
        federation.wait_connected()
        self._job = federation.submit(endless(federation.size))
        federation.wait(self._job, until="running")
        started = time.monotonic()
        looked = -_LOOK
        while (now := time.monotonic() - started) < seconds or len(report.strikes) < strikes:
            veterans = {federation.names[-1]}
            if now < seconds / 2:
                veterans.add(COORDINATOR)
            federation.spared = frozenset(veterans)
            if now - looked >= _LOOK:
                looked = now
                report.samples += look(federation, time.time())
            self._observe()
            fault = self._dice.choice(self._faults)
            done = fault.strike(federation, self._dice)
            report.strikes.append((now, fault.name, done))
            self._say(f"{now:7.1f} s  {fault.name}: {done}")
            self._revive()
            if seconds:
                time.sleep(self._dice.uniform(0.5, 3.0))
        report.seconds = time.monotonic() - started
        report.samples += look(federation, time.time())
        self._check()
        return report

    def _observe(self) -> None:
        """Record what is committed now; it must never change."""
        self._seen |= self._federation.commits(self._job)

    def _revive(self) -> None:
        """Restart parties that ended by themselves, as systemd would, and record it."""
        for name, code in self._federation.dead.items():
            self._say(f"           {name} ended by itself with {code}")
            self._report.strikes.append((0.0, "ended", f"{name}: {code}"))
            self._federation.stop(name)
            self._federation.start(name)

    # -- what must hold ----------------------------------------------------------------------------

    def _check(self) -> None:
        federation, report, job = self._federation, self._report, self._job
        self._observe()
        before = len(self._seen)
        end = time.monotonic() + _PATIENCE
        while len(federation.commits(job)) < before + _PROGRESS and time.monotonic() < end:
            self._revive()
            time.sleep(0.1)
        done = len(federation.commits(job))
        report.claim(
            "the job goes on after the last fault",
            done >= before + _PROGRESS,
            f"{done} rounds committed" if done > before else federation.log(COORDINATOR),
        )
        self._observe()
        federation.command("job", "cancel", COORDINATOR, job)
        row = federation.wait(job, seconds=_PATIENCE)
        report.claim("it ends when it is cancelled", row.status == "cancelled", row.reason)
        report.claim(
            "a process that is asked to stop stops",
            not federation.overstayed,
            f"killed after a minute: {', '.join(federation.overstayed)}"
            * bool(federation.overstayed),
        )
        self._check_ledger()
        self._check_devices()
        self._check_result()
        self._check_next_job()
        grown = leaks(report.samples)
        report.claim("memory, threads and descriptors stay flat", not grown, "; ".join(grown))

    def _check_ledger(self) -> None:
        federation, report, job = self._federation, self._report, self._job
        view = read_ledger(federation.home.jobs / job / "ledger.jsonl")
        numbers = [each.round for each in view.rounds]
        report.claim(
            "every round number is used once",
            numbers == list(range(1, len(numbers) + 1)),
            f"{len(numbers)} rounds reserved",
        )
        final = federation.commits(job)
        lost = [number for number, body in self._seen.items() if final.get(number) != body]
        report.claim("nothing committed is lost or changed", not lost, f"lost: {lost}" * bool(lost))

    def _check_devices(self) -> None:
        """Each device has counted every round in which the ledger's private part lists it."""
        federation, job = self._federation, self._job
        counted = [
            _uploaded(federation.root / name, self._job_of(job)) for name in federation.names
        ]
        missing = [
            (number, client)
            for number, clients in federation.survivors(job).items()
            for client in clients
            if number not in counted[client]
        ]
        self._report.claim(
            "devices counted every round that sums their vectors",
            not missing,
            f"(round, client) {missing[:5]}" * bool(missing),
        )

    def _check_result(self) -> None:
        """The fetched run passes its audit, and a simulation of the same survivors equals it."""
        fetch = ("job", "fetch", COORDINATOR, self._job, "result")
        for text, words in (
            ("the run is fetched, and its audit passes", fetch),
            ("a simulation of it is equal to the bit", ("simulate", "--replay", "result")),
        ):
            try:
                self._federation.command(*words)
                self._report.claim(text, True)
            except TestbedError as error:
                self._report.claim(text, False, str(error))

    def _check_next_job(self) -> None:
        federation = self._federation
        try:
            job = federation.submit(endless(federation.size, ("rounds", "count", _PROGRESS)))
            row = federation.wait(job, seconds=_PATIENCE)
            self._report.claim("the next job completes", row.status == "completed", row.reason)
        except TestbedError as error:
            self._report.claim("the next job completes", False, str(error))

    def _job_of(self, job: str) -> str:
        """The name by which devices know a job."""
        view = read_ledger(self._federation.home.jobs / job / "ledger.jsonl")
        return str(view.header["job"])


def _uploaded(folder: Path, job: str) -> set[int]:
    body = json.loads((folder / "journal.json").read_text("utf-8"))
    return {number for each in body["jobs"] if each["job"] == job for number in each["uploaded"]}
