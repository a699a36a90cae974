"""The simulation finds bugs: each rule that is broken on purpose is caught by some seed.

Every mutant is a mistake that somebody could make; the same seed without it holds.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

import client.journal
import fedsys.run_folder
import simulations.deterministic.agent
from client.journal import JobRecord, Journal
from client.session import Session
from client.synchronous import provide
from fedsys.durable import DurableFile
from fedsys.privacy import Ledger, Signer
from fedsys.wire import fleet_pb2
from secure_agg import Aggregator, AggregatorStage, FileStore, SealingKeys, checks
from secure_agg.messages import Kind, Upload, kind_of
from secure_agg.settlement import Settlement
from server.checkpoint import Checkpoints
from server.deployed.consent import Consent
from server.deployed.conversation import DeployedRound
from server.deployed.job_run import JobRun
from server.deployed.round import RoundCycle
from server.home.prekeys import Prekeys
from server.home.state import PrekeyRow, State
from server.rounds import RoundAborted, SecureRound
from simulations.deterministic import run
from simulations.deterministic.invariants import Witness

Mutate = Callable[[pytest.MonkeyPatch], None]


def rewrite(patch: pytest.MonkeyPatch, owner: type, name: str, *changes: tuple[str, str]) -> None:
    """A method with some of its text replaced."""
    text = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    for before, after in changes:
        assert text.count(before) == 1, f"{owner.__name__}.{name} has changed: {before}"
        text = text.replace(before, after)
    scope = dict(vars(sys.modules[owner.__module__]))
    exec(compile(text, f"a mutant of {name}", "exec"), scope)
    patch.setattr(owner, name, scope[name])


def invite_before_reserve(patch: pytest.MonkeyPatch) -> None:
    """The reserve is written together with the outcome."""
    conclude = Ledger._conclude
    waiting: dict[Ledger, Mapping[str, Any]] = {}

    def reserve(self: Ledger, round: int, body: Mapping[str, Any]) -> None:
        self._last_round = self._open_round = round
        waiting[self] = {**body, "round": round}

    def late(self: Ledger, *args: Any) -> None:
        self._append("reserve", waiting.pop(self))
        conclude(self, *args)

    patch.setattr(Ledger, "reserve", reserve)
    patch.setattr(Ledger, "_conclude", late)


def ledger_without_flush(patch: pytest.MonkeyPatch) -> None:
    """A line counts as written once the operating system has it."""

    def append(self: DurableFile, data: bytes) -> None:
        os.write(self._descriptor, data)

    patch.setattr(DurableFile, "append", append)


def folder_without_flush(patch: pytest.MonkeyPatch) -> None:
    """The run's folder is made, and nobody flushes the folder that it is in."""

    def make_folder(path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    patch.setattr(fedsys.run_folder, "make_folder", make_folder)


def key_without_flush(patch: pytest.MonkeyPatch) -> None:
    """The signing key is whole in a folder that is never flushed."""

    def load(home: Any, *, entropy: Any = os.urandom) -> Signer:
        path = home / "key"
        home.mkdir(exist_ok=True)
        if not path.exists():
            path.write_bytes(entropy(32))
        stored = path.read_bytes().ljust(32, b"\0")
        return Signer.generate(entropy=lambda count: stored[:count])

    patch.setattr(Signer, "load_or_create", staticmethod(load))


def checkpoint_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A round is committed though its model is not on disk."""
    patch.setattr(Checkpoints, "save", lambda self, checkpoint: None)


def round_number_reused(patch: pytest.MonkeyPatch) -> None:
    """A round that a crash cut off is taken for one that never was."""
    take_up = Ledger._take_up

    def forgetful(self: Ledger, *args: Any) -> None:
        take_up(self, *args)
        rounds = () if self.view is None else self.view.rounds
        if rounds and rounds[-1].outcome is None:
            self._last_round = rounds[-1].round - 1

    patch.setattr(Ledger, "_take_up", forgetful)


def store_without_flush(patch: pytest.MonkeyPatch) -> None:
    """An agent's marks are replaced atomically, but not flushed before its reply leaves."""

    def save(self: FileStore, data: bytes) -> None:
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.write_bytes(data)
        fresh.replace(self.path)

    patch.setattr(FileStore, "save", save)


def uploads_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Marks that read back as nothing after a restart, and a journal that nobody asks."""

    def careless(self: Session, current: Any, stage: fleet_pb2.Stage) -> bytes:
        if not current.agent.uploaded:
            current.agent.enter(stage.message)
            provide(current, self._worker, self.journal, self._noise(stage.round))
        reply: bytes = current.agent.handle(stage.message)
        self.journal.upload(current.assignment.job, current.assignment.round)
        return reply

    patch.setattr(FileStore, "load", lambda self: None)
    patch.setattr(Session, "_upload", careless)


def keys_on_the_disk(patch: pytest.MonkeyPatch) -> None:
    """Sealing keys, and the work of a round, outlive a loss of power."""
    patch.setattr(
        simulations.deterministic.agent,
        "VolatileStore",
        lambda folder, memory: FileStore(folder / "keys"),
    )


def keys_named_again(patch: pytest.MonkeyPatch) -> None:
    """A coordinator that names one sealing key of an agent in all rounds, and nobody sees it."""
    rewrite(patch, Prekeys, "take", ("session.delete(row)", "pass"))
    patch.setattr(Witness, "_names", lambda self, member, prekey, session: None)


def keys_used_again(patch: pytest.MonkeyPatch) -> None:
    """The same coordinator, and agents whose keys never leave the pool."""
    keys_named_again(patch)
    commit = SealingKeys.commit

    def keep(self: SealingKeys, job: bytes, bound: Any, marks: Any) -> None:
        pool = dict(self._pool)
        commit(self, job, bound, marks)
        self._pool = pool

    patch.setattr(SealingKeys, "commit", keep)


def propose_a_smaller_set(patch: pytest.MonkeyPatch) -> None:
    """A coordinator that misses its quorum asks those who did endorse for another set."""
    certify = Settlement._certify
    asked: set[bytes] = set()

    def again(self: Settlement) -> Mapping[int, bytes]:
        collection, params = self.collection, self.collection.session.params
        session = collection.session.hash
        spare = len(collection.uploaders) > params.min_included
        if len(self._answers) < params.quorum and session not in asked and spare:
            asked.add(session)
            del collection._uploads[collection.uploaders[-1]]
            message = collection.propose()
            messages = dict.fromkeys(self._answers, message)
            return self._ask(Kind.ENDORSEMENT, AggregatorStage.ENDORSE, messages)
        return certify(self)

    patch.setattr(Settlement, "_certify", again)


def propose_again_unwatched(patch: pytest.MonkeyPatch) -> None:
    """The same coordinator, and nobody who sees it: what is left is what agents do."""
    propose_a_smaller_set(patch)
    patch.setattr(Witness, "_proposes", lambda self, seen, body: None)
    patch.setattr(Witness, "blames", lambda self, blamed: None)


def endorse_twice(patch: pytest.MonkeyPatch) -> None:
    """The same coordinator, and agents that endorse whatever they are asked."""
    propose_again_unwatched(patch)
    patch.setattr(checks, "endorses_once", lambda endorsed, asked: None)


def refund_after_the_certificate(patch: pytest.MonkeyPatch) -> None:
    """An abort is logged as if nobody had been asked to open anything."""
    close = SecureRound.close_stage

    def generous(self: SecureRound) -> Mapping[int, bytes]:
        try:
            return close(self)
        except RoundAborted as abort:
            raise RoundAborted(str(abort), nothing_summed=True) from abort

    patch.setattr(SecureRound, "close_stage", generous)


def _of_this_round(self: DeployedRound, client: int, answer: fleet_pb2.Answer) -> bool:
    return answer.round == self._open.number


def late_uploads_count(patch: pytest.MonkeyPatch) -> None:
    """An upload that arrives once the shares were passed on is added all the same: the sum does not
    open, though everybody answered."""
    receive = Aggregator.receive
    patch.setattr(DeployedRound, "_awaits", _of_this_round)

    def lenient(self: Aggregator, sender: int, message: bytes) -> None:
        collection = self._settlement.collection
        late = self.stage is AggregatorStage.ENDORSE and kind_of(message) is Kind.UPLOAD
        if late and sender not in collection.uploaders:
            collection._sum.add(Upload.parse(message, self.session).ciphertext)
        receive(self, sender, message)

    patch.setattr(Aggregator, "receive", lenient)


def who_vanishes_is_left_out(patch: pytest.MonkeyPatch) -> None:
    """Anyone who does not answer after its upload is taken out of the sum again."""
    propose = Settlement._propose

    def strict(self: Settlement) -> Mapping[int, bytes]:
        for dealer in self.collection.uploaders:
            if dealer not in self._answers:
                self.collection.exclude(dealer)
        return propose(self)

    patch.setattr(Settlement, "_propose", strict)


def journal_without_flush(patch: pytest.MonkeyPatch) -> None:
    """An agent's count is replaced atomically, but not flushed before its answer leaves."""

    def write(path: Path, content: bytes) -> None:
        fresh = path.with_name(path.name + ".partial")
        fresh.write_bytes(content)
        fresh.replace(path)

    patch.setattr(client.journal, "write_secret", write)


def journal_remembers_what_it_failed_to_write(patch: pytest.MonkeyPatch) -> None:
    """A count that failed to be written is not asked for again."""

    def change(self: Journal, record: JobRecord, **values: Any) -> None:
        for name, value in values.items():
            setattr(record, name, value)
        self._save()
        self._certain = True

    def join(self: Journal, job: bytes, round: int) -> None:
        record = self.jobs[job.hex()]
        if round not in record.joined:
            change(self, record, joined=[*record.joined, round])

    def upload(self: Journal, job: bytes, round: int) -> None:
        record = self.jobs[job.hex()]
        if round not in record.uploaded:
            change(self, record, uploaded=[*record.uploaded, round])

    patch.setattr(Journal, "join", join)
    patch.setattr(Journal, "upload", upload)


def participations_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A restarted agent counts its rounds from zero."""
    patch.setattr(Journal, "others", lambda self, job, round: 0)


def another_session_is_blamed(patch: pytest.MonkeyPatch) -> None:
    """A message that the network kept back counts against its sender."""
    patch.setattr(DeployedRound, "_awaits", lambda self, client, answer: True)
    patch.setattr(checks, "same_session", lambda found, session, sender: None)


def round_asks_before_it_pays(patch: pytest.MonkeyPatch) -> None:
    """The round's reservation is written when its sum is there."""
    rewrite(
        patch,
        RoundCycle,
        "_run",
        (
            "    open_ = await to_its_end(",
            "    ledger, owed = self._job.ledger, []\n"
            "    ledger._append = lambda *line: owed.append(line)\n"
            "    open_ = await to_its_end(",
        ),
        (
            "    round_: DeployedRound | None = None",
            "    del ledger._append\n    round_: DeployedRound | None = None",
        ),
        (
            "    result = secure.result",
            "    [ledger._append(*line) for line in owed]\n        result = secure.result",
        ),
    )


def outcome_before_commit(patch: pytest.MonkeyPatch) -> None:
    """The cohort hears of a commit that is yet to be written, and so has no line to be sent."""
    dismiss = "    self._dismiss(round_, number, committed=True)\n"
    before = "    self._exclude(number, result.blamed)\n"
    early = "    round_.dismiss(committed=True, ledger_head=b'')\n"
    rewrite(patch, RoundCycle, "_run", (dismiss, ""), (before, early + before))


def consent_not_checked(patch: pytest.MonkeyPatch) -> None:
    """The whole cohort is invited."""
    rewrite(patch, DeployedRound, "__init__", ("set(open.cohort) & consenting", "set(open.cohort)"))


def refusal_not_counted(patch: pytest.MonkeyPatch) -> None:
    """What agents refused in a round is forgotten with the round."""
    rewrite(patch, RoundCycle, "_dismiss", ("round_.report.refusals.items()", "()"))


def who_is_blamed_is_invited(patch: pytest.MonkeyPatch) -> None:
    """A client that was caught cheating stays among those that agreed."""
    patch.setattr(Consent, "exclude", lambda self, client, reason: None)


def blame_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A coordinator that was restarted asks the database for no blame."""
    patch.setattr(State, "blamed", lambda self, job: {})


def prekeys_come_back(patch: pytest.MonkeyPatch) -> None:
    """What keys were taken is known to the process, and not to the next one."""
    taken: dict[Prekeys, set[bytes]] = {}

    def take(self: Prekeys, nodes: Iterable[int], *, suite: int = 1) -> dict[int, bytes]:
        gone, found = taken.setdefault(self, set()), dict[int, bytes]()
        with self._state.transaction() as session:
            for node in nodes:
                rows = select(PrekeyRow).where(PrekeyRow.node == node).order_by(PrekeyRow.number)
                left = [row for row in session.scalars(rows) if row.statement not in gone]
                if left:
                    found[node] = left[0].statement
                    gone.add(left[0].statement)
        return found

    patch.setattr(Prekeys, "take", take)


def cancelled_job_goes_on(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks whether the operator cancelled it."""
    patch.setattr(JobRun, "_stop_if_cancelled", lambda self: None)


def shutdown_refunds(patch: pytest.MonkeyPatch) -> None:
    """A coordinator that is stopped writes that no sum was ever opened."""
    rewrite(
        patch,
        RoundCycle,
        "_run",
        ("before = round_ is None or secure.nothing_summed", "before = True"),
    )


CAUGHT: list[tuple[Mutate, str, int]] = [
    (invite_before_reserve, "without a durable reserve", 0),
    (ledger_without_flush, "without a durable reserve", 4),
    (folder_without_flush, "without a durable reserve", 4),
    (key_without_flush, "the ledger is signed by|coordinator.ed25519: missing", 0),
    (checkpoint_forgotten, "newest committed model", 21),
    (round_number_reused, "was drawn twice|was used twice|reserves round|were begun", 38),
    (store_without_flush, "before the mark of it was certain", 0),
    (uploads_forgotten, "uploaded two vectors", 4),
    (keys_on_the_disk, "after it lost power", 4),
    (keys_used_again, "two sessions with one sealing key", 2),
    (propose_a_smaller_set, "two sets were proposed", 14),
    (endorse_twice, "endorsed two sets", 14),
    (refund_after_the_certificate, "epsilon under-counted: the server", 95),
    (late_uploads_count, "was given up .*does not match its shares.* came in time", 27),
    (who_vanishes_is_left_out, "were taken in round .*, not summed", 0),
    (journal_without_flush, "before it was certain to count|journal.json: damaged", 0),
    (journal_remembers_what_it_failed_to_write, "before it was certain to count", 15),
    (participations_forgotten, "took part in rounds .*: too many", 17),
    (another_session_is_blamed, "was blamed: .*", 18),
    (round_asks_before_it_pays, "without a durable reserve", 0),
    (outcome_before_commit, "was told before its commit", 0),
    (consent_not_checked, "without its consent", 2),
    (refusal_not_counted, "refused .* times .* are counted", 4),
    (who_is_blamed_is_invited, "was caught cheating and is asked", 11),
    (blame_is_forgotten, "was caught cheating and is asked", 14),
    (prekeys_come_back, "was named in two sessions", 19),
    (cancelled_job_goes_on, "of a job that is cancelled", 0),
    (shutdown_refunds, "epsilon under-counted: the server", 73),
]
"""Mutant, what the violation says, and where to begin: any seed does, a near one is quick."""
SEEDS = 200


def first_violation(begin: int) -> tuple[int, str]:
    for seed in range(begin, begin + SEEDS):
        outcome = run(seed)
        if outcome.violation is not None:
            return seed, outcome.violation
    pytest.fail(f"none of {SEEDS} seeds caught it")


QUICK = (
    "invite_before_reserve",
    "folder_without_flush",
    "checkpoint_forgotten",
    "store_without_flush",
    "propose_a_smaller_set",
    "who_vanishes_is_left_out",
    "outcome_before_commit",
    "refusal_not_counted",
    "cancelled_job_goes_on",
)
"""Those that take seconds; the others are as slow as the schedules that find them are rare."""


@pytest.mark.parametrize(
    ("mutate", "message", "begin"),
    [
        pytest.param(
            *each,
            id=each[0].__name__,
            marks=[] if each[0].__name__ in QUICK else [pytest.mark.slow],
        )
        for each in CAUGHT
    ],
)
def test_a_broken_rule_is_caught_and_its_seed_replays(
    mutate: Mutate, message: str, begin: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        mutate(patched)
        seed, violation = first_violation(begin)
        assert re.search(message, violation), f"seed {seed}: {violation}"
    with monkeypatch.context() as patched:
        mutate(patched)
        assert run(seed).violation == violation
    assert run(seed).violation is None


@pytest.mark.parametrize(
    ("both", "coordinator_alone", "refusal"),
    [
        (endorse_twice, propose_again_unwatched, "AlreadyEndorsed|another set"),
        (keys_used_again, keys_named_again, "sealing key"),
    ],
)
def test_agents_refuse_what_a_mistaken_coordinator_asks(
    both: Mutate, coordinator_alone: Mutate, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = next(at for mutate, _, at in CAUGHT if mutate is both)
    with monkeypatch.context() as patched:
        both(patched)
        seed, _ = first_violation(begin)
    with monkeypatch.context() as patched:
        coordinator_alone(patched)
        outcome = run(seed)
    assert outcome.violation is None
    assert any("refused" in line and re.search(refusal, line) for line in outcome.trace)
