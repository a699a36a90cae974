"""One round of a deployed job from its reservation to its commit or abort."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedsys.errors import Cause
from fedsys.privacy import Entropy
from secure_agg import draw_committee
from server.coordinator import OpenRound, SumRefused
from server.deployed.conversation import Deadlines, DeployedRound
from server.deployed.disk_work import to_its_end
from server.deployed.fleet import Devices, Event
from server.deployed.ledger_news import LedgerNews
from server.deployed.preparation import JobFailed, PreparedJob
from server.deployed.witnesses import JobWitnesses, WitnessesMissing
from server.home.folder import Settings
from server.home.prekeys import Prekeys
from server.home.state import State
from server.metrics import Metrics
from server.rounds import RoundAborted, SecureRound, params_for

__all__ = ["Facilities", "Randomness", "RoundCycle"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Randomness:
    """Where the coordinator's secrets come from; anything but the default is for tests.

    Attributes:
        names: of jobs' names, and of the salts of their ledgers.
        seeds: of a round's seed, from which its noise and the next cohort are drawn.
    """

    names: Entropy = os.urandom
    seeds: Callable[[int], Entropy] = lambda _round: os.urandom


@dataclass(frozen=True, kw_only=True, eq=False)
class Facilities:
    """What every job of a coordinator runs on.

    Attributes:
        state: the database; told of each stage before its messages are sent.
        fleet: the sessions.
        settings: how long to wait for whom.
        metrics: counted into.
        randomness: for tests.
        prekeys: the devices' sealing keys, one taken for each place on a round's committee.
        now: seconds since 1970, for people.
    """

    state: State
    fleet: Devices
    settings: Settings
    metrics: Metrics
    randomness: Randomness
    prekeys: Prekeys
    now: Callable[[], float]


class RoundCycle:
    """Runs a job's rounds, one at a time.

    Args:
        prepared: the job.
        facilities: what it runs on.
        consenting: clients that agreed, as of now; no others are invited.
        elsewhere: takes every event that is no round's business.
        witnesses: of the job's ledger.
        news: of the job's ledger, for its devices.
        refused: takes round, node, cause and reason of each refusal.
        blamed: takes round, client and reason of each member that was caught cheating, durably.
    """

    def __init__(
        self,
        prepared: PreparedJob,
        facilities: Facilities,
        *,
        consenting: Callable[[], frozenset[int]],
        elsewhere: Callable[[Event], None],
        witnesses: JobWitnesses,
        news: LedgerNews,
        refused: Callable[[int, int, Cause, str], None],
        blamed: Callable[[int, int, str], None],
    ) -> None:
        self._id = prepared.id
        self._job = prepared.job
        self._suite = prepared.terms.secagg_suite
        self._roster = prepared.roster
        self._state = facilities.state
        self._fleet = facilities.fleet
        self._settings = facilities.settings
        self._metrics = facilities.metrics
        self._randomness = facilities.randomness
        self._consenting = consenting
        self._elsewhere = elsewhere
        self._witnesses = witnesses
        self._news = news
        self._refused = refused
        self._blamed = blamed
        self._prekeys = facilities.prekeys

    @property
    def open(self) -> bool:
        """Whether who takes part in the next round is known already; it never is."""
        return False

    def require_clients(self) -> None:
        """Cohorts are drawn from everybody, so that there is nothing to require."""

    def serves(self, clients: frozenset[int]) -> bool:
        """Whether a typical cohort would have its survivors if it were of these clients."""
        plan = self._job.plan
        share = len(clients) / plan.population
        needed = max(2, plan.min_survivors)
        tolerated = 1 - self._job.config.aggregation.dropout
        return share * plan.expected_cohort >= needed - 1e-9 and share >= tolerated - 1e-9

    def overhear(self, event: Event) -> None:
        """What happens between rounds is nobody's business."""

    def close(self) -> None:
        """Every round ends by itself."""

    async def run(self) -> int:
        """The next round; how many inputs were summed, 0 where it gave no model.

        Raises:
            BudgetExceeded: nobody was asked.
            TrainingError: the model diverged.
            JobFailed: too few witnesses cosigned the round's reservation; nobody was asked.
        """
        summed = await self._run()
        await self._witnesses.advance()
        return summed

    async def _run(self) -> int:
        coordinator = self._job.coordinator
        number = coordinator.reserved + 1
        open_ = await to_its_end(coordinator.begin_round, self._randomness.seeds(number))
        self._state.update_job(self._id, round=number, stage="reserved", spent=self._job.epsilon)
        round_: DeployedRound | None = None
        consenting = self._consenting()
        try:
            open_ = await self._witnessed(open_)
            secure = await to_its_end(self._secure, open_, consenting)
            round_ = self._conversation(open_, secure, consenting)
            nodes = [self._roster.nodes[client] for client in open_.cohort]
            self._fleet.allow(secure.largest_answer, nodes)
            try:
                await round_.run()
            finally:
                self._fleet.allow(0, ())
            result = secure.result
        except asyncio.CancelledError:
            before = round_ is None or secure.nothing_summed
            coordinator.abort_round("the coordinator was shut down", before_unmask=before)
            raise
        except WitnessesMissing as missing:
            coordinator.abort_round(str(missing), before_unmask=True)
            raise JobFailed(str(missing)) from None
        except RoundAborted as abort:
            coordinator.abort_round(str(abort), before_unmask=abort.nothing_summed)
            _log.warning("job %s: round %d gave no model: %s", self._id, number, abort)
            self._metrics.round_aborted()
            if round_ is not None:
                self._exclude(number, secure.blamed)
                self._dismiss(round_, number, committed=False)
            return 0
        self._exclude(number, result.blamed)
        try:
            await to_its_end(
                coordinator.finish_round,
                result.total,
                result.included,
                nonces=round_.nonces,
                diagnostics={
                    "dropped": {stage: len(ids) for stage, ids in result.dropped.items()},
                    "seconds": round_.report.seconds,
                    "blamed": {str(client): why for client, why in result.blamed.items()},
                    "left_out": {str(client): why for client, why in result.left_out.items()},
                },
            )
        except SumRefused as refused:
            _log.warning("job %s: %s", self._id, refused)
            self._metrics.round_aborted()
            self._dismiss(round_, number, committed=False)
            return 0
        self._metrics.round_committed(round_.report.seconds)
        self._dismiss(round_, number, committed=True)
        return len(result.included)

    async def _witnessed(self, open_: OpenRound) -> OpenRound:
        """The round with what shows its devices that its reservation was witnessed.

        Raises:
            WitnessesMissing: too few cosigned it in time.
        """
        await self._witnesses.require_reservation()
        ledger = self._job.ledger
        proof = self._witnesses.proof_of(len(ledger.tree) - 1)
        if proof is None:
            return open_
        return dataclasses.replace(open_, reservation=ledger.newest, proof=proof.encode())

    def _secure(self, open_: OpenRound, consenting: frozenset[int]) -> SecureRound:
        mechanism = self._job.coordinator.mechanism
        if len(open_.cohort) > mechanism.event.cap:
            raise RoundAborted("the cohort exceeds the cap", nothing_summed=True)
        if len(open_.cohort) < max(2, mechanism.event.min_survivors):
            raise RoundAborted("the cohort is below min_survivors", nothing_summed=True)
        roster = self._roster.roster
        params = params_for(self._job.plan, mechanism, roster, len(open_.cohort), suite=self._suite)
        committee = draw_committee(
            open_.cohort, params.committee, open_.assignment.context, roster.hash
        )
        nodes = {self._roster.nodes[id]: id for id in committee if id in consenting}
        taken = self._prekeys.take(nodes, suite=self._suite)
        return SecureRound(
            open=open_,
            mechanism=mechanism,
            roster=roster,
            params=params,
            prekeys={nodes[node]: prekey for node, prekey in taken.items()},
        )

    def _conversation(
        self, open_: OpenRound, secure: SecureRound, consenting: frozenset[int]
    ) -> DeployedRound:
        settings = self._settings
        return DeployedRound(
            open=open_,
            secure=secure,
            members=self._roster.nodes,
            consenting=consenting,
            fleet=self._fleet,
            deadlines=Deadlines(
                stage=settings.stage, training=settings.training, reconnect=settings.reconnect
            ),
            elsewhere=self._elsewhere,
            entered=self._enter,
            news=self._news,
        )

    def _enter(self, stage: str) -> None:
        self._state.update_job(self._id, stage=stage)

    def _exclude(self, number: int, blamed: Mapping[int, str]) -> None:
        """Leave who was caught cheating out of every later round of the job."""
        for client, why in blamed.items():
            self._blamed(number, client, why)

    def _dismiss(self, round_: DeployedRound, number: int, *, committed: bool) -> None:
        for client, (cause, reason) in round_.report.refusals.items():
            self._refused(number, self._roster.nodes[client], cause, reason)
        head = bytes.fromhex(self._job.ledger.head)
        round_.dismiss(committed=committed, ledger_head=head)
