"""Reading a ledger that may have been written by an enemy: bounded, strict, never executing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsys.errors import LedgerError
from fedsys.privacy.ledger.lines import (
    FORMAT,
    GENESIS,
    MAX_LINE_BYTES,
    Line,
    commitment,
    parse_object,
)

__all__ = [
    "MAX_FILE_BYTES",
    "LedgerView",
    "RoundRecord",
    "build_view",
    "check_commitments",
    "open_regular",
    "read_ledger",
    "read_lines",
    "read_private",
]

MAX_FILE_BYTES = 1 << 30
_NEWEST_SIGNATURES = 4096
_SALT_BYTES = 32
_PRIVATE_LISTS = ("sampled", "survivors", "participations")


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRecord:
    """What the ledger says of one round.

    Attributes:
        round: its number; never used twice.
        reserve: body of the reserve line: the event.
        outcome: ``commit``, ``abort``, or None where neither was written: it counts as spent.
        body: body of the commit or abort line.
    """

    round: int
    reserve: dict[str, Any]
    outcome: str | None
    body: dict[str, Any]

    @property
    def refunds_server(self) -> bool:
        """Whether it was durably aborted before anyone was asked to unmask."""
        return self.outcome == "abort" and self.body.get("before_unmask") is True


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerView:
    """A ledger whose chain, form and newest signatures hold.

    Attributes:
        header: body of the first line.
        signer: the public key (hex) that the header names and that signed it.
        rounds: in the order in which they were reserved.
        head: hash of the last line: what to anchor elsewhere.
        lines: how many.
        closed: body of the closing line; None if the job was cut off, or lines were.
        resumes: bodies of lines written when an interrupted job was taken up again.
        tail: bytes after the last newline: a line that a crash tore.
        link: SHA-256 of the whole last line.
    """

    header: dict[str, Any]
    signer: str
    rounds: tuple[RoundRecord, ...]
    head: str
    lines: int
    closed: dict[str, Any] | None
    resumes: tuple[dict[str, Any], ...]
    tail: bytes
    link: str


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading: no symbolic link, no device, no pipe, of bounded size.

    Raises:
        LedgerError: it is something else, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise LedgerError(f"cannot read {path.name}: {error.strerror}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
        os.close(descriptor)
        raise LedgerError(
            f"{path.name} is not a regular file of at most {MAX_FILE_BYTES >> 20} MiB"
        )
    return os.fdopen(descriptor, "rb", buffering=1 << 16)


def read_lines(file: BinaryIO, name: str) -> Iterator[tuple[bytes, bool]]:
    """Lines without their newline, and whether they had one; a longer one than allowed is refused.

    Raises:
        LedgerError: a line exceeds ``MAX_LINE_BYTES``.
    """
    number = 0
    while True:
        raw = file.readline(MAX_LINE_BYTES + 1)
        if not raw:
            return
        number += 1
        if raw.endswith(b"\n"):
            yield raw[:-1], True
        elif len(raw) > MAX_LINE_BYTES:
            raise LedgerError(f"{name} line {number} is longer than {MAX_LINE_BYTES} bytes")
        else:
            yield raw, False


def read_ledger(
    path: Path,
    *,
    key: Ed25519PublicKey | None = None,
    newest_signatures: int = _NEWEST_SIGNATURES,
    allow_torn: bool = False,
) -> LedgerView:
    """Reads and verifies a ledger.

    The chain is checked over all lines. A line's hash covers the whole previous line, signature
    included, so the last signature alone covers every byte before it; beyond it the first and the
    newest ``newest_signatures`` are checked, which is all of them in any job of ordinary length.

    Args:
        path: of ``ledger.jsonl``.
        key: the signer to insist on; None takes the header's word for it.
        newest_signatures: how many to verify from the end.
        allow_torn: accept an unfinished last line (the writer cuts it off on resuming).

    Raises:
        LedgerError: anything does not hold; the message names the line.
    """
    parsed: list[Line] = []
    tail = b""
    with open_regular(path) as file:
        for raw, ended in read_lines(file, path.name):
            if not ended:
                tail = raw
                break
            parsed.append(Line.parse(raw, len(parsed) + 1))
    if tail and not allow_torn:
        raise LedgerError(
            f"{path.name} ends in an unfinished line ({len(tail)} bytes): the job was interrupted; "
            "resume it or it was truncated"
        )
    return build_view(parsed, tail=tail, key=key, newest_signatures=newest_signatures)


def build_view(
    lines: list[Line],
    *,
    tail: bytes = b"",
    key: Ed25519PublicKey | None = None,
    newest_signatures: int = _NEWEST_SIGNATURES,
) -> LedgerView:
    """Checks chain, signatures and grammar of parsed lines.

    Raises:
        LedgerError: one of them does not hold.
    """
    if not lines:
        raise LedgerError("the ledger is empty: not even its header was written")
    link = GENESIS
    for number, line in enumerate(lines):
        if line.seq != number:
            raise LedgerError(
                f"ledger line {number + 1} has sequence number {line.seq} instead of {number}: "
                "lines were dropped, swapped or inserted"
            )
        if line.prev_hash != link:
            raise LedgerError(f"ledger line {number + 1} does not follow from the line before it")
        link = line.link
    header = lines[0].body
    if lines[0].kind != "header" or header.get("format") != FORMAT:
        raise LedgerError(f"the ledger does not start with a header of format {FORMAT}")
    signer = header.get("signer")
    try:
        stated = Ed25519PublicKey.from_public_bytes(bytes.fromhex(str(signer)))
    except ValueError:
        raise LedgerError("the ledger's header names no public key") from None
    if key is not None and key.public_bytes_raw() != stated.public_bytes_raw():
        raise LedgerError(
            f"the ledger is signed by {signer}, not by {key.public_bytes_raw().hex()}"
        )
    first_checked = max(1, len(lines) - max(newest_signatures, 1))
    for line in (lines[0], *lines[first_checked:]):
        if not line.signed_by(stated):
            raise LedgerError(f"ledger line {line.seq + 1} has a signature that is not {signer}'s")
    rounds, resumes, closed = _grammar(lines[1:])
    return LedgerView(
        header=header,
        signer=str(signer),
        rounds=rounds,
        head=lines[-1].hash,
        lines=len(lines),
        closed=closed,
        resumes=resumes,
        tail=tail,
        link=link,
    )


def _grammar(
    lines: list[Line],
) -> tuple[tuple[RoundRecord, ...], tuple[dict[str, Any], ...], dict[str, Any] | None]:
    """Rounds from (reserve (commit | abort)?)*, with strictly rising numbers; closed is last."""
    rounds: list[RoundRecord] = []
    resumes: list[dict[str, Any]] = []
    closed: dict[str, Any] | None = None
    open_round = False
    for line in lines:
        where = f"ledger line {line.seq + 1}"
        if closed is not None:
            raise LedgerError(f"{where} comes after the closing line")
        if line.kind == "closed":
            closed, open_round = line.body, False
        elif line.kind == "resume":
            resumes.append(line.body)
            open_round = False
        elif line.kind == "header":
            raise LedgerError(f"{where} is a second header")
        else:
            number = line.body.get("round")
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise LedgerError(f"{where} has no round number")
            if line.kind == "reserve":
                if rounds and number <= rounds[-1].round:
                    raise LedgerError(f"{where} reserves round {number} again")
                rounds.append(RoundRecord(round=number, reserve=line.body, outcome=None, body={}))
                open_round = True
            else:
                if not open_round or number != rounds[-1].round:
                    raise LedgerError(
                        f"{where} is a {line.kind} of round {number}, which is not open"
                    )
                rounds[-1] = RoundRecord(
                    round=number, reserve=rounds[-1].reserve, outcome=line.kind, body=line.body
                )
                open_round = False
    return tuple(rounds), tuple(resumes), closed


def read_private(path: Path) -> tuple[dict[int, dict[str, Any]], bytes]:
    """The private lines by round number, and the bytes of a torn last line.

    Raises:
        LedgerError: a line is not strict JSON, has no round number, or repeats one.
    """
    rounds: dict[int, dict[str, Any]] = {}
    with open_regular(path) as file:
        for number, (raw, ended) in enumerate(read_lines(file, path.name), start=1):
            if not ended:
                return rounds, raw
            body = parse_object(raw, f"{path.name} line {number}")
            round_number = body.get("round")
            if not isinstance(round_number, int) or isinstance(round_number, bool):
                raise LedgerError(f"{path.name} line {number} has no round number")
            if round_number in rounds:
                raise LedgerError(f"{path.name} line {number} repeats round {round_number}")
            rounds[round_number] = body
    return rounds, b""


def check_commitments(record: RoundRecord, private: dict[str, Any]) -> None:
    """Checks a round's private line against the salted commitments in the ledger.

    Raises:
        LedgerError: the salt is malformed or a list is not the one that was committed to.
    """
    stated = record.body.get("commitments")
    where = f"round {record.round}"
    if not isinstance(stated, dict):
        raise LedgerError(f"{where}: the ledger holds no commitments")
    try:
        salt = bytes.fromhex(str(private.get("salt")))
    except ValueError:
        salt = b""
    if len(salt) != _SALT_BYTES:
        raise LedgerError(f"{where}: the private line's salt is not {_SALT_BYTES} bytes of hex")
    for name in _PRIVATE_LISTS:
        if name not in stated or name not in private:
            raise LedgerError(f"{where}: {name} is missing from the ledger or the private line")
        if commitment(name, private[name], salt) != stated[name]:
            raise LedgerError(f"{where}: {name} is not what the ledger committed to")
