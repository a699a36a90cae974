"""The coordinator's side of witnesses: each is told of the ledger's newest head, and cosigns it.

Nothing is shown before it is on disk, and no line waits for the network: a head is noted when a
reservation or commit is durable, and one task a witness sends whatever is newest. Only a round
whose operator wants a threshold waits for cosignatures, with its reservation long on disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedsys.errors import FedsysError, LedgerError
from fedsys.printable import printable
from fedsys.privacy.ledger.cosigned import (
    CosignedHead,
    contradiction,
    read_cosigned,
    write_cosigned,
    write_proof,
)
from fedsys.transparency import (
    Checkpoint,
    LogProof,
    MerkleTree,
    NoteError,
    SignedNote,
    VerifierKey,
    cosignatures_of,
)
from fedsys.transparency.submission import CONFLICT_TYPE, Submission, parse_signatures
from server.deployed.disk_work import to_its_end
from server.job import Job

if TYPE_CHECKING:
    from server.home.folder import Settings, WitnessAddress

__all__ = ["Answer", "JobWitnesses", "Post", "WitnessesMissing", "over_http"]

_log = logging.getLogger(__name__)
_ANSWER_SECONDS = 10.0
_ANSWER_BYTES = 1 << 16
_BACK_OFF = (0.5, 60.0)
_TRIES = 3
"""Of one head at one witness: the first may be told the size that the witness has."""


class WitnessesMissing(FedsysError):
    """Too few witnesses cosigned a reservation in time."""


class _Failed(Exception):
    """A witness did not cosign."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came back from a witness.

    Attributes:
        status: of HTTP.
        content_type: without parameters.
        body: at most `_ANSWER_BYTES`.
    """

    status: int
    content_type: str
    body: bytes


Post = Callable[[str, bytes], Awaitable[Answer]]
"""Sends a body to a URL; raises OSError where that fails."""


async def over_http(url: str, body: bytes) -> Answer:
    """A request of its own connection; redirects and proxies of the environment are not followed,
    and an answer is read up to a limit.

    Raises:
        OSError: no answer came, or a longer one.
    """
    import httpx

    try:
        async with (
            httpx.AsyncClient(trust_env=False, timeout=_ANSWER_SECONDS) as client,
            client.stream("POST", url, content=body) as answer,
        ):
            found = bytearray()
            async for piece in answer.aiter_raw():
                found += piece
                if len(found) > _ANSWER_BYTES:
                    raise OSError(f"an answer of more than {_ANSWER_BYTES} bytes")
            kind = answer.headers.get("content-type", "").partition(";")[0].strip()
            return Answer(status=answer.status_code, content_type=kind, body=bytes(found))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(str(error) or type(error).__name__) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Head:
    """A state of the ledger that is on disk."""

    size: int
    note: SignedNote


@dataclass(kw_only=True, slots=True)
class _Witness:
    """What is known of one.

    Attributes:
        size: of the last checkpoint that it cosigned, as far as known.
        newest: that checkpoint.
        failing: whether its last answer was none.
    """

    url: str
    key: VerifierKey
    size: int = 0
    newest: CosignedHead | None = None
    failing: bool = False


@dataclass(eq=False)
class JobWitnesses:
    """The witnesses of one job's ledger.

    Args:
        job: its ledger is open for writing.
        settings: names them.
        post: sends requests.
    """

    job: Job
    settings: Settings
    post: Post = over_http
    _witnesses: list[_Witness] = field(default_factory=list)
    _head: _Head | None = None
    _moved: asyncio.Condition = field(default_factory=asyncio.Condition)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._witnesses = [_known(each) for each in self.settings.witnesses]
        if not self._witnesses or not self.job.folder.cosigned.exists():
            return
        try:
            kept = {head.witness: head for head in read_cosigned(self.job.folder.cosigned)}
        except LedgerError as error:
            _log.warning("%s: %s; asking all witnesses again", self.job.folder.path, error)
            return
        for witness in self._witnesses:
            head = kept.get(witness.key)
            if head is not None and self._problem(head) is None:
                witness.newest, witness.size = head, head.checkpoint.size

    @property
    def tree(self) -> MerkleTree:
        """Of the ledger."""
        return self.job.ledger.tree

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Witnesses follow the ledger while the block runs."""
        tasks = [asyncio.create_task(self._follow(each)) for each in self._witnesses]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def advance(self) -> None:
        """Note the ledger's head, which is on disk; to be called while no line is being written."""
        if not self._witnesses:
            return
        size = len(self.tree)
        async with self._moved:
            if self._head is None or self._head.size < size:
                self._head = _Head(size=size, note=self._signed(size))
                self._moved.notify_all()

    async def require_reservation(self) -> None:
        """Note the ledger's head; wait until as many witnesses cosigned it as the operator wants.

        Raises:
            WitnessesMissing: they did not in time.
        """
        await self.advance()
        wanted, size = self.settings.witness_threshold, len(self.tree)
        try:
            await self._wait(size, wanted, self.settings.witness_wait)
        except TimeoutError:
            have = self._cosigned(size)
            raise WitnessesMissing(
                f"too few witnesses cosigned the reservation: {have} of witness_threshold = "
                f"{wanted} within {self.settings.witness_wait:g} s; see the log for what they said"
            ) from None

    async def finish(self) -> None:
        """Have the closed ledger's head cosigned, by all that answer soon, and keep its proof."""
        if not self._witnesses:
            return
        await self.advance()
        try:
            await self._wait(len(self.tree), len(self._witnesses), _ANSWER_SECONDS)
        except TimeoutError:
            missing = [str(w.key.name) for w in self._witnesses if w.size < len(self.tree)]
            _log.warning(
                "%s: its closing line is not cosigned by %s",
                self.job.folder.path,
                ", ".join(printable(name, 100) for name in missing),
            )
        size = len(self.tree)
        note = self._note_of(size)
        await to_its_end(write_proof, self.job.folder.proof, self.tree, note)

    def proof_of(self, index: int) -> LogProof | None:
        """That a line is under the newest head, with the cosignatures that this head has.

        Args:
            index: of the line, from 0.
        """
        if self._head is None or index >= self._head.size:
            return None
        size = self._head.size
        path = tuple(self.tree.inclusion_proof(index, size))
        return LogProof(index=index, path=path, note=self._note_of(size))

    def _signed(self, size: int) -> SignedNote:
        job = self.job.coordinator.terms.job
        return self.job.signer.sign_checkpoint(self.tree, size, job=job)

    def _note_of(self, size: int) -> SignedNote:
        """The checkpoint of a size with every cosignature of exactly that one."""
        note = self._signed(size)
        heads = [each.newest for each in self._witnesses if each.newest is not None]
        same = [head for head in heads if head.note.text == note.text]
        lines = [each for head in same for each in head.note.signatures_of(head.witness)]
        return note.with_signatures(lines)

    def _cosigned(self, size: int) -> int:
        return sum(each.size >= size for each in self._witnesses)

    async def _wait(self, size: int, wanted: int, seconds: float) -> None:
        async with asyncio.timeout(seconds), self._moved:
            await self._moved.wait_for(lambda: self._cosigned(size) >= wanted)

    async def _follow(self, witness: _Witness) -> None:
        """Until cancelled: whatever is newest is sent to a witness, one request at a time."""
        pause, most = _BACK_OFF
        while True:
            async with self._moved:
                await self._moved.wait_for(lambda: self._behind(witness))
                head = self._head
            if head is None:
                continue
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    newest = await self._ask(witness, head)
            except (OSError, _Failed, NoteError) as error:  # a TimeoutError is an OSError
                self._report(witness, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, most)
                continue
            pause = _BACK_OFF[0]
            if witness.failing:
                _log.info("witness %s cosigns again", printable(witness.key.name, 100))
            witness.failing = False
            await self._keep(witness, newest, head.size)

    def _behind(self, witness: _Witness) -> bool:
        return self._head is not None and witness.size < self._head.size

    async def _ask(self, witness: _Witness, head: _Head) -> CosignedHead:
        """Has one head cosigned.

        Raises:
            OSError: no answer came.
            _Failed: it does not cosign, or says that it saw another ledger.
            NoteError: what it sent is no cosignature.
        """
        old = witness.size
        for _ in range(_TRIES):
            proof = tuple(self.tree.consistency_proof(old, head.size))
            body = Submission(old=old, proof=proof, note=head.note).encode()
            answer = await self.post(witness.url, body)
            if answer.status == 200:
                found = cosignatures_of(
                    head.note.with_signatures(parse_signatures(answer.body)), [witness.key]
                )
                if not found:
                    raise _Failed("its answer has no cosignature of its key")
                note = head.note.with_signatures([found[0].line])
                return CosignedHead(witness=witness.key, note=note)
            if answer.status != 409 or answer.content_type != CONFLICT_TYPE:
                words = printable(answer.body.decode("utf-8", "replace").strip(), 200)
                raise _Failed(f"status {answer.status}: {words}")
            old = self._told(witness, head, answer.body)
        raise _Failed("it states another size at every try")

    def _told(self, witness: _Witness, head: _Head, body: bytes) -> int:
        """The size that a witness says it has."""
        text = body.decode("ascii", "replace").removesuffix("\n")
        if not (text.isdecimal() and text.isascii() and len(text) <= 19):
            raise _Failed("its conflict states no size")
        size = int(text)
        if size > head.size:
            raise _Failed(
                f"it cosigned {size} lines of this ledger, which has {head.size}: the ledger was "
                "rolled back, or somebody else signs with its key"
            )
        if size < witness.size:
            _log.error(
                "witness %s forgot what it cosigned: %d lines, and it states %d; its word on this "
                "ledger is worth nothing against a rewrite of those between",
                printable(witness.key.name, 100),
                witness.size,
                size,
            )
        return size

    def _report(self, witness: _Witness, error: Exception) -> None:
        """Once, until it cosigns again."""
        if not witness.failing:
            reason = printable(str(error) or type(error).__name__, 300)
            _log.warning("witness %s: %s", printable(witness.key.name, 100), reason)
        witness.failing = True

    async def _keep(self, witness: _Witness, newest: CosignedHead, size: int) -> None:
        """Durable, then told to whoever waits."""
        witness.newest = newest
        async with self._writing:
            heads = [each.newest for each in self._witnesses if each.newest is not None]
            try:
                await to_its_end(write_cosigned, self.job.folder.cosigned, heads)
            except OSError as error:
                _log.error("%s: %s", self.job.folder.cosigned, error.strerror or error)
        async with self._moved:
            witness.size = max(witness.size, size)
            self._moved.notify_all()

    def _problem(self, head: CosignedHead) -> str | None:
        """Why a stored line is no head of this ledger, cosigned."""
        try:
            if head.cosignature is None:
                return "no cosignature"
            origin = Checkpoint.parse(self._signed(len(self.tree)).text).origin
        except NoteError as error:
            return str(error)
        return contradiction(head.note, self.tree, origin)


def _known(address: WitnessAddress) -> _Witness:
    url = address.url.rstrip("/") + "/add-checkpoint"
    return _Witness(url=url, key=address.vkey)
