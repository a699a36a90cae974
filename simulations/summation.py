"""How a virtual cohort's updates become one sum: three protocols behind one call.

``secure`` runs every virtual client through the real protocol: sealing keys, one encrypted upload
each, the committee's endorsements and answers, dropouts. ``ideal`` adds the same integers without
encryption: equal to ``secure`` to the bit where each client draws its own noise from a seed, and in
distribution where one source serves all of them or one draw the sum. ``float`` adds clipped updates
in floating point and rounds once; it is not a release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.agent import Agent
from fedsys.config import Aggregation
from fedsys.errors import TrainingError
from fedsys.privacy import Encoded, Entropy, Mechanism, PrivacyPlan, ring_dtype
from secure_agg import SecureAggError, Shared, draw_committee
from secure_agg.committee import SUITE_NAMES
from server.coordinator import OpenRound
from server.rounds import RoundAborted, SecureRound, params_for
from simulations.engine.base import Chunk, Engine
from simulations.engine.chunk import RoundWork, in_ring
from simulations.engine.layout import LARGE, cores
from simulations.faults import STAGES, UPLOAD, FaultPlan
from simulations.population import Population
from simulations.randomness import Randomness

__all__ = ["Cohort", "Summed", "plain_sum", "report_unusable", "secure_sum", "summation"]


@dataclass(kw_only=True)
class Summed:
    """A round's sum, and counts of its clients.

    Attributes:
        total: (length,) integers mod 2^b.
        survivors: Increasing ids of the clients in the sum.
        dropped: Number of clients that vanished, by stage.
        trained: Clients that trained.
        clipped: Those of them whose update exceeded the clipping norm.
        unusable: Those of them whose update was not finite and counted as zero.
        refusals: Reason for each client that refused to go on, or was refused.
        noise: (length,) the coordinator's noise for this sum, where it was drawn already.
    """

    total: NDArray[Any]
    survivors: tuple[int, ...]
    dropped: dict[str, int] = field(default_factory=dict)
    trained: int = 0
    clipped: int = 0
    unusable: int = 0
    refusals: dict[int, str] = field(default_factory=dict)
    noise: NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Everything that a summation needs of its round.

    Attributes:
        round: The round, whose cost is reserved.
        plan: The job's privacy plan.
        mechanism: The round's mechanism.
        aggregation: The configuration's section.
        population: The virtual clients.
        engine: Trains the clients.
        chunk: Largest number of clients trained at once.
        faults: Decides which clients vanish when.
        randomness: Source of keys.
        top_up: Draws the coordinator's noise for the sum of these clients, once.
        now: Simulated seconds since the job began.
        exhausted: Clients that have contributed as often as they may. Like devices, they send
            zeros and their noise share, so that no round is aborted for lack of them.
        states: File in which clients' own tensors are kept; empty keeps none.
        weight_cap: Number of examples at which a client's weight is 1; 0 where clients count alike.
    """

    round: OpenRound
    plan: PrivacyPlan
    mechanism: Mechanism
    aggregation: Aggregation
    population: Population
    engine: Engine
    chunk: int
    faults: FaultPlan
    randomness: Randomness
    top_up: Callable[[Sequence[int]], NDArray[np.int64]]
    now: float = 0.0
    exhausted: frozenset[int] = frozenset()
    states: str = ""
    weight_cap: int = 0

    @property
    def work(self) -> RoundWork:
        """What all chunks of the round share."""
        assignment = self.round.assignment
        return RoundWork(
            number=self.round.number,
            weights=assignment.weights,
            seed=assignment.digest if self.mechanism.rotates else b"",
            mechanism=dict(assignment.mechanism),
            protocol=self.aggregation.protocol,
            clipping=assignment.clipping,
            exhausted=self.exhausted,
            rounds=self.plan.rounds,
            shared=assignment.shared,
            states=self.states,
            weight_cap=self.weight_cap,
        )

    def chunks(self, clients: Sequence[int]) -> list[Chunk]:
        """The clients in chunks, those with most examples first."""
        return self.population.chunks(clients, self.chunk, processes=self.engine.processes)

    def privatized(self, clients: Sequence[int]) -> Iterator[tuple[Chunk, Encoded]]:
        """Train and privatize clients, chunk by chunk."""
        return self.engine.vectors(self.work, self.chunks(clients))

    def lost(self, client: int) -> str | None:
        """The stage at which the fault plan has this client vanish, or None."""
        return self.faults.lost(
            round=self.round.number, client=client, now=self.now, examples=self.work_of(client)
        )

    def losses(self) -> dict[int, str | None]:
        """The same for each of the round's clients."""
        if self.faults == FaultPlan(seed=self.faults.seed):  # nothing goes wrong
            return dict.fromkeys(self.round.cohort)
        return {client: self.lost(client) for client in self.round.cohort}

    def work_of(self, client: int) -> int:
        """Examples a client trains on in a round, all epochs; 0 where time is not simulated."""
        if not self.faults.seconds_per_example or client in self.exhausted:
            return 0
        epochs = int(self.round.assignment.local["epochs"])
        return epochs * len(self.population.partition.indices_of(client))


def summation(cohort: Cohort) -> Summed:
    """The round's sum, by the protocol that the configuration names.

    Raises:
        RoundAborted: There is no sum.
        TrainingError: A client could not train; names the client, the cause and the remedy.
    """
    if cohort.aggregation.protocol == "secure":
        return secure_sum(cohort)
    return plain_sum(cohort)


def report_unusable(summed: Summed, what: str, folder: Path, tell: Callable[[str], object]) -> None:
    """Report how many updates were not finite, only on the console of the simulation: the number
    depends on the clients' data, so no ledger has it.

    Args:
        summed: of a round that is finished and settled.
        what: the round, for people.
        folder: of the run, which can go on.
        tell: takes the line.

    Raises:
        TrainingError: nobody's update was finite.
    """
    if not summed.unusable:
        return
    if summed.unusable < summed.trained:
        tell(
            f"{what}: updates of {summed.unusable} of {summed.trained} clients were not finite and "
            f"counted as zero; check their data and local.learning_rate"
        )
        return
    raise TrainingError(
        f"{what}: no update was finite (clients that trained: {summed.trained}); check their data, "
        f"then go on with `fedsys simulate --resume {folder}`, or start again with a lower "
        f"local.learning_rate"
    )


def plain_sum(cohort: Cohort) -> Summed:
    """The sum, without encryption, over the clients that live to upload."""
    lost = cohort.losses()
    alive = tuple(client for client, at in lost.items() if at != UPLOAD)
    stages = [at for at in lost.values() if at is not None]
    if not alive:
        raise RoundAborted("nobody was left to send an input", nothing_summed=True)
    if len(alive) < cohort.mechanism.event.min_survivors:
        raise RoundAborted("fewer clients than min_survivors were left", nothing_summed=True)
    mechanism, source, drawing = cohort.mechanism, _at_once(cohort), None
    work = replace(cohort.work, shares=source is None)
    with ThreadPoolExecutor(1, thread_name_prefix="noise") as thread:
        if mechanism.adds_shares:
            drawing = thread.submit(_noises, cohort, alive, source)
        flat, tally = cohort.engine.total(work, cohort.chunks(alive), mechanism.length)
    shares, noise = (None, None) if drawing is None else drawing.result()
    if shares is not None:
        flat += shares
    return Summed(
        total=in_ring(flat, mechanism, cohort.aggregation.protocol, invited=len(lost)),
        survivors=alive,
        dropped={stage: stages.count(stage) for stage in dict.fromkeys(stages)},
        trained=tally.trained,
        clipped=tally.clipped,
        unusable=tally.unusable,
        noise=noise,
    )


def _at_once(cohort: Cohort) -> Entropy | None:
    """The one source of all clients' noise shares, where the sum of the shares is drawn at once;
    None where the chunks add them. No share of a single source is anybody's, and the sum's law is
    that of single draws (``NOISE.md``, "Many terms at once")."""
    mechanism = cohort.mechanism
    if not (mechanism.adds_shares and mechanism.sums_integers):
        return None
    return cohort.randomness.shared_noise()


def _noises(
    cohort: Cohort, alive: Sequence[int], source: Entropy | None
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    """What is drawn while clients train: the sum of their noise shares where it is drawn at once,
    or None, and the coordinator's noise; each (length,)."""
    mechanism, shares = cohort.mechanism, None
    if source is not None:
        shares = np.zeros(mechanism.length, dtype=np.int64)
        mechanism.add_share_sum(shares, len(alive), source)
    return shares, cohort.top_up(alive)


def secure_sum(cohort: Cohort) -> Summed:
    """The same sum by the real protocol, every virtual client an `Agent` of its own.

    An agent exists only from its training to its upload; on the committee, until the sum is opened.
    Large vectors are encrypted in threads, while others of them or the next chunk's clients train.
    """
    open_, roster, shared = cohort.round, cohort.population.roster, Shared()
    suite = SUITE_NAMES[cohort.aggregation.suite]
    params = params_for(cohort.plan, cohort.mechanism, roster, len(open_.cohort), suite=suite)
    drawn = draw_committee(open_.cohort, params.committee, open_.assignment.context, roster.hash)
    committee = {id: _agent(cohort, id, shared) for id in drawn}
    round_ = SecureRound(
        open=open_,
        mechanism=cohort.mechanism,
        roster=roster,
        params=params,
        prekeys={id: agent.sealing.issue(1, suite)[0] for id, agent in committee.items()},
        shared=shared,
    )
    lost = cohort.losses()
    summed = Summed(total=np.zeros(0, dtype=np.uint32), survivors=())
    one_at_a_time = Lock()  # the aggregator and the counts are for one thread

    def answer(agent: Agent, message: bytes) -> None:
        """Deliver one agent's reply, or record why it goes no further."""
        try:
            reply = agent.handle(message)
            with one_at_a_time:
                round_.receive(agent.id, reply)
        except SecureAggError as refusal:
            with one_at_a_time:
                summed.refusals[agent.id] = f"{round_.stage}: {refusal}"
                committee.pop(agent.id, None)

    messages: Mapping[int, bytes] = round_.begin()
    alive = [id for id in messages if lost[id] != UPLOAD]

    def upload(id: int, vector: NDArray[Any]) -> None:
        agent = committee.get(id) or _agent(cohort, id, shared)
        agent.accept(open_.assignment, params)
        agent.provide(vector)
        answer(agent, messages[id])

    threads = cores() if params.dimension >= LARGE else 1
    with closing(_Dealers(upload, threads=threads)) as dealers:
        for chunk, privatized in cohort.privatized(alive):
            summed.trained += sum(id not in cohort.exhausted for id in chunk)
            summed.clipped += int(privatized.clipped.sum())
            summed.unusable += int(privatized.unusable.sum())
            dealers.wait()  # so that memory holds two chunks' vectors at most
            dealers.deal(chunk, privatized.values)
            if not cohort.engine.keeps_vectors:
                dealers.wait()
        dealers.wait()
    try:
        while messages := round_.close_stage():
            for id in [id for id in committee if lost[id] in (UPLOAD, round_.stage)]:
                del committee[id]
            for id in [id for id in messages if id in committee]:
                answer(committee[id], messages[id])
    except RoundAborted as abort:
        abort.refusals = summed.refusals
        raise
    result = round_.result
    summed.total = result.total.astype(ring_dtype(params.modulus_bits), copy=False)
    summed.survivors = result.included
    summed.dropped = _dropped(result.dropped)
    return summed


class _Dealers:
    """Carries out uploads in threads, or in this one where `threads` is 1.

    The first upload is carried out alone: it computes what the others share.

    Args:
        upload: Encrypts and delivers a client's vector; called with the client and the vector.
        threads: Uploads at once.
    """

    def __init__(self, upload: Callable[[int, NDArray[Any]], None], *, threads: int) -> None:
        self._upload = upload
        self._pool = ThreadPoolExecutor(threads, "dealer") if threads > 1 else None
        self._begun = False
        self._pending: list[Future[None]] = []

    def deal(self, clients: Chunk, vectors: NDArray[Any]) -> None:
        """Begin the uploads of these clients, whose vectors are the rows."""
        for client, vector in zip(clients, vectors, strict=True):
            if self._pool is None or not self._begun:
                self._upload(client, vector)
                self._begun = True
            else:
                self._pending.append(self._pool.submit(self._upload, client, vector))

    def wait(self) -> None:
        """Return once all uploads that were begun are done; raises what one of them raised."""
        while self._pending:
            self._pending.pop(0).result()

    def close(self) -> None:
        """End the threads; what had not begun is given up."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _dropped(lost: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Number of clients that vanished, by the first stage that missed them: later stages miss the
    same clients again."""
    found: dict[str, int] = {}
    known: set[int] = set()
    for stage in STAGES:
        fresh = set(lost.get(stage, ())) - known
        if fresh:
            found[stage] = len(fresh)
        known |= fresh
    return found


def _agent(cohort: Cohort, id: int, shared: Shared) -> Agent:
    return Agent(
        id=id,
        identity=cohort.population.identity(id),
        roster=cohort.population.roster,
        entropy=cohort.randomness.keys(cohort.round.number, id),
        shared=shared,
    )
