"""What a witness does with a checkpoint (https://c2sp.org/tlog-witness), without HTTP."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fedsys.errors import FedsysError
from fedsys.printable import printable
from fedsys.transparency import (
    Checkpoint,
    NoteError,
    SignedNote,
    VerifierKey,
    cosign,
    cosignatures_of,
    verify_consistency,
)
from fedsys.transparency.merkle import EMPTY_ROOT
from fedsys.transparency.origin import log_key, signer_of
from fedsys.transparency.submission import CONFLICT_TYPE, Submission
from fedsys.witness.folder import WitnessFolder, origin_hash

__all__ = ["PLAIN", "Reply", "Witness"]

PLAIN = "text/plain; charset=utf-8"
_MOST_TEXT = 4096
"""The most bytes of a checkpoint's text: origin, size, root, and a few extension lines."""
_HASH = re.compile(r"[0-9a-f]{64}")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An HTTP response."""

    status: int
    body: bytes
    content_type: str = PLAIN


class _Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.reply = Reply(status=status, body=f"{reason}\n".encode())


class Witness:
    """Cosigns checkpoints, one at a time; may be called from several threads.

    Args:
        folder: the witness's folder; the caller holds its lock.
        clock: returns POSIX time in seconds.
    """

    def __init__(self, folder: WitnessFolder, *, clock: Callable[[], float] = time.time) -> None:
        settings = folder.settings()
        self._folder = folder
        self._clock = clock
        self._key = folder.key()
        self._most = settings.most_logs
        self._coordinators = {each for each in settings.logs if "+" not in each}
        self._logs: dict[str, list[VerifierKey]] = {}
        for each in settings.logs:
            if "+" in each:
                key = VerifierKey.parse(each)
                self._logs.setdefault(key.name, []).append(key)
        self.vkey = folder.vkey_of(settings.name, self._key)
        self._lock = threading.Lock()
        self._kept = sum(1 for each in folder.checkpoints.iterdir() if _HASH.fullmatch(each.name))

    def add_checkpoint(self, body: bytes) -> Reply:
        """Cosigns a checkpoint that is consistent with the last one, and stores it in its place.

        Args:
            body: the request's body, untrusted.
        """
        try:
            submission, checkpoint = self._admitted(body)
            with self._lock:
                return self._cosigned(submission, checkpoint)
        except _Refused as refused:
            return refused.reply
        except (OSError, FedsysError) as error:
            _log.error("the witness's own state cannot be used: %s", error)
            return Reply(status=500, body=b"the witness's own state cannot be used\n")

    def checkpoint(self, name: str) -> Reply:
        """The last checkpoint cosigned, with the log's signature and the witness's.

        Args:
            name: SHA-256 of its log's origin, in lower-case hex; untrusted.
        """
        try:
            note = self._folder.read_checkpoint(name) if _HASH.fullmatch(name) else None
        except OSError as error:
            _log.error("cannot read a checkpoint: %s", error)
            return Reply(status=500, body=b"the witness's own state cannot be used\n")
        if note is None:
            return Reply(status=404, body=b"no checkpoint of that log was cosigned here\n")
        return Reply(status=200, body=note)

    def _admitted(self, body: bytes) -> tuple[Submission, Checkpoint]:
        """A request from a watched log, signed by it; no stored state has been read yet."""
        try:
            submission = Submission.parse(body)
            checkpoint = Checkpoint.parse(submission.note.text)
        except NoteError as error:
            raise _Refused(400, str(error)) from None
        if len(submission.note.text.encode()) > _MOST_TEXT:
            raise _Refused(400, f"the checkpoint's text is longer than {_MOST_TEXT} bytes")
        keys = self._keys(checkpoint.origin)
        if not keys:
            raise _Refused(404, "this witness does not watch that log")
        try:
            signed = [key for key in keys if submission.note.is_signed_by(key)]
        except NoteError as error:
            raise _Refused(403, str(error)) from None
        if not signed:
            raise _Refused(403, "the checkpoint has no signature by a key of its log")
        if submission.old > checkpoint.size:
            raise _Refused(400, "the old size exceeds the checkpoint's")
        lines = [each for key in signed for each in submission.note.signatures_of(key)[:1]]
        note = SignedNote(text=submission.note.text, signatures=tuple(lines))
        return Submission(old=submission.old, proof=submission.proof, note=note), checkpoint

    def _keys(self, origin: str) -> list[VerifierKey]:
        keys = self._logs.get(origin, [])
        return [*keys, log_key(origin)] if signer_of(origin) in self._coordinators else keys

    def _cosigned(self, submission: Submission, checkpoint: Checkpoint) -> Reply:
        """Compares with the last cosigned checkpoint and replaces it; the lock is held."""
        name = origin_hash(checkpoint.origin)
        known = self._known(name, checkpoint.origin)
        size = 0 if known is None else known.size
        if submission.old != size:
            return Reply(status=409, body=f"{size}\n".encode(), content_type=CONFLICT_TYPE)
        if not _grows(known, checkpoint, submission.proof):
            _log.warning(
                "%s: a checkpoint of size %d signed by its log is not shown to be consistent with "
                "the one of size %d cosigned before",
                printable(checkpoint.origin, 200),
                checkpoint.size,
                size,
            )
            raise _Refused(422, f"not shown to be consistent with the tree of size {size}")
        if known is None and self._kept >= self._most:
            raise _Refused(503, f"this witness already keeps {self._most} logs")
        line = cosign(
            submission.note.text, name=self.vkey.name, key=self._key, timestamp=int(self._clock())
        )
        self._folder.write_checkpoint(name, submission.note.with_signatures([line]).encode())
        self._kept += known is None
        return Reply(status=200, body=f"{line}\n".encode())

    def _known(self, name: str, origin: str) -> Checkpoint | None:
        """The last cosigned checkpoint. A file of any other content is an error, not a new log."""
        stored = self._folder.read_checkpoint(name)
        if stored is None:
            return None
        note = SignedNote.parse(stored)
        checkpoint = Checkpoint.parse(note.text)
        if not cosignatures_of(note, [self.vkey]) or checkpoint.origin != origin:
            raise NoteError(f"checkpoints/{name} is not what this witness cosigned")
        return checkpoint


def _grows(known: Checkpoint | None, new: Checkpoint, proof: tuple[bytes, ...]) -> bool:
    if new.size == 0 and new.root != EMPTY_ROOT:
        return False
    if known is None or known.size == 0:
        return not proof
    return verify_consistency(known.size, new.size, proof, known.root, new.root)
