"""The coordinator of a schedule: the product's `Job`, `Coordinator` and `SecureRound`."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Mapping

from fedsys.config import Config
from fedsys.durable import write_atomically
from fedsys.errors import BudgetExceeded, LedgerClosed
from fedsys.privacy import Signer
from fedsys.run_folder import RunFolder
from fedsys.wire import fleet_pb2
from fedsys.wire.roster import RosterStatement
from fedsys.wire.terms import Terms
from secure_agg import SecureAggError, draw_committee
from secure_agg.messages import kind_of
from server.checkpoint import sha256_of_weights
from server.coordinator import OpenRound, SumRefused
from server.job import Job, JobFacts
from server.job_opening import JobSpec, restore_job, start_job
from server.rounds import RoundAborted, SecureRound, params_for
from simulations.deterministic.agent import CODE
from simulations.deterministic.dice import Dice
from simulations.deterministic.invariants import Witness, recorded
from simulations.deterministic.job import JobDescription
from simulations.deterministic.storage import Disk

__all__ = ["CoordinatorParty"]

RETRY = 1.5
DEADLINE = 6.0
PATIENCE = 3
"""Times that it offers the job before it begins a round without those who have not answered."""

_FACTS = JobFacts(
    population_known="simulated: exact", roster="simulated", randomness="a schedule's dice"
)

Send = Callable[[int, tuple[fleet_pb2.Down, ...]], None]
Later = Callable[[float, Callable[[], None]], None]


class CoordinatorParty:
    """The coordinator over its restarts; `boot` is what its process does when it starts.

    Args:
        job: to be run.
        disk: keeps the run's folder and the signing key.
        roster: the population; client k is its k-th node.
        dice: for its secrets.
        witness: sees what it does.
        send: to an agent: messages that arrive together.
        later: let something happen in this process after so many seconds, if it still lives.
        ended: called once the job is over.
    """

    def __init__(
        self,
        *,
        job: JobDescription,
        disk: Disk,
        roster: RosterStatement,
        dice: Dice,
        witness: Witness,
        send: Send,
        later: Later,
        ended: Callable[[str], None],
    ) -> None:
        self.disk = disk
        self.folder = RunFolder(disk.root / "job")
        self._description = job
        self._roster = roster
        self._dice = dice
        self._witness = witness
        self._send = send
        self._later = later
        self._ended = ended
        self._job: Job | None = None
        self._terms: Terms | None = None
        self._consenting: set[int] = set()
        self._prekeys: dict[int, list[bytes]] = {}
        self._patience = 0
        self._open: OpenRound | None = None
        self._sum: SecureRound | None = None
        self._outbox: Mapping[int, bytes] = {}
        self._stage = 0

    def boot(self) -> None:
        """A fresh process: take the job up where the disk has it, or start it."""
        self._job = self._terms = self._open = self._sum = None
        self._outbox, self._consenting, self._prekeys, self._patience = {}, set(), {}, PATIENCE
        signer = Signer.load_or_create(self.disk.root / "home", entropy=self._dice.bytes)
        description, folder = self._description, self.folder
        if not folder.begun:
            shutil.rmtree(folder.path, ignore_errors=True)
            RunFolder.create(folder.path)
            self._job = start_job(folder, self._spec(description.config, signer))
        else:
            self._witness.survives(recorded(folder.ledger, folder.private))
            try:
                self._job = restore_job(folder, self._spec(folder.read_config(), signer))
            except LedgerClosed as closed:
                self._ended(closed.reason)
                return
            self._witness.restarted(self._job.coordinator.weights, self._job.ledger.view)
        self._terms = self._agree(self._job)
        self._later(0.0, self._next_round)

    def _spec(self, config: Config, signer: Signer) -> JobSpec:
        return JobSpec(
            config=config,
            plan=self._description.plan,
            weights=self._description.weights,
            facts=_FACTS,
            signer=signer,
            entropy=self._dice.bytes,
        )

    def _agree(self, job: Job) -> Terms:
        """The terms that agents are asked to agree to, and that every round names."""
        coordinator, config = job.coordinator, job.config
        terms = Terms(
            job=coordinator.terms.job,
            name=config.job.name,
            task=config.task.name,
            options=config.task.options,
            task_sha256=CODE,
            local=coordinator.terms.local,
            path="loop",
            dimension=len(coordinator.weights),
            example_clip=1.0,
            plan=job.plan,
            seed=coordinator.terms.seed,
            roster_version=self._roster.version,
            roster_hash=self._roster.hash.hex(),
        )
        coordinator.terms = dataclasses.replace(coordinator.terms, agreed=terms.digest)
        return terms

    # -- what agents say ---------------------------------------------------------------------------

    def take(self, agent: int, message: fleet_pb2.Up) -> str:
        """A message arrives; says what became of it, for the trace."""
        if self._terms is None:
            return "of a job that is over"
        kind = message.WhichOneof("content")
        if kind == "hello":
            if message.hello.prekeys:  # in place of all that it lost
                self._prekeys[agent] = list(message.hello.prekeys)
            self._send(agent, (self._offer(agent), *self._invited(agent)))
        elif kind == "consent":
            if (message.consent.job, message.consent.terms) == (
                self._terms.job,
                self._terms.digest,
            ):
                self._consenting.add(agent)
            self._keep(agent, message.consent.prekeys)
        elif kind == "prekeys":
            self._keep(agent, message.prekeys.prekeys)
        elif kind == "countersignature":
            self._keep(agent, message.countersignature.prekeys)
        elif kind == "answer":
            return self._answer(agent, message.answer)
        elif kind == "refusal":
            return f"refused: {message.refusal.reason}"
        return "noted"

    def _keep(self, agent: int, prekeys: object) -> None:
        held = self._prekeys.setdefault(agent, [])
        held += [key for key in prekeys if key not in held]  # type: ignore[attr-defined]

    def _answer(self, agent: int, answer: fleet_pb2.Answer) -> str:
        open_, sum_ = self._open, self._sum
        if open_ is None or sum_ is None:
            return "of a round that is over"
        said = "taken"
        try:
            sum_.receive(agent, answer.message)
        except SecureAggError as error:
            said = f"{type(error).__name__}: {error}"
        else:
            self._witness.took(open_.number, agent, kind_of(answer.message))
        for blamed, why in sum_.blamed.items():
            self._witness.blames(blamed, why)
        if not sum_.waiting & self._consenting:
            self._close_stage(self._stage)
        return said

    # -- rounds ------------------------------------------------------------------------------------

    def _offer(self, agent: int) -> fleet_pb2.Down:
        terms = b"" if self._terms is None else self._terms.encoded
        held = len(self._prekeys.get(agent, []))
        return fleet_pb2.Down(offer=fleet_pb2.Offer(terms=terms, prekeys=held))

    def _next_round(self) -> None:
        job = self._job
        if job is None:
            return
        coordinator = job.coordinator
        if coordinator.reserved >= job.plan.rounds:
            self._end("completed")
            return
        missing = [k for k in range(job.plan.population) if k not in self._consenting]
        if missing and self._patience > 0:
            self._patience -= 1
            for agent in missing:
                self._send(agent, (self._offer(agent),))
            self._later(RETRY, self._next_round)
            return
        self._patience = PATIENCE
        try:
            open_ = self._open = coordinator.begin_round(self._dice.bytes)
        except BudgetExceeded:
            self._end("budget-exhausted")
            return
        self._witness.drew(open_.number)
        try:
            self._sum = self._secure(job, open_)
            messages = self._sum.begin()
        except RoundAborted as abort:
            self._abort(abort)
            return
        self._witness.opened(open_.number, self._sum.params)
        self._open_stage(messages)

    def _secure(self, job: Job, open_: OpenRound) -> SecureRound:
        mechanism, roster = job.coordinator.mechanism, self._roster.roster
        params = params_for(job.plan, mechanism, roster, len(open_.cohort))
        committee = draw_committee(
            open_.cohort, params.committee, open_.assignment.context, roster.hash
        )
        ready = [k for k in committee if k in self._consenting and self._prekeys.get(k)]
        return SecureRound(
            open=open_,
            mechanism=mechanism,
            roster=roster,
            params=params,
            prekeys={agent: self._prekey(agent) for agent in ready},
        )

    def _prekey(self, agent: int) -> bytes:
        """An agent's oldest sealing key, which is never named again."""
        return self._prekeys[agent].pop(0)

    def _open_stage(self, messages: Mapping[int, bytes]) -> None:
        self._stage += 1
        stage, sum_ = self._stage, self._sum
        self._outbox = messages
        for agent in sorted(messages):
            if sum_ is not None and sum_.stage != "upload" and (asked := self._asked(agent)):
                self._send(agent, (fleet_pb2.Down(stage=asked),))
        if sum_ is not None and sum_.stage == "upload":
            self._invite(messages)
        self._later(RETRY, lambda: self._remind(stage))
        self._later(DEADLINE, lambda: self._close_stage(stage))

    def _remind(self, stage: int) -> None:
        """Send again what is not answered yet, as to a process that may have been restarted."""
        if stage == self._stage and self._sum is not None:
            self._invite(self._sum.waiting)
            self._later(RETRY, lambda: self._remind(stage))

    def _invite(self, agents: Iterable[int]) -> None:
        for agent in sorted(agents):
            if messages := self._invited(agent):
                self._send(agent, messages)

    def _invited(self, agent: int) -> tuple[fleet_pb2.Down, ...]:
        """What an agent needs to answer the current stage, if an answer is awaited from it."""
        stage, open_, sum_ = self._asked(agent), self._open, self._sum
        if stage is None or open_ is None or sum_ is None:
            return ()
        assignment = open_.assignment
        model = fleet_pb2.Model(
            job=assignment.job, round=open_.number, weights=assignment.weights_bytes
        )
        invitation = fleet_pb2.Invitation(
            job=assignment.job,
            round=open_.number,
            assignment=assignment.head,
            params=sum_.params.encode(),
            stage=stage,
        )
        return fleet_pb2.Down(model=model), fleet_pb2.Down(invitation=invitation)

    def _asked(self, agent: int) -> fleet_pb2.Stage | None:
        """The message of the current stage to an agent, about to leave."""
        open_, sum_ = self._open, self._sum
        if open_ is None or sum_ is None or agent not in sum_.waiting & self._consenting:
            return None
        assignment, message = open_.assignment, self._outbox[agent]
        ledger = self.disk.durable(self.folder.ledger)
        self._witness.asks(assignment, open_.cohort, agent, message, ledger)
        return fleet_pb2.Stage(
            job=assignment.job, round=open_.number, step=self._stage, message=message
        )

    def _close_stage(self, stage: int) -> None:
        if stage != self._stage or self._sum is None:
            return
        try:
            messages = self._sum.close_stage()
        except RoundAborted as abort:
            self._abort(abort)
            return
        if messages:
            self._open_stage(messages)
        else:
            self._complete()

    def _complete(self) -> None:
        job, open_, sum_ = self._job, self._open, self._sum
        if job is None or open_ is None or sum_ is None:
            return
        self._stage += 1
        result = sum_.result
        self._witness.sums(open_.number, result)
        committed = True
        try:
            job.coordinator.finish_round(
                result.total,
                result.included,
                noise_entropy=self._dice.bytes,
                diagnostics={"dropped": {name: len(ids) for name, ids in result.dropped.items()}},
            )
        except SumRefused:  # the round is recorded as aborted
            committed = False
        self._over(committed=committed)

    def _abort(self, abort: RoundAborted) -> None:
        job, open_ = self._job, self._open
        if job is not None and open_ is not None:
            self._stage += 1
            self._witness.gives_up(open_.number, str(abort))
            job.coordinator.abort_round(str(abort), before_unmask=abort.nothing_summed)
            self._over(committed=False)

    def _over(self, *, committed: bool) -> None:
        job, open_ = self._job, self._open
        self._open = self._sum = None
        self._outbox = {}
        if job is not None and open_ is not None:
            for agent in open_.cohort:
                outcome = fleet_pb2.Outcome(
                    job=open_.assignment.job,
                    round=open_.number,
                    committed=committed,
                    ledger_head=bytes.fromhex(job.ledger.head),
                    prekeys=len(self._prekeys.get(agent, [])),
                )
                self._send(agent, (fleet_pb2.Down(outcome=outcome),))
        self._later(0.1, self._next_round)

    def _end(self, status: str) -> None:
        job = self._job
        if job is None:
            return
        weights = job.coordinator.weights
        write_atomically(self.folder.model, weights.tobytes())
        job.close(status, model_sha256=sha256_of_weights(weights))
        self._job = self._terms = None
        self._ended(status)
