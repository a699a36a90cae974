"""Reads an untrusted ledger: strictly, within bounds, and without executing anything in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsys.errors import LedgerError
from fedsys.improvement import STOPPED
from fedsys.privacy.ledger.files import open_regular, read_lines
from fedsys.privacy.ledger.lines import (
    FORMAT,
    GENESIS,
    KnownEvents,
    Line,
    is_signature,
    parse_object,
)
from fedsys.transparency import MerkleTree
from fedsys.transparency.origin import origin_of

__all__ = ["LedgerView", "RoundRecord", "build_view", "read_header", "read_ledger"]

_NEWEST_SIGNATURES = 4096
_MAX_RESUMES = 10_000
_MOST_PARSED = 1 << 24
"""Octets of bodies that are kept as objects, which take some thirty times as much memory: further
ones are kept as text, and further resumptions are refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRecord:
    """What the ledger records about one round.

    Attributes:
        round: the round's number, which is never used twice.
        reserved: the reserve line's body, or its text in a ledger with very many different ones.
        outcome: ``commit``, ``abort``, or None if neither was written; the round counts as spent.
        text: canonical JSON of the commit's or abort's body.
        hash: the hash of that line, which agents countersign.
        reserved_at: the reserve line's ``seq``; a conclusion is the next line.
        model: SHA-256 of the weights in force when the round was reserved, as earlier lines state.
    """

    round: int
    reserved: dict[str, Any] | bytes
    outcome: str | None = None
    text: bytes = b"{}"
    hash: str = ""
    reserved_at: int = 0
    model: str = ""

    @property
    def reserve(self) -> dict[str, Any]:
        """The reserve line's body; rounds of equal cost share the event in it."""
        if isinstance(self.reserved, bytes):
            return parse_object(self.reserved, f"round {self.round}")
        return self.reserved

    @property
    def body(self) -> dict[str, Any]:
        """The commit or abort line's body, parsed on access to keep 10^5 rounds small in memory."""
        return parse_object(self.text, f"round {self.round}")

    @property
    def refunds_server(self) -> bool:
        """Whether the round was durably aborted before anyone was asked to unmask."""
        return self.outcome == "abort" and self.body.get("before_unmask") is True


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerView:
    """A ledger whose form, chain and newest signatures have been verified.

    Attributes:
        header: the first line's body.
        signer: the public key (hex) that the header names and that signed it.
        rounds: the rounds, in the order in which they were reserved.
        head: the hash of the last line, to be anchored elsewhere.
        open_head: the hash of the last line before the closing one; the head of an open ledger.
        closed: the closing line's body; None if the job was interrupted or the file truncated.
        resumes: the bodies of the lines written when an interrupted job was resumed.
        tail: the bytes after the last newline, which a crash left.
        link: SHA-256 of the whole last line.
        tree: the Merkle tree whose leaves are the complete lines.
    """

    header: dict[str, Any]
    signer: str
    rounds: tuple[RoundRecord, ...]
    head: str
    open_head: str
    closed: dict[str, Any] | None
    resumes: tuple[dict[str, Any], ...]
    tail: bytes
    link: str
    tree: MerkleTree

    @property
    def lines(self) -> int:
        """The number of lines."""
        return len(self.tree)

    @property
    def ended_early(self) -> bool:
        """Whether the job ended because its metric no longer improved, so that what it released
        decided how many rounds there were."""
        return self.closed is not None and self.closed.get("reason") == STOPPED

    @property
    def origin(self) -> str:
        """The ledger's name as a transparency log, which its checkpoints state.

        Raises:
            LedgerError: the header names no job.
        """
        try:
            return origin_of(signer=self.signer, job=str(self.header.get("job")))
        except ValueError:
            raise LedgerError("the ledger's header names no job, so it is not a log") from None


def read_header(path: Path, *, key: Ed25519PublicKey | None = None) -> dict[str, Any]:
    """The body of a ledger's first line, whose signature is verified; the rest is not read.

    Args:
        path: the path of ``ledger.jsonl``.
        key: the signer to require; None trusts the key that the header names.

    Raises:
        LedgerError: a check fails.
    """
    with open_regular(path) as file:
        raw, ended = next(read_lines(file, path.name), (b"", False))
    if not ended:
        raise LedgerError("the ledger is empty: not even its header was written")
    first = Line.parse(raw, 1)
    _check_place(first, 0, GENESIS)
    _signer_of(first, key)
    return first.body


def read_ledger(
    path: Path,
    *,
    key: Ed25519PublicKey | None = None,
    newest_signatures: int = _NEWEST_SIGNATURES,
    allow_torn: bool = False,
    hashes: set[str] | None = None,
) -> LedgerView:
    """Reads and verifies a ledger.

    The chain is checked over all lines. A line's hash covers the whole previous line, signature
    included, so the last signature alone covers every byte before it. Besides it, the first and the
    newest ``newest_signatures`` are verified, which are all of them in a job of ordinary length.

    Args:
        path: the path of ``ledger.jsonl``.
        key: the signer to require; None trusts the key that the header names.
        newest_signatures: the number of signatures to verify from the end.
        allow_torn: accept an unfinished last line (the writer removes it when resuming).
        hashes: receives every line's hash, each of which was the ledger's head once.

    Raises:
        LedgerError: a check fails; the message names the line.
    """
    tail = bytearray()
    with open_regular(path) as file:
        lines = _lines(file, path.name, tail, allow_torn=allow_torn)
        return build_view(
            lines if hashes is None else _noted(lines, hashes),
            tail=tail,
            key=key,
            newest_signatures=newest_signatures,
        )


def _lines(file: BinaryIO, name: str, tail: bytearray, *, allow_torn: bool) -> Iterator[Line]:
    """The file's complete lines; whatever follows the last one is put into ``tail``."""
    known = KnownEvents()
    for number, (raw, ended) in enumerate(read_lines(file, name), start=1):
        if ended:
            yield Line.parse(raw, number, known=known)
        elif not allow_torn:
            raise LedgerError(
                f"{name} ends in an unfinished line ({len(raw)} bytes): the job was interrupted; "
                "resume it or it was truncated"
            )
        else:
            tail.extend(raw)


def _noted(lines: Iterator[Line], hashes: set[str]) -> Iterator[Line]:
    for line in lines:
        hashes.add(line.hash)
        yield line


def build_view(
    lines: Iterable[Line],
    *,
    tail: bytes | bytearray = b"",
    key: Ed25519PublicKey | None = None,
    newest_signatures: int = _NEWEST_SIGNATURES,
) -> LedgerView:
    """Checks chain, signatures and grammar of parsed lines in one pass.

    Args:
        lines: the lines in order; most are not kept in memory.
        tail: what follows them; read only once they are exhausted.
        key: the signer to require; None trusts the key that the header names.
        newest_signatures: the number of signatures to verify from the end.

    Raises:
        LedgerError: a check fails.
    """
    rest = iter(lines)
    first = next(rest, None)
    if first is None:
        raise LedgerError("the ledger is empty: not even its header was written")
    _check_place(first, 0, GENESIS)
    stated = _signer_of(first, key)
    grammar = _Grammar(first.body)
    newest = deque([_Signed.of(first)], maxlen=max(newest_signatures, 1))
    last, count, tree, open_head = first, 1, MerkleTree(), first.hash
    tree.append(first.leaf)
    for line in rest:
        _check_place(line, count, last.link)
        grammar.take(line)
        newest.append(_Signed.of(line))
        tree.append(line.leaf)
        open_head = line.hash if grammar.closed is None else last.hash
        last, count = line, count + 1
    for signed in newest:
        _check_signature(signed, stated)
    return LedgerView(
        header=first.body,
        signer=str(first.body.get("signer")),
        rounds=tuple(grammar.rounds),
        head=last.hash,
        open_head=open_head,
        closed=grammar.closed,
        resumes=tuple(grammar.resumes),
        tail=bytes(tail),
        link=last.link,
        tree=tree,
    )


def _check_place(line: Line, seq: int, link: str) -> None:
    if line.seq != seq:
        raise LedgerError(
            f"ledger line {seq + 1} has sequence number {line.seq} instead of {seq}: "
            "lines were dropped, swapped or inserted"
        )
    if line.prev_hash != link:
        raise LedgerError(f"ledger line {seq + 1} does not follow from the line before it")


def _signer_of(first: Line, key: Ed25519PublicKey | None) -> Ed25519PublicKey:
    """The key that the header names, after verifying the header's signature under it."""
    if first.kind != "header" or first.body.get("format") != FORMAT:
        raise LedgerError(f"the ledger does not start with a header of format {FORMAT}")
    signer = first.body.get("signer")
    try:
        stated = Ed25519PublicKey.from_public_bytes(bytes.fromhex(str(signer)))
    except ValueError:
        raise LedgerError("the ledger's header names no public key") from None
    if key is not None and key.public_bytes_raw() != stated.public_bytes_raw():
        raise LedgerError(
            f"the ledger is signed by {signer}, not by {key.public_bytes_raw().hex()}"
        )
    _check_signature(_Signed.of(first), stated)
    return stated


class _Signed(NamedTuple):
    """What is kept of a line whose signature is still to be verified: its body may be large."""

    seq: int
    hash: str
    signature: str

    @classmethod
    def of(cls, line: Line) -> _Signed:
        return cls(line.seq, line.hash, line.signature)


def _check_signature(line: _Signed, key: Ed25519PublicKey) -> None:
    if not is_signature(line.signature, line.hash, key):
        signer = key.public_bytes_raw().hex()
        raise LedgerError(f"ledger line {line.seq + 1} has a signature that is not {signer}'s")


class _Grammar:
    """(resume | reserve (commit | abort)?)* closed?, rounds reserved as 1, 2, 3, ..."""

    __slots__ = ("_model", "_open", "_parsed", "closed", "resumes", "rounds")

    def __init__(self, header: dict[str, Any]) -> None:
        self._model = str(header.get("initial_weights_sha256", ""))
        self.rounds: list[RoundRecord] = []
        self.resumes: list[dict[str, Any]] = []
        self.closed: dict[str, Any] | None = None
        self._open = False
        self._parsed = 0

    def take(self, line: Line) -> None:
        """Accepts the next line after the header."""
        where = f"ledger line {line.seq + 1}"
        if self.closed is not None:
            raise LedgerError(f"{where} comes after the closing line")
        if line.kind == "closed":
            self.closed, self._open = line.body, False
        elif line.kind == "resume":
            if len(self.resumes) >= _MAX_RESUMES:
                raise LedgerError(f"{where} resumes the job for the {_MAX_RESUMES + 1}th time")
            if not self._may_keep(line):
                raise LedgerError(f"{where}: its resumptions state too much")
            self.resumes.append(line.body)
            self._open = False
        elif line.kind == "header":
            raise LedgerError(f"{where} is a second header")
        else:
            self._take_round(line, where)

    def _may_keep(self, line: Line) -> bool:
        """Whether memory allows to keep a line's body as an object."""
        self._parsed += 0 if line.shared else len(line.text)
        return self._parsed <= _MOST_PARSED

    def _take_round(self, line: Line, where: str) -> None:
        number, rounds = line.body.get("round"), self.rounds
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise LedgerError(f"{where} has no round number")
        if line.kind == "reserve":
            if number != len(rounds) + 1:
                raise LedgerError(
                    f"{where} reserves round {number} where round {len(rounds) + 1} is next"
                )
            rounds.append(
                RoundRecord(
                    round=number,
                    reserved=line.body if self._may_keep(line) else line.text,
                    reserved_at=line.seq,
                    model=self._model,
                )
            )
        elif not self._open or number != rounds[-1].round:
            raise LedgerError(f"{where} is a {line.kind} of round {number}, which is not open")
        else:
            rounds[-1] = RoundRecord(
                round=number,
                reserved=rounds[-1].reserved,
                outcome=line.kind,
                text=line.text,
                hash=line.hash,
                reserved_at=rounds[-1].reserved_at,
                model=rounds[-1].model,
            )
            if line.kind == "commit":
                self._model = str(line.body.get("weights_sha256", ""))
        self._open = line.kind == "reserve"
