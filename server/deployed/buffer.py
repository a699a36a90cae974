"""One buffer of a deployed job of buffered rounds, from its reservation to its commit or abort.

A buffer is paid for before anybody is asked to train for it or to upload into it, one at a time:
while the committee opens its sum devices go on training, and those that are done wait for the next
one. A buffer that gave no model ends its epoch, whose keys devices then erase, so that no upload of
it can be opened later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedsys.errors import BudgetExceeded, Cause, ConfigError
from fedsys.privacy.sampling.cohorts import least_first
from fedsys.wire import fleet_pb2
from secure_agg import SumResult, draw_committee
from server.coordinator import OpenRound, SumRefused
from server.deployed.conversation import Deadlines
from server.deployed.crowd import Crowd, Training
from server.deployed.disk_work import to_its_end
from server.deployed.epoch import Buffer, DeployedEpoch, Surroundings
from server.deployed.fleet import Event, Said
from server.deployed.ledger_news import LedgerNews
from server.deployed.preparation import JobFailed, PreparedJob
from server.deployed.round import Facilities
from server.deployed.secure_epoch import SecureEpoch
from server.deployed.witnesses import JobWitnesses, WitnessesMissing
from server.rounds import RoundAborted, params_for

__all__ = ["BufferedCycle"]

_log = logging.getLogger(__name__)
_SPENT = (Cause.PARTICIPATION, Cause.EPSILON)


class BufferedCycle:
    """Runs a job's buffers, one at a time.

    Args:
        prepared: the job; its terms say how it buffers.
        facilities: what it runs on.
        consenting: clients that agreed, as of now; no others are asked for anything.
        listening: of them, those that agreed in the session that they have open; no others are
            invited to an epoch.
        elsewhere: takes every event that is no buffer's business; it hands all of them to
            `overhear`.
        witnesses: of the job's ledger.
        news: of the job's ledger, for its devices.
        refused: takes round, node, cause and reason of each refusal.
        blamed: takes round, client and reason of each member that was caught cheating, durably.

    Raises:
        ConfigError: the job's rounds are synchronous.
    """

    def __init__(
        self,
        prepared: PreparedJob,
        facilities: Facilities,
        *,
        consenting: Callable[[], frozenset[int]],
        listening: Callable[[], frozenset[int]],
        elsewhere: Callable[[Event], None],
        witnesses: JobWitnesses,
        news: LedgerNews,
        refused: Callable[[int, int, Cause, str], None],
        blamed: Callable[[int, int, str], None],
    ) -> None:
        if prepared.terms.buffering is None:
            raise ConfigError("rounds.mode = 'synchronous': there are no buffers")
        self._id = prepared.id
        self._job = prepared.job
        self._terms = prepared.terms
        self._buffering = prepared.terms.buffering
        self._roster = prepared.roster
        self._facilities = facilities
        self._consenting = consenting
        self._listening = listening
        self._elsewhere = elsewhere
        self._witnesses = witnesses
        self._news = news
        self._refused = refused
        self._blamed = blamed
        self._clients = {node: client for client, node in enumerate(prepared.roster.nodes)}
        self._crowd = Crowd(concurrency=self._buffering.concurrency)
        self._epoch: DeployedEpoch | None = None
        self._exhausted = self._job.coordinator.exhausted
        self._declined: set[int] = set()
        """Who says that it has contributed as often as it may."""
        self._served: dict[int, bool] = {}

    # -- who takes part ---------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether an epoch goes on, whose members are known."""
        return self._epoch is not None

    def require_clients(self) -> None:
        """See that a buffer can be filled at all.

        Raises:
            BudgetExceeded: fewer clients than a buffer takes may contribute once more.
        """
        coordinator, plan = self._job.coordinator, self._job.plan
        self._exhausted = coordinator.exhausted
        left = plan.population - len(self._exhausted | self._declined)
        if left < plan.cap:
            raise BudgetExceeded(
                f"{left} clients may contribute once more under privacy.max_participations = "
                f"{plan.max_participations}, fewer than a buffer takes: the job ends after "
                f"{coordinator.reserved} buffers"
            )

    def serves(self, clients: frozenset[int]) -> bool:
        """Whether an epoch of these could fill and settle a buffer."""
        able = len(clients - self._exhausted - self._declined)
        size = min(able, self._terms.largest_cohort)
        if size not in self._served:
            self._served[size] = self._fits(size)
        return self._served[size]

    def _fits(self, size: int) -> bool:
        cap = self._job.plan.cap
        if size < max(2, cap):
            return False
        mechanism = self._job.coordinator.mechanism
        try:
            params = params_for(
                self._job.plan,
                mechanism,
                self._roster.roster,
                size,
                suite=self._terms.secagg_suite,
            )
        except RoundAborted:
            return False
        return params.min_included <= cap

    def _able(self) -> frozenset[int]:
        return self._consenting() - self._exhausted - self._declined

    def overhear(self, event: Event) -> None:
        """Follow who trains, comes and goes, anyone who takes the events."""
        client, epoch = self._clients.get(event.node), self._epoch
        if client is None:
            return
        if isinstance(event, Said):
            self._said(client, event.message)
        if epoch is not None:
            epoch.note(event)

    def _said(self, client: int, message: fleet_pb2.Up) -> None:
        job, epoch = self._terms.job, self._epoch
        trained = message.trained
        if message.HasField("trained") and trained.job == job:
            self._crowd.done(client, round=trained.round, version=trained.version)
        back = epoch is None or not epoch.there(client)
        if not message.HasField("consent") or not back or client in self._crowd.asked:
            return
        training, found = message.consent.training, None
        if training.job == job:
            closes = self._facilities.fleet.clock() + self._facilities.settings.training
            found = Training(round=training.round, version=training.version, closes=closes)
        coordinator = self._job.coordinator
        self._crowd.returned(
            client,
            found,
            done=training.done,
            versions=self._versions,
            rounds=coordinator.reserved,
        )

    @property
    def _versions(self) -> int:
        """Of the model, so far."""
        return len(self._job.ledger.committed)

    # -- a buffer ---------------------------------------------------------------------------------

    async def run(self) -> int:
        """The next buffer; how many inputs were summed, 0 where it gave no model.

        Raises:
            BudgetExceeded: nobody was asked.
            TrainingError: the model diverged.
            JobFailed: too few witnesses cosigned the buffer's reservation; nobody was asked.
        """
        summed = await self._run()
        await self._witnesses.advance()
        return summed

    async def _run(self) -> int:
        coordinator, randomness = self._job.coordinator, self._facilities.randomness
        number = coordinator.reserved + 1
        self._exhausted = coordinator.exhausted  # changes when a buffer is over, and not before
        open_ = await to_its_end(coordinator.begin_round, randomness.seeds(number))
        self._facilities.state.update_job(
            self._id, round=number, stage="reserved", spent=self._job.epsilon
        )
        buffer = Buffer(open=open_, version=self._versions)
        try:
            await self._witnesses.require_reservation()
            epoch = self._epoch or await self._open_epoch(open_)
            await epoch.fill(buffer)
            await epoch.settle(buffer)
            result = epoch.secure.result
        except asyncio.CancelledError:
            before = not buffer.certified
            self._abort(buffer, "the coordinator was shut down", before_unmask=before)
            raise
        except WitnessesMissing as missing:
            self._abort(buffer, str(missing), before_unmask=True)
            raise JobFailed(str(missing)) from None
        except RoundAborted as abort:
            self._abort(buffer, str(abort), before_unmask=abort.nothing_summed)
            _log.warning("job %s: buffer %d gave no model: %s", self._id, number, abort)
            return 0
        return await self._finish(epoch, buffer, result)

    def close(self) -> None:
        """The job takes no further buffer: devices erase the keys of its epoch."""
        if self._epoch is not None:
            self._dismiss(self._job.coordinator.reserved, committed=False, over=True)

    async def _open_epoch(self, open_: OpenRound) -> DeployedEpoch:
        """Invite those that train, and others that contributed least, at random among equals.

        Raises:
            RoundAborted: secure aggregation cannot serve so few.
        """
        cohort = self._invited(open_)
        self._crowd.keep_only(cohort)
        secure = await to_its_end(self._secure, open_, cohort)
        settings = self._facilities.settings
        epoch = DeployedEpoch(
            secure,
            self._crowd,
            Surroundings(
                members=self._roster.nodes,
                fleet=self._facilities.fleet,
                deadlines=Deadlines(
                    stage=settings.stage, training=settings.training, reconnect=settings.reconnect
                ),
                most_stale=self._buffering.max_staleness,
                able=self._able,
                elsewhere=self._elsewhere,
                entered=lambda stage: self._enter(stage),
                refused=self._note_refusal,
            ),
        )
        epoch.invite_all(self._versions)
        self._epoch = epoch
        return epoch

    def _invited(self, open_: OpenRound) -> tuple[int, ...]:
        there = sorted(self._able() & self._listening())
        busy = [client for client in there if self._crowd.at_work(client)]
        free = [client for client in there if not self._crowd.at_work(client)]
        counts = np.zeros(self._job.plan.population, dtype=np.int64)
        for client, times in self._job.ledger.participations.items():
            counts[client] = times
        entropy = self._facilities.randomness.seeds(open_.number)
        order = least_first(counts, np.array(free, dtype=np.int64), entropy)
        room = max(self._terms.largest_cohort - len(busy), 0)
        return tuple(sorted([*busy, *order[:room].tolist()]))

    def _secure(self, open_: OpenRound, cohort: tuple[int, ...]) -> SecureEpoch:
        plan, mechanism = self._job.plan, self._job.coordinator.mechanism
        if len(cohort) < max(2, plan.cap):
            raise RoundAborted(
                f"fewer agents than a buffer takes are there: {len(cohort)} of {plan.cap}",
                nothing_summed=True,
            )
        roster = self._roster.roster
        suite = self._terms.secagg_suite
        params = params_for(plan, mechanism, roster, len(cohort), suite=suite)
        context = open_.assignment.epoch_context(self._buffering.epoch)
        committee = draw_committee(cohort, params.committee, context, roster.hash)
        nodes = {self._roster.nodes[id]: id for id in committee}
        taken = self._facilities.prekeys.take(nodes, suite=suite)
        return SecureEpoch(
            assignment=open_.assignment,
            cohort=cohort,
            mechanism=mechanism,
            roster=roster,
            params=params,
            prekeys={nodes[node]: prekey for node, prekey in taken.items()},
            size=plan.cap,
            buffers=self._buffering.epoch,
        )

    # -- how it ends ------------------------------------------------------------------------------

    async def _finish(self, epoch: DeployedEpoch, buffer: Buffer, result: SumResult) -> int:
        coordinator, number = self._job.coordinator, buffer.number
        over = epoch.secure.left <= 0
        self._exclude(number, result.blamed)
        coordinator.admit(sorted(buffer.staleness))
        try:
            await to_its_end(
                coordinator.finish_round,
                result.total,
                result.included,
                nonces=buffer.nonces,
                diagnostics=_diagnostics(buffer, result),
            )
        except SumRefused as refused:
            _log.warning("job %s: %s", self._id, refused)
            self._facilities.metrics.round_aborted()
            self._dismiss(number, committed=False, over=True)
            return 0
        self._facilities.metrics.round_committed(buffer.seconds)
        self._dismiss(number, committed=True, over=over, included=frozenset(result.included))
        return len(result.included)

    def _abort(self, buffer: Buffer, reason: str, *, before_unmask: bool) -> None:
        coordinator = self._job.coordinator
        coordinator.admit(sorted(buffer.staleness))
        coordinator.abort_round(reason, before_unmask=before_unmask)
        self._facilities.metrics.round_aborted()
        if self._epoch is not None:
            self._exclude(buffer.number, self._epoch.secure.blamed)
        self._dismiss(buffer.number, committed=False, over=True)

    def _dismiss(
        self,
        number: int,
        *,
        committed: bool,
        over: bool,
        included: frozenset[int] = frozenset(),
    ) -> None:
        """Tell everybody how the buffer ended, and each how many sealing keys it has left. Only who
        is in the sum is told the ledger's head, which it then countersigns."""
        epoch, head = self._epoch, bytes.fromhex(self._job.ledger.head)
        if epoch is None:
            return
        present = epoch.present
        held = self._facilities.prekeys.counts(list(present), suite=self._terms.secagg_suite)
        for node, client in present.items():
            outcome = fleet_pb2.Outcome(
                job=self._terms.job,
                round=number,
                committed=committed,
                ledger_head=head if client in included else b"",
                prekeys=held[node],
                version=self._versions,
                over=over,
            )
            self._news.tell(client, outcome)
        if over:
            epoch.end()
            self._epoch = None

    def _enter(self, stage: str) -> None:
        self._facilities.state.update_job(self._id, stage=stage)

    def _exclude(self, number: int, blamed: Mapping[int, str]) -> None:
        """Leave who was caught cheating out of the rest of the job."""
        for client, why in blamed.items():
            self._crowd.drop(client)
            self._blamed(number, client, why)

    def _note_refusal(self, number: int, client: int, cause: Cause, reason: str) -> None:
        if cause in _SPENT:
            self._declined.add(client)
        self._refused(number, self._roster.nodes[client], cause, reason)


def _diagnostics(buffer: Buffer, result: SumResult) -> dict[str, Any]:
    """For ``private.jsonl``."""
    stale = list(buffer.staleness.values())
    lost = {"upload": buffer.lost} if buffer.lost else {}
    return {
        "dropped": {**lost, **{stage: len(ids) for stage, ids in result.dropped.items()}},
        "seconds": buffer.seconds,
        "blamed": {str(client): why for client, why in result.blamed.items()},
        "left_out": {str(client): why for client, why in result.left_out.items()},
        "mean_staleness": sum(stale) / len(stale),
        "most_staleness": max(stale),
        "too_stale": buffer.too_stale,
    }
