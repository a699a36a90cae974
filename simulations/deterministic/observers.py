"""Where the witness stands: the product's own methods, each seen as it is called, none changed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest import mock

from numpy.typing import NDArray

import server.deployed.job_run
import server.deployed.preparation
from client.agent import Agent
from fedsys.errors import Cause
from fedsys.wire.refusals import cause_of
from secure_agg.messages import kind_of
from server.coordinator import Coordinator, OpenRound
from server.deployed.conversation import DeployedRound
from server.deployed.fleet import Event, Said
from server.deployed.job_run import JobRun
from server.deployed.queue import Deployment
from server.home.state import JobRow, State
from server.job import Job
from server.rounds import SecureRound
from simulations.deterministic.invariants import Witness

__all__ = ["Ended", "observed"]

Ended = Callable[[str, str, BaseException | None], None]
"""A job's status, the reason, and what its run raised, where it did not end by itself."""
T = TypeVar("T")


@contextmanager
def observed(
    witness: Witness,
    *,
    dead: Callable[[], bool],
    ended: Ended,
    note: Callable[[str], None],
) -> Iterator[None]:
    """While this lasts, a witness sees what the coordinator and the agents do.

    Args:
        witness: sees it.
        dead: whether the coordinator's process is: what its code does while it is unwound is seen
            by nobody.
        ended: called when a job's end is in the database.
        note: takes a line of the trace.
    """
    seen = _Seen(witness, dead, ended, note)
    with ExitStack() as patched:

        def watch(owner: Any, name: str, watcher: Callable[..., Any]) -> None:
            method = getattr(owner, name)
            wrapped = functools.wraps(method)(functools.partial(watcher, method))
            both = _bound(wrapped) if isinstance(owner, type) else wrapped
            patched.enter_context(mock.patch.object(owner, name, both))

        watch(Agent, "provide", seen.provide)
        watch(Coordinator, "begin_round", seen.begin_round)
        watch(Coordinator, "finish_round", seen.finish_round)
        watch(Coordinator, "abort_round", seen.abort_round)
        watch(DeployedRound, "run", seen.converse)
        watch(DeployedRound, "_exclude", seen.exclude)
        watch(JobRun, "take", seen.take)
        watch(SecureRound, "__init__", seen.secure)
        watch(SecureRound, "receive", seen.receive)
        watch(SecureRound, "close_stage", seen.close_stage)
        watch(State, "blame", seen.blame)
        watch(State, "cancel_job", seen.cancel)
        watch(server.deployed.preparation, "restore_job", seen.restore)
        watch(Deployment, "_run", seen.run_job)
        watch(Deployment, "_end", seen.end_job)
        # torch's format of a model is not what schedules are about, and takes seconds to import
        patched.enter_context(
            mock.patch.object(
                server.deployed.job_run, "model_bytes", lambda state: state["weights"].tobytes()
            )
        )
        yield


def _bound(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that a class makes into a method."""

    def method(self: Any, *args: Any, **options: Any) -> Any:
        return function(self, *args, **options)

    return method


class _Seen:
    """What is told the witness of each call; the first argument is the method itself."""

    def __init__(
        self,
        witness: Witness,
        dead: Callable[[], bool],
        ended: Ended,
        note: Callable[[str], None],
    ) -> None:
        self._note = note
        self._witness = witness
        self._dead = dead
        self._ended = ended
        self._raised: BaseException | None = None
        self._finishing = False

    def provide(self, provide: Callable[..., None], agent: Agent, vector: NDArray[Any]) -> None:
        provide(agent, vector)
        self._witness.provides(agent.id, vector)

    def begin_round(
        self, begin: Callable[..., OpenRound], coordinator: Coordinator, *args: Any
    ) -> OpenRound:
        open_ = begin(coordinator, *args)
        self._witness.drew(open_.number)
        return open_

    def finish_round(
        self, finish: Callable[..., Any], coordinator: Coordinator, *args: Any, **options: Any
    ) -> Any:
        self._finishing = True
        try:
            number, (total, included) = coordinator._current().number, args
            self._witness.sums(number, total, included)
            weights = finish(coordinator, *args, **options)
            self._note(f"round {number} is committed")
            return weights
        finally:
            self._finishing = False

    def abort_round(
        self, abort: Callable[..., None], coordinator: Coordinator, reason: str, **options: Any
    ) -> None:
        number = coordinator._current().number
        abort(coordinator, reason, **options)
        self._note(f"round {number} gave no model: {reason}")
        if not (self._finishing or self._dead()):
            self._witness.gives_up(number, reason)

    async def converse(self, run: Callable[..., Any], round_: DeployedRound) -> None:
        self._witness.opened(round_._open, round_._secure.params)
        await run(round_)

    def exclude(
        self,
        exclude: Callable[..., None],
        round_: DeployedRound,
        client: int,
        cause: Cause,
        why: str,
    ) -> None:
        if client in round_._willing:  # said again, it changes nothing
            self._witness.declines(client, cause)
        exclude(round_, client, cause, why)

    def take(self, take: Callable[..., None], run: JobRun, event: Event) -> None:
        if isinstance(event, Said) and event.message.HasField("refusal"):
            refusal = event.message.refusal
            if refusal.round == 0 and refusal.job == run._terms.job:
                self._witness.declines(event.node - 1, cause_of(refusal))
        take(run, event)

    def secure(self, begin: Callable[..., None], secure: SecureRound, **options: Any) -> None:
        begin(secure, **options)
        self._witness.numbers[secure] = options["open"].number

    def receive(
        self, receive: Callable[..., None], secure: SecureRound, sender: int, message: bytes
    ) -> None:
        try:
            receive(secure, sender, message)
            self._witness.took(self._witness.numbers[secure], sender, kind_of(message))
        finally:
            self._witness.blames(secure.blamed)

    def close_stage(self, close: Callable[..., T], secure: SecureRound) -> T:
        try:
            return close(secure)
        finally:
            self._witness.blames(secure.blamed)

    def blame(self, blame: Callable[..., None], state: State, **options: Any) -> None:
        blame(state, **options)
        self._witness.remembers_blame(options["node"] - 1, options["round"])

    def cancel(self, cancel: Callable[..., T], state: State, id: str) -> T:
        row = cancel(state, id)
        self._witness.cancelled()
        return row

    def restore(self, restore: Callable[..., Job], *args: Any, **options: Any) -> Job:
        job = restore(*args, **options)
        self._witness.restarted(job.coordinator.weights, job.ledger.view)
        return job

    async def run_job(self, run: Callable[..., Any], deployment: Deployment, row: JobRow) -> Any:
        self._raised = None
        try:
            return await run(deployment, row)
        except Exception as error:
            self._raised = error
            raise

    def end_job(
        self,
        end: Callable[..., None],
        deployment: Deployment,
        row: JobRow,
        status: str,
        reason: str,
    ) -> None:
        end(deployment, row, status, reason)
        if not self._dead():
            self._ended(status, reason, self._raised)
