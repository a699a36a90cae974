"""A simulated job on a disk that keeps what was flushed and may lose the rest.

A round's checkpoint is written while the rest of the round is recorded, and its commit reaches the
disk with the next round's reservation. So it matters what a loss of power would leave whenever a
cohort is asked, and whenever the model leaves the job's own loop. A thread would make no two runs
alike: here a checkpoint is written either at once, or as late as it may be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pytest

from client.training import Trainer
from fedsys.audit import audit_run
from fedsys.config import Config
from fedsys.errors import FedsysError
from fedsys.privacy import LedgerView, read_ledger
from fedsys.privacy.ledger import read_private
from simulations import harness
from simulations.deterministic.storage import Crashed, Disk, FlushFate, Storage
from simulations.summation import Cohort
from tests.simulations.conftest import Configure
from tests.simulations.test_between import training

ROUNDS = 4

JOB = [f"rounds.count={ROUNDS}", "evaluation.every=2", "engine.threads=1"]

ASKING: dict[str, Any] = {
    "rounds__count": ROUNDS // 2,
    "evaluation__on_devices_every": 1,
    "evaluation__data": "none",
}
"""As many rounds, every other one of which asks devices."""

DIES = [
    pytest.param(FlushFate(dies="before", power_lost=True), id="power lost before"),
    pytest.param(FlushFate(dies="after", power_lost=True), id="power lost after"),
    pytest.param(FlushFate(dies="before"), id="killed before"),
    pytest.param(FlushFate(fails=True), id="the disk fails"),
]


class AtOnce(Executor):
    """Does what it is given before anything else is done."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class AtLast(Executor):
    """Does what it is given when somebody waits for it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        class Waited(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                return fn(*args, **kwargs)

        return Waited()


class Machine:
    """A disk with a run on it. What it would keep is read whenever somebody is asked or told.

    Args:
        folder: that holds it.
        checkpoints: does their writing.
        seed: of what a loss of power leaves.

    Attributes:
        asked: rounds whose cohorts were asked, since it was last started.
        released: rounds whose model left the loop: was evaluated, or became a file.
        flushes: of this disk so far.
    """

    def __init__(self, folder: Path, checkpoints: type[Executor], seed: int = 0) -> None:
        self._checkpoints = checkpoints
        self.asked: list[int] = []
        self.released: list[int] = []
        self.flushes = 0
        self._fates: dict[int, FlushFate] = {}
        self._storage = Storage(folder, seed, self._fate)
        self._disk = self._storage.acting = self._storage.disk("machine")
        self._aside = folder / "certain.jsonl"
        self.out = self._disk.root / "run"

    def fate(self, flush: int, fate: FlushFate) -> None:
        """What becomes of its n-th flush from now, counted from 1."""
        self._fates[self.flushes + flush] = fate

    def restart(self) -> None:
        """The files as the crash left them."""
        self._disk.restart()

    @contextmanager
    def on(self) -> Iterator[None]:
        """Whatever runs within runs on this machine."""
        with pytest.MonkeyPatch.context() as patched, self._storage.watched():
            for owner, name, before in (
                (harness, "summation", self._asks),
                (harness, "model_bytes", self._releases),
                (Trainer, "evaluate", self._releases),
            ):
                patched.setattr(owner, name, _after(before, getattr(owner, name)))
            patched.setattr(harness, "ThreadPoolExecutor", lambda *_: self._checkpoints())
            yield

    def certain(self) -> LedgerView:
        """The ledger as a loss of power would leave it at least."""
        self._aside.write_bytes(self._disk.durable(self.out / "ledger.jsonl") or b"")
        view = read_ledger(self._aside, allow_torn=True)
        committed = [record for record in view.rounds if record.outcome == "commit"]
        assert {record.round for record in committed[-1:]} <= self._kept()
        asked = {each.round for each in committed if each.reserve["kind"] == "evaluate"}
        assert asked <= self._answered()
        return view

    def _kept(self) -> set[int]:
        """The rounds whose checkpoints it would leave."""
        found = set()
        for name in ("a.npz", "b.npz"):
            content = self._disk.durable(self.out / "checkpoints" / name)
            with suppress(ValueError, EOFError, BadZipFile):
                found.add(json.loads(np.load(BytesIO(content or b""))["facts"].tobytes())["round"])
        return found

    def _answered(self) -> set[int]:
        """The rounds whose answers it would leave."""
        lines = (self._disk.durable(self.out / "answers.jsonl") or b"").split(b"\n")
        return {json.loads(line)["round"] for line in lines if line}

    def _asks(self, cohort: Cohort, *_: Any) -> None:
        number, rounds = cohort.round.number, self.certain().rounds
        self.asked.append(number)
        assert [record.round for record in rounds] == list(range(1, number + 1))
        assert rounds[-1].outcome is None

    def _releases(self, *_: Any) -> None:
        committed = {it.round for it in self.certain().rounds if it.outcome == "commit"}
        assert committed >= set(self.asked)
        self.released.append(max(committed, default=0))

    def _fate(self, _disk: Disk) -> FlushFate:
        self.flushes += 1
        return self._fates.get(self.flushes, FlushFate())


def _after(before: Callable[..., None], function: Callable[..., Any]) -> Callable[..., Any]:
    def both(*args: Any, **kwargs: Any) -> Any:
        before(*args)
        return function(*args, **kwargs)

    return both


@pytest.mark.parametrize("checkpoints", [AtOnce, AtLast])
def test_nobody_is_asked_before_the_reservation_nor_told_before_the_commit(
    checkpoints: type[Executor], configure: Configure, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, checkpoints)
    with machine.on():
        harness.run(configure(*JOB), out=machine.out)
    assert machine.asked == [1, 2, 3, 4]
    assert machine.released == [2, 4, 4]
    assert machine.certain().closed is not None


def test_what_devices_answered_is_there_with_its_commit(tmp_path: Path) -> None:
    """Nobody could audit a run whose committed answers are gone."""
    machine = Machine(tmp_path, AtOnce)
    with machine.on():
        harness.run(training(**ASKING), out=machine.out)
    assert machine.asked == [1, 2, 3, 4]
    assert machine._answered() == {2, 4}


@pytest.mark.slow
@pytest.mark.parametrize("fate", DIES)
def test_a_job_that_asks_goes_on_wherever_it_dies(fate: FlushFate, tmp_path: Path) -> None:
    check_deaths(training(**ASKING), fate, tmp_path, (AtOnce, AtLast), step=3)


def test_a_round_takes_three_flushes(configure: Configure, tmp_path: Path) -> None:
    """Its private line, its checkpoint, and one of the ledger: the next reservation's."""
    flushes = []
    for rounds in (2, 10):
        (folder := tmp_path / str(rounds)).mkdir()
        machine = Machine(folder, AtOnce)
        job = configure(f"rounds.count={rounds}", "evaluation.data=none")
        with machine.on():
            harness.run(job, out=machine.out)
        flushes.append(machine.flushes)
    assert flushes[1] - flushes[0] == 3 * (10 - 2)


@pytest.mark.parametrize("fate", DIES)
def test_wherever_it_dies_it_goes_on(fate: FlushFate, configure: Configure, tmp_path: Path) -> None:
    """Some of the flushes; all of them in the slow test."""
    check_deaths(configure(*JOB), fate, tmp_path, (AtOnce, AtLast), step=8)


@pytest.mark.slow
@pytest.mark.parametrize("fate", DIES)
@pytest.mark.parametrize("checkpoints", [AtOnce, AtLast])
def test_wherever_it_dies_it_goes_on_at_every_flush(
    fate: FlushFate, checkpoints: type[Executor], configure: Configure, tmp_path: Path
) -> None:
    check_deaths(configure(*JOB), fate, tmp_path, (checkpoints,), step=1)


def check_deaths(
    job: Config, fate: FlushFate, folder: Path, checkpoints: Sequence[type[Executor]], *, step: int
) -> None:
    """A run for every `step`-th flush, which is its last; each is taken up and ends well."""
    flush, finished = 1, False
    while not finished:
        (here := folder / str(flush)).mkdir()
        machine = Machine(here, checkpoints[flush % len(checkpoints)], seed=flush)
        finished = died(job, machine, flush, fate)
        if not finished:
            take_up(machine)
        flush += step
    assert flush > 3 * ROUNDS


def died(job: Config, machine: Machine, flush: int, fate: FlushFate) -> bool:
    """Run it until that flush; whether there was none."""
    machine.fate(flush, fate)
    with machine.on():
        try:
            harness.run(job, out=machine.out)
        except Crashed:
            pass
        except FedsysError as error:
            assert "input/output error" in str(error).lower()  # noqa: PT017
        else:
            return True
    machine.restart()
    return False


def take_up(machine: Machine) -> None:
    """What a restart finds holds every round that was asked, and goes on to an honest end."""
    ledger, private = machine.out / "ledger.jsonl", machine.out / "private.jsonl"
    try:
        found = read_ledger(ledger, allow_torn=True)
    except FedsysError:
        assert not machine.asked
        return
    lost = {record.round for record in found.rounds if record.outcome is None}
    assert set(machine.asked) <= {record.round for record in found.rounds}
    assert not lost & set(machine.released)
    before = {number: line["sampled"] for number, line in read_private(private)[0].items()}
    asked, machine.asked = machine.asked, []
    if found.closed is None or not (machine.out / "summary.json").exists():
        with machine.on():
            harness.resume(machine.out)
    assert not set(asked) & set(machine.asked), "a round was asked again"
    view = read_ledger(ledger)
    assert view.closed is not None
    assert len(view.rounds) == ROUNDS
    drawn = {number: line["sampled"] for number, line in read_private(private)[0].items()}
    assert before.items() <= drawn.items()
    checked = audit_run(machine.out)
    assert checked.passed, [claim for claim in checked.claims if claim.holds is False]
