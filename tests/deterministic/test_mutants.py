"""The simulation finds bugs: each rule that is broken on purpose is caught by some seed.

Every mutant is a mistake that somebody could make; the same seed without it holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import client.journal
import server.run_folder
from client.journal import JobRecord, Journal
from fedsys.durable import DurableFile
from fedsys.privacy import Ledger, Signer
from secure_agg import Aggregator, AggregatorStage, FileStore, checks
from server.checkpoint import Checkpoints
from server.rounds import RoundAborted, SecureRound
from simulations.deterministic import run

Mutate = Callable[[pytest.MonkeyPatch], None]


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

    patch.setattr(server.run_folder, "make_folder", make_folder)


def key_without_flush(patch: pytest.MonkeyPatch) -> None:
    """The signing key is whole in a folder that is never flushed."""

    def load(home: Any, *, entropy: Any) -> Signer:
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
    """An agent's state is replaced atomically, but not flushed before its reply leaves."""

    def save(self: FileStore, data: bytes) -> None:
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.write_bytes(data)
        fresh.replace(self.path)

    patch.setattr(FileStore, "save", save)


def store_forgets_marks(patch: pytest.MonkeyPatch) -> None:
    """A store that reads back nothing after a restart, and no check of freshness."""
    patch.setattr(FileStore, "load", lambda self: None)


def ask_a_smaller_alive_set(patch: pytest.MonkeyPatch) -> None:
    """A coordinator that misses its quorum asks those who did sign to sign again."""
    send = Aggregator._send_unmask
    asked: set[bytes] = set()

    def again(self: Aggregator) -> dict[int, bytes]:
        if len(self._expected) < self.params.quorum and self._session not in asked:
            asked.add(self._session)
            self._answers[AggregatorStage.CONSISTENCY] = {}
            return self._send_alive()
        return send(self)

    patch.setattr(Aggregator, "_send_unmask", again)


def sign_twice(patch: pytest.MonkeyPatch) -> None:
    """The same coordinator, and agents that sign whatever they are asked."""
    ask_a_smaller_alive_set(patch)
    patch.setattr(checks, "signs_once", lambda signed, asked: None)


def refund_after_unmask(patch: pytest.MonkeyPatch) -> None:
    """An abort is logged as if nobody had been asked to unmask."""
    close = SecureRound.close_stage

    def generous(self: SecureRound) -> dict[int, bytes]:
        try:
            return close(self)
        except RoundAborted as abort:
            raise RoundAborted(str(abort), nothing_summed=True) from abort

    patch.setattr(SecureRound, "close_stage", generous)


def late_uploads_count(patch: pytest.MonkeyPatch) -> None:
    """An upload that arrives after its sender was declared dropped is added all the same."""
    receive = Aggregator.receive

    def lenient(self: Aggregator, sender: int, message: bytes) -> None:
        stage = self.stage
        if stage is AggregatorStage.CONSISTENCY and message[1] == 8:
            self.stage = AggregatorStage.MASKED_INPUT
            self._expected.setdefault(sender)
            try:
                receive(self, sender, message)
            finally:
                self.stage = stage
                if sender not in self._alive:
                    self._expected.pop(sender, None)
            return
        receive(self, sender, message)

    patch.setattr(Aggregator, "receive", lenient)


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

    patch.setattr(Journal, "join", join)


def participations_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A restarted agent counts its rounds from zero."""
    patch.setattr(Journal, "others", lambda self, job, round: 0)


def another_session_is_blamed(patch: pytest.MonkeyPatch) -> None:
    """A message that the network kept back counts against its sender."""
    patch.setattr(checks, "same_session", lambda found, session, sender: None)


CAUGHT: list[tuple[Mutate, str, int]] = [
    (invite_before_reserve, "without a durable reserve", 0),
    (ledger_without_flush, "without a durable reserve", 0),
    (folder_without_flush, "without a durable reserve", 0),
    (key_without_flush, "the ledger is signed by", 8),
    (checkpoint_forgotten, "newest committed model", 23),
    (round_number_reused, "was drawn twice|was used twice|reserves round", 3),
    (store_without_flush, "masked two inputs|signed two|joined a session twice", 21),
    (store_forgets_marks, "joined a session twice", 15),
    (sign_twice, "signed two alive sets", 21),
    (refund_after_unmask, "epsilon under-counted: the server", 16),
    (late_uploads_count, "the sum of round", 776),
    (journal_without_flush, "before it was certain to count|journal.json: damaged", 0),
    (journal_remembers_what_it_failed_to_write, "before it was certain to count", 8),
    (participations_forgotten, "took part in rounds .*: too many", 0),
    (another_session_is_blamed, "was blamed: a .* message of another session", 17),
]
"""Mutant, what the violation says, and where to begin: any seed does, a near one is quick."""
RARE = [mutant for mutant in CAUGHT if mutant[0] is late_uploads_count]
"""Whose next seed may be hundreds away once an order of events has changed."""
SEEDS = 200


def first_violation(begin: int, seeds: int = SEEDS) -> tuple[int, str]:
    for seed in range(begin, begin + seeds):
        outcome = run(seed)
        if outcome.violation is not None:
            return seed, outcome.violation
    pytest.fail(f"none of {seeds} seeds caught it")


@pytest.mark.parametrize(
    ("mutate", "message", "begin"),
    [
        pytest.param(*each, id=each[0].__name__, marks=[pytest.mark.slow] if each in RARE else [])
        for each in CAUGHT
    ],
)
def test_a_broken_rule_is_caught_and_its_seed_replays(
    mutate: Mutate, message: str, begin: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        mutate(patched)
        rare = any(mutate is each[0] for each in RARE)
        seed, violation = first_violation(begin, 10 * SEEDS if rare else SEEDS)
        assert re.search(message, violation), f"seed {seed}: {violation}"
    with monkeypatch.context() as patched:
        mutate(patched)
        assert run(seed).violation == violation
    assert run(seed).violation is None


def test_agents_refuse_what_a_mistaken_coordinator_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        sign_twice(patched)
        seed, _ = first_violation(21)
    with monkeypatch.context() as patched:
        ask_a_smaller_alive_set(patched)
        outcome = run(seed)
    assert outcome.violation is None
    assert any("AlreadySigned" in line for line in outcome.trace)
