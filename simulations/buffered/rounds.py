"""Buffered rounds: a job whose clients upload when they are ready, K of them a round.

In the manner of FedBuff (Nguyen et al., AISTATS 2022): a constant number of clients trains at a
time, each from the model that was the newest when it began. The K-th upload closes a buffer, whose
sum makes the next version of the model; clients that begin after that start from it. Nobody waits
for the slowest client.

A buffer's cost is reserved before the first upload can enter it. A buffer that cannot be filled is
aborted and ends its epoch, so that its uploads can never be opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.privatize.staleness import staleness_factor
from fedsys.errors import BudgetExceeded
from fedsys.privacy import ring_dtype
from fedsys.privacy.sampling.cohorts import least_first
from secure_agg import RoundContext
from secure_agg.committee import SUITE_NAMES
from server.coordinator import OpenRound, SumRefused
from server.job import Job
from server.rounds import RoundAborted, params_for
from simulations.buffered.arrivals import Crowd, Training
from simulations.buffered.epoch import SecureEpoch
from simulations.engine.chunk import RoundWork, Tally, in_ring
from simulations.interrupts import uninterrupted
from simulations.setting import Setting
from simulations.summation import Summed, report_unusable

__all__ = ["BufferedRounds"]


@dataclass
class _Epoch:
    """Clients that are invited together, and the number of buffers that they have left."""

    cohort: tuple[int, ...]
    left: int
    secure: SecureEpoch | None = None


@dataclass
class _Buffer:
    """Uploads in order of arrival.

    Attributes:
        uploads: Those that came, each of a different client.
        lost: Number of uploads that were due meanwhile and never came.
    """

    uploads: list[Training] = field(default_factory=list)
    lost: int = 0

    @property
    def clients(self) -> tuple[int, ...]:
        """Increasing ids of the clients whose uploads are in the buffer."""
        return tuple(sorted(upload.client for upload in self.uploads))


class BufferedRounds:
    """A job's buffers, one after the other.

    Clients that were training when a process ended are invited again once the job is resumed.

    Args:
        setting: What the job runs on.
        job: The job, ready for its next round.
        tell: Called with a line for each buffer without a model, and for updates that are not
            finite.
    """

    def __init__(self, setting: Setting, job: Job, tell: Callable[[str], None]) -> None:
        rounds = setting.config.rounds
        self._setting, self._job, self._tell = setting, job, tell
        self._size = rounds.buffer or 0
        self._crowd = Crowd(
            faults=setting.faults,
            work_of=self._work_of,
            concurrency=rounds.concurrency or 0,
        )
        self._epoch: _Epoch | None = None
        self._version = len(job.ledger.committed)
        self._models: dict[int, NDArray[np.float32]] = {}
        self._exhausted = job.coordinator.exhausted

    def next(self) -> int:
        """Run one buffer up to its checkpoint and commit, which reaches the disk with the next
        buffer's reservation or at `settle`; returns how many clients trained for it.

        Raises:
            BudgetExceeded: The budget is spent, or fewer clients than fill a buffer may contribute
                once more.
        """
        job, coordinator = self._job, self._job.coordinator
        randomness = self._setting.randomness
        self._exhausted = coordinator.exhausted  # changes only when a buffer is over
        left = sum(self._allowed(client) for client in range(job.plan.population))
        if left < self._size:
            raise BudgetExceeded(
                f"{left} clients may contribute once more under privacy.max_participations = "
                f"{job.plan.max_participations}, fewer than a buffer takes: the job ends after "
                f"{coordinator.reserved} buffers"
            )
        with uninterrupted():
            open_ = coordinator.begin_round(randomness.sampling(coordinator.reserved + 1))
        self._models[self._version] = open_.assignment.weights
        buffer = _Buffer()
        try:
            epoch = self._epoch or self._open_epoch(open_)
            epoch.left -= 1
            self._fill(buffer, open_.number)
            summed = self._sum(epoch, open_.number, buffer)
        except RoundAborted as abort:
            with uninterrupted():
                coordinator.admit(buffer.clients)
                coordinator.abort_round(str(abort), before_unmask=abort.nothing_summed)
            self._tell(f"buffer {open_.number} gave no model: {abort}")
            for client, reason in list(abort.refusals.items())[:1]:
                self._tell(f"  client {client} (one of {len(abort.refusals)}) refused at {reason}")
            if len(buffer.uploads) < self._size:
                self.close()
            return 0
        finally:
            self._end_epoch_in_time()
        return self._finish(open_.number, buffer, summed)

    def close(self) -> None:
        """End the epoch and erase its keys."""
        if self._epoch is not None and self._epoch.secure is not None:
            self._epoch.secure.erase()
        self._epoch = None

    def _end_epoch_in_time(self) -> None:
        if self._epoch is not None and self._epoch.left <= 0:
            self.close()

    # -- who is invited ----------------------------------------------------------------------------

    def _allowed(self, client: int) -> bool:
        """Whether a client that neither trains nor waits may contribute once more."""
        return client not in self._exhausted

    def _work_of(self, client: int) -> int:
        setting = self._setting
        if not setting.faults.seconds_per_example:
            return 0
        held = len(setting.population.partition.indices_of(client))
        return setting.config.local.epochs * held

    def _open_epoch(self, open_: OpenRound) -> _Epoch:
        """Invite the clients that are training, and of the others those that contributed least,
        at random among equals.

        Raises:
            RoundAborted: Secure aggregation cannot serve so few clients.
        """
        setting, plan, rounds = self._setting, self._job.plan, self._setting.config.rounds
        busy = {training.client for training in self._crowd.training}
        free = [
            client
            for client in range(plan.population)
            if client not in busy and self._allowed(client)
        ]
        counts = np.zeros(plan.population, dtype=np.int64)
        for client, times in self._job.ledger.participations.items():
            counts[client] = times
        entropy = setting.randomness.sampling(open_.number)
        order = least_first(counts, np.array(free, dtype=np.int64), entropy)
        invited = [*sorted(busy), *order[: max(rounds.epoch_clients - len(busy), 0)].tolist()]
        self._crowd.invite(invited)
        cohort = tuple(sorted(invited))
        epoch = _Epoch(cohort=cohort, left=rounds.epoch)
        if setting.config.aggregation.protocol == "secure":
            suite = SUITE_NAMES[setting.config.aggregation.suite]
            mechanism, roster = self._job.coordinator.mechanism, setting.population.roster
            assignment = open_.assignment
            epoch.secure = SecureEpoch(
                context=RoundContext(
                    job=assignment.job,
                    round=open_.number,
                    model_hash=assignment.digest,
                    buffers=rounds.epoch,
                ),
                cohort=cohort,
                params=params_for(plan, mechanism, roster, len(cohort), suite=suite),
                size=self._size,
                population=setting.population,
                faults=setting.faults,
                randomness=setting.randomness,
            )
        self._epoch = epoch
        return epoch

    def _fill(self, buffer: _Buffer, number: int) -> None:
        """Take uploads as they arrive until the buffer is full.

        Raises:
            RoundAborted: No client is left whose upload could come.
        """
        crowd, clock = self._crowd, self._setting.clock
        crowd.begin_buffer()
        while len(buffer.uploads) < self._size:
            crowd.ask(buffer=number, version=self._version, now=clock.now, allowed=self._allowed)
            training = crowd.next()
            if training is None:
                raise RoundAborted(
                    f"a buffer could not be filled: {len(buffer.uploads)} of {self._size} uploads "
                    f"came",
                    nothing_summed=True,
                )
            clock.now = training.finish
            if training.lost:
                buffer.lost += 1
            else:
                buffer.uploads.append(training)

    # -- what clients send -------------------------------------------------------------------------

    def _works(self, buffer: _Buffer) -> Iterator[tuple[RoundWork, tuple[int, ...]]]:
        """The buffer's clients, grouped by the model that they trained from, oldest first."""
        mechanism, aggregation = self._job.coordinator.mechanism, self._setting.config.aggregation
        most = self._setting.config.rounds.max_staleness
        uploads = sorted(buffer.uploads, key=lambda it: (it.buffer, it.client))
        for number, group in groupby(uploads, key=lambda it: it.buffer):
            trained = tuple(group)
            version, clients = trained[0].version, tuple(it.client for it in trained)
            factor = staleness_factor(self._version - version, most=most)
            work = RoundWork(
                number=number,
                weights=self._models[version],
                seed=b"",
                mechanism=mechanism.event.to_json(),
                protocol=aggregation.protocol,
                exhausted=frozenset() if factor else frozenset(clients),
                factor=factor or 1.0,
                rounds=self._job.plan.rounds,
            )
            yield work, clients

    def _sum(self, epoch: _Epoch, number: int, buffer: _Buffer) -> Summed:
        if epoch.secure is not None:
            return self._secure_sum(epoch.secure, number, buffer)
        setting, mechanism = self._setting, self._job.coordinator.mechanism
        flat, tally = np.zeros(mechanism.length, dtype=np.int64), Tally()
        for work, clients in self._works(buffer):
            part, seen = setting.engine.total(work, self._chunks(clients), mechanism.length)
            flat += part
            tally = tally + seen
        protocol = setting.config.aggregation.protocol
        return Summed(
            total=in_ring(flat, mechanism, protocol, invited=len(epoch.cohort)),
            survivors=buffer.clients,
            trained=tally.trained,
            clipped=tally.clipped,
            unusable=tally.unusable,
        )

    def _secure_sum(self, secure: SecureEpoch, number: int, buffer: _Buffer) -> Summed:
        setting, vectors = self._setting, dict[int, NDArray[Any]]()
        summed = Summed(total=np.zeros(0, dtype=np.uint32), survivors=())
        for work, clients in self._works(buffer):
            summed.trained += len(set(clients) - work.exhausted)
            for chunk, privatized in setting.engine.vectors(work, self._chunks(clients)):
                vectors |= {id: privatized.values[row].copy() for row, id in enumerate(chunk)}
                summed.clipped += int(privatized.clipped.sum())
                summed.unusable += int(privatized.unusable.sum())
        for upload in buffer.uploads:
            secure.upload(upload.client, vectors.pop(upload.client))
        result = secure.settle(number, setting.clock.now)
        bits = self._job.coordinator.mechanism.modulus_bits
        summed.total = result.total.astype(ring_dtype(bits), copy=False)
        summed.survivors = result.included
        summed.dropped = {stage: len(ids) for stage, ids in result.dropped.items()}
        return summed

    def _chunks(self, clients: tuple[int, ...]) -> list[tuple[int, ...]]:
        setting = self._setting
        processes = setting.engine.processes
        return setting.population.chunks(clients, setting.chunk, processes=processes)

    # -- the next version --------------------------------------------------------------------------

    def _finish(self, number: int, buffer: _Buffer, summed: Summed) -> int:
        coordinator = self._job.coordinator
        try:
            with uninterrupted():
                coordinator.admit(buffer.clients)
                coordinator.finish_round(
                    summed.total,
                    summed.survivors,
                    nonces=self._setting.nonces(number, summed.survivors),
                    held=True,
                    diagnostics=self._diagnostics(buffer, summed),
                )
        except SumRefused as refused:
            self._tell(f"buffer {number} gave no model: {refused}")
            return 0
        self._version += 1
        kept = {training.version for training in self._crowd.training}
        self._models = {it: model for it, model in self._models.items() if it in kept}
        if summed.unusable:
            with uninterrupted():
                coordinator.settle()
            report_unusable(summed, f"buffer {number}", self._job.folder.path, self._tell)
        return summed.trained

    def _diagnostics(self, buffer: _Buffer, summed: Summed) -> Mapping[str, Any]:
        stale = [self._version - upload.version for upload in buffer.uploads]
        lost = {"upload": buffer.lost} if buffer.lost else {}
        found = {
            "dropped": {**lost, **summed.dropped},
            "clipped_fraction": summed.clipped / max(summed.trained, 1),
            "not_finite": summed.unusable,
            "mean_staleness": sum(stale) / len(stale),
            "most_staleness": max(stale),
            "too_stale": sum(it > self._setting.config.rounds.max_staleness for it in stale),
        }
        if self._setting.faults.seconds_per_example:
            found["simulated_seconds"] = self._setting.clock.now
        return found
