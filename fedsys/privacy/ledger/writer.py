"""The ledger's only writer: what a call records is on disk when the call returns.

The order within a round: ``reserve`` before clients are invited, ``commit`` before the model is
released, and ``abort`` before the first unmask request if it is to refund the server's view. A
round that is reserved and neither committed nor aborted counts as spent, in every view and at the
worst case.

There is one exception: a ``commit`` with ``after`` stays in memory until the next line, which
writes both in one flush, or until `settle`. Until then its round is not recorded and its model must
not be released. A crash then loses the round, like a crash before the commit. Its private line,
which must be on disk first, may be written in the background (`in_background`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsys.durable import DurableFile
from fedsys.errors import LedgerClosed, LedgerError
from fedsys.privacy.ledger.files import write_errors
from fedsys.privacy.ledger.lines import (
    FORMAT,
    GENESIS,
    Conclusion,
    KnownEvents,
    Line,
    commitment,
)
from fedsys.privacy.ledger.private import (
    SALT_BYTES,
    PrivateRounds,
    check_commitments,
    encode_private,
    read_private,
    told,
)
from fedsys.privacy.ledger.reader import LedgerView, read_ledger
from fedsys.privacy.ledger.signer import Signer
from fedsys.privacy.randomness import Entropy
from fedsys.transparency import MerkleTree

__all__ = ["Ledger"]


class Ledger:
    """Appends to one run's ``ledger.jsonl`` and ``private.jsonl``, which it locks while open.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> signer = Signer.generate()
        >>> with Ledger.create(folder / "ledger.jsonl", folder / "private.jsonl", signer=signer,
        ...                    header={"plan": {}}) as ledger:
        ...     ledger.reserve(1, {"event": {}})
        ...     ledger.commit(1, {"aggregate": "00" * 32}, sampled=[3, 1], survivors=[3])
        ...     ledger.close("completed")
        >>> read_ledger(folder / "ledger.jsonl").rounds[0].outcome
        'commit'
    """

    def __init__(
        self,
        *,
        ledger: DurableFile,
        private: DurableFile,
        signer: Signer,
        entropy: Entropy,
    ) -> None:
        self._ledger = ledger
        self._private = private
        self._signer = signer
        self._entropy = entropy
        self._seq = 0
        self._link = GENESIS
        self._head = GENESIS
        self._last_round = 0
        self._open_round: int | None = None
        self._finished = False
        self._held = b""
        self._held_leaves: list[bytes] = []
        self._tree = MerkleTree()
        self._known = KnownEvents()
        self._newest = b""
        self._first: Callable[[], object] | None = None
        self._disk: Executor | None = None
        self._participations: Counter[int] = Counter()
        self._committed: dict[int, str] = {}
        self._concluded: dict[int, Conclusion] = {}
        self._rounds: dict[str, int] = {}
        self._model = ""
        self.view: LedgerView | None = None
        """The ledger as it was on disk when it was opened; None for a new one."""
        self.private_rounds: Mapping[int, Mapping[str, Any]] = PrivateRounds({})
        """The private lines that were on disk when the ledger was opened, by round."""

    @classmethod
    def create(
        cls,
        path: Path,
        private_path: Path,
        *,
        signer: Signer,
        header: Mapping[str, Any],
        entropy: Entropy = os.urandom,
    ) -> Ledger:
        """Starts a ledger with its header line.

        Args:
            path: the path of ``ledger.jsonl``, which must not exist.
            private_path: the path of ``private.jsonl``, which must not exist; the file is readable
                by its owner only.
            signer: signs every line.
            header: the body of the first line; ``format`` and ``signer`` are added.
            entropy: source of the commitments' salts.

        Raises:
            LedgerError: a file exists or cannot be written.
        """
        with write_errors(path):
            ledger = DurableFile(path, create=True, mode=0o644)
        try:
            with write_errors(private_path):
                private = DurableFile(private_path, create=True, mode=0o600)
        except LedgerError:
            ledger.close()
            path.unlink(missing_ok=True)
            raise
        self = cls(ledger=ledger, private=private, signer=signer, entropy=entropy)
        self._model = str(header.get("initial_weights_sha256", ""))
        try:
            self._append("header", {**header, "format": FORMAT, "signer": signer.public_hex})
        except BaseException:
            self._release()
            raise
        return self

    @classmethod
    def open(
        cls,
        path: Path,
        private_path: Path,
        *,
        signer: Signer,
        facts: Mapping[str, Any] | None = None,
        entropy: Entropy = os.urandom,
    ) -> Ledger:
        """Resumes an interrupted ledger: verifies it, removes a torn last line, records the resume.

        ``view`` and ``private_rounds`` hold what was found, for the accountant to charge again.

        Args:
            path: the path of ``ledger.jsonl``.
            private_path: the path of ``private.jsonl``.
            signer: the signer that created the ledger.
            facts: further facts for the resume line: the hash of the code that continues, versions.
            entropy: source of the commitments' salts.

        Raises:
            LedgerError: the ledger is closed, locked by another process, signed by another key, or
                fails a check.
        """
        with write_errors(path):
            ledger = DurableFile(path, create=False, mode=0o644)
        try:
            with write_errors(private_path):
                private = DurableFile(private_path, create=False, mode=0o600)
        except LedgerError:
            ledger.close()
            raise
        self = cls(ledger=ledger, private=private, signer=signer, entropy=entropy)
        try:
            self._take_up(path, private_path, signer.public_key, facts or {})
        except BaseException:
            self._release()
            raise
        return self

    def in_background(self, disk: Executor) -> None:
        """Has private lines of commits with ``after`` written by `disk`, while their caller goes
        on; the ledger's own lines are written as before, once these are on disk.

        Args:
            disk: writes them; with a thread besides any that ``after`` waits for, at the same time.
        """
        self._disk = disk

    def _take_up(
        self, path: Path, private_path: Path, key: Ed25519PublicKey, facts: Mapping[str, Any]
    ) -> None:
        view = read_ledger(path, key=key, allow_torn=True)
        if view.closed is not None:
            raise LedgerClosed(
                f"{path.name} is closed: start a new run", reason=str(view.closed.get("reason"))
            )
        rounds, torn = read_private(private_path)
        self._model = str(view.header.get("initial_weights_sha256", ""))
        for record in view.rounds:
            self._last_round = record.round
            if record.outcome is None:
                continue
            end = Conclusion(record.reserved_at + 1, record.hash, record.model)
            self._concluded[record.round], self._rounds[record.hash] = end, record.round
            if record.outcome == "commit":
                self._committed[record.round] = record.hash
                self._model = str(record.body.get("weights_sha256", ""))
            if record.round not in rounds:
                raise LedgerError(
                    f"{private_path.name} lacks round {record.round}, which {path.name} records"
                )
            line = rounds[record.round]
            check_commitments(record, line)
            self._participations.update(line["survivors"])
        # A private line whose ledger line was never written belongs to a round that counts as
        # spent at the worst case. Its number is not used again.
        self._last_round = max((self._last_round, *rounds))
        self.view, self.private_rounds = view, rounds
        self._seq, self._link, self._head = view.lines, view.link, view.head
        self._tree = view.tree.copy()
        if view.tail:
            with write_errors(path.name):
                self._ledger.cut(len(view.tail))
        if torn:
            with write_errors(private_path.name):
                self._private.cut(len(torn))
        # The length of the private line would reveal the size of the cohort.
        cut = {"torn_ledger_bytes": len(view.tail), "torn_private": bool(torn)}
        self._append("resume", {**facts, **cut})

    @property
    def head(self) -> str:
        """The hash of the newest line, to be printed and anchored elsewhere."""
        return self._head

    @property
    def newest(self) -> bytes:
        """The newest line, without its newline."""
        return self._newest

    @property
    def tree(self) -> MerkleTree:
        """The Merkle tree of the lines on disk, which may be shown to others.

        Read its size while no line is being written; roots and proofs for that size are valid at
        any time after.
        """
        return self._tree

    @property
    def next_round(self) -> int:
        """One more than the largest round number used so far."""
        return self._last_round + 1

    @property
    def participations(self) -> Mapping[int, int]:
        """The number of rounds in which each client's update was, or may have been, summed.

        An abort after the first unmask request counts for its whole cohort.
        """
        return self._participations

    @property
    def committed(self) -> Mapping[int, str]:
        """The hash of each committed round's line."""
        return self._committed

    @property
    def concluded(self) -> Mapping[int, Conclusion]:
        """By round, the commit or abort, which agents countersign."""
        return self._concluded

    def concluded_by(self, head: str) -> int | None:
        """The round that the line with this hash commits or aborts; None if it does neither."""
        return self._rounds.get(head)

    def reserve(self, round: int, body: Mapping[str, Any]) -> None:
        """Records a round's cost before anybody is invited.

        Args:
            round: the next number, 1 for the first.
            body: the event, as JSON.

        Raises:
            LedgerError: the number is not the next one, or another round is still open.
        """
        self._check_writable()
        if self._open_round is not None:
            raise LedgerError(
                f"round {self._open_round} is still open: commit or abort it before {round}"
            )
        if round < self.next_round:
            raise LedgerError(
                f"round {round} was used before: a repeated round takes a new number and cohort"
            )
        if round > self.next_round:
            raise LedgerError(f"round {round} would leave a gap: {self.next_round} is next")
        self._append("reserve", {**body, "round": round})
        self._last_round = self._open_round = round

    def commit(
        self,
        round: int,
        body: Mapping[str, Any],
        *,
        sampled: Sequence[int],
        survivors: Sequence[int],
        private: Mapping[str, Any] | None = None,
        after: Callable[[], object] | None = None,
    ) -> None:
        """Records a round's outcome before its model is released.

        Args:
            round: the open round.
            body: public facts (the aggregate's hash).
            sampled: the cohort; written to the private file, and as a salted commitment to the
                ledger.
            survivors: the clients whose updates were summed; written likewise.
            private: diagnostics for the private file, and the round's opening; both are committed
                to like the lists.
            after: called before the line is written, which happens with the next line or in
                `settle`; the line is written only if the call returns. The model must not be
                released before. None: the line is on disk when this returns.

        Raises:
            LedgerError: the round is not open, or survivors are not among the sampled.
        """
        self._conclude("commit", round, body, sampled, survivors, private, after)

    def abort(
        self,
        round: int,
        body: Mapping[str, Any],
        *,
        sampled: Sequence[int],
        before_unmask: bool,
        private: Mapping[str, Any] | None = None,
    ) -> None:
        """Records that a round releases nothing.

        Args:
            round: the open round.
            body: public facts (the reason).
            sampled: the cohort that was invited.
            before_unmask: whether nobody had been asked to unmask yet; only then is it certain that
                the server has not seen the sum.
            private: diagnostics for the private file.

        Raises:
            LedgerError: the round is not open.
        """
        outcome = {**body, "before_unmask": before_unmask}
        survivors = [] if before_unmask else sampled
        self._conclude("abort", round, outcome, sampled, survivors, private)

    def _conclude(
        self,
        kind: str,
        round: int,
        body: Mapping[str, Any],
        sampled: Sequence[int],
        survivors: Sequence[int],
        private: Mapping[str, Any] | None,
        after: Callable[[], object] | None = None,
    ) -> None:
        self._check_writable()
        if round != self._open_round:
            raise LedgerError(f"round {round} is not open: reserve it first")
        cohort, summed = sorted(map(int, sampled)), sorted(map(int, survivors))
        if len(set(cohort)) != len(cohort) or not set(summed) <= set(cohort):
            raise LedgerError(f"round {round}: survivors must be distinct and among the sampled")
        salt = self._entropy(SALT_BYTES)
        hidden: dict[str, Any] = {
            "sampled": cohort,
            "survivors": summed,
            "participations": [self._participations[client] + 1 for client in summed],
        }
        line = {**(private or {}), **hidden, "round": round, "salt": salt.hex()}
        commitments = {name: commitment(name, value, salt) for name, value in told(line).items()}
        private_line = encode_private(line)
        content = {**body, "round": round, "commitments": commitments}
        if after is None or self._disk is None:
            self._append_private(private_line)
            self._append(kind, content, after)
        else:
            written = self._disk.submit(self._append_private, private_line)
            self._first = written.result  # whatever becomes of the ledger's own line
            self._append(kind, content, partial(_both, after, written.result))
        end = Conclusion(self._seq - 1, self._head, self._model)
        self._concluded[round], self._rounds[self._head] = end, round
        if kind == "commit":
            self._committed[round] = self._head
            self._model = str(body.get("weights_sha256", ""))
        self._participations.update(summed)
        self._open_round = None

    def _append_private(self, line: bytes) -> None:
        with write_errors(self._private.path.name):
            self._private.append(line)

    def salt(self) -> bytes:
        """A fresh salt for a commitment to something else than a round."""
        return self._entropy(SALT_BYTES)

    def settle(self) -> None:
        """Writes pending lines to disk, after calling the pending commit's ``after``.

        Raises:
            LedgerError: the call or the write failed, or an earlier one did; the commit is lost.
        """
        (first, self._first), (held, self._held) = (self._first, None), (self._held, b"")
        leaves, self._held_leaves = self._held_leaves, []
        try:
            with write_errors(self._ledger.path.name):
                if first is not None:
                    first()
                if held:
                    self._ledger.append(held)
            for leaf in leaves:
                self._tree.append(leaf)
        except BaseException:
            self._ledger.give_up()  # later lines would follow a line that is missing
            raise

    def close(self, reason: str, body: Mapping[str, Any] | None = None) -> None:
        """Writes the closing line, which makes truncation detectable, and releases the files.

        Args:
            reason: why the job ended.
            body: further public facts (the released model's hash).

        Raises:
            LedgerError: a round is still open.
        """
        self._check_writable()
        if self._open_round is not None:
            raise LedgerError(f"round {self._open_round} is still open: commit or abort it first")
        self._append("closed", {**(body or {}), "reason": reason, "lines": self._seq + 1})
        self._release()

    def _append(
        self, kind: str, body: Mapping[str, Any], after: Callable[[], object] | None = None
    ) -> None:
        raw = Line.signed(
            seq=self._seq, prev_hash=self._link, kind=kind, body=dict(body), sign=self._signer.sign
        )
        # A line that cannot be read back is never written.
        line = Line.parse(raw, self._seq + 1, known=self._known)
        if after is not None:
            self._first = after  # known before the line is held, which may be written at any time
        self._held += raw + b"\n"
        self._held_leaves.append(line.leaf)
        if after is None:
            self.settle()
        self._seq += 1
        self._link, self._head, self._newest = line.link, line.hash, raw

    def _check_writable(self) -> None:
        if self._finished:
            raise LedgerError("the ledger is closed")

    def _release(self) -> None:
        self._finished = True
        self._ledger.close()
        self._private.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Releases the files; without ``close`` the ledger stays resumable."""
        if not self._finished:
            try:
                self.settle()
            finally:
                self._release()


def _both(first: Callable[[], object], second: Callable[[], object]) -> None:
    """Calls both, the second even where the first fails."""
    try:
        first()
    finally:
        second()
