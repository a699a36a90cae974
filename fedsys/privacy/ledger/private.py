"""``private.jsonl``: who was invited and summed in each round, and the commitments' salts.

Anyone who holds it has the server's view. Cohorts of more than ``LISTED`` clients are packed, so
that lines stay short; the commitments are to the lists, however they are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedsys.errors import LedgerError
from fedsys.privacy.ledger.files import open_regular, read_lines
from fedsys.privacy.ledger.lines import canonical, commitment, parse_object
from fedsys.privacy.ledger.packing import pack, pack_increasing, unpack, unpack_increasing
from fedsys.privacy.ledger.reader import RoundRecord

__all__ = [
    "LISTED",
    "MAX_PRIVATE_LINE_BYTES",
    "OPENING",
    "PRIVATE_LISTS",
    "REST",
    "SALT_BYTES",
    "PrivateRounds",
    "check_commitments",
    "encode_private",
    "parse_private",
    "read_private",
    "told",
]

LISTED = 1024
"""The largest cohort that is written as a readable list."""
MAX_PRIVATE_LINE_BYTES = 8 << 20
"""The longest line, enough for a cohort of a million clients."""
SALT_BYTES = 32
PRIVATE_LISTS = ("sampled", "survivors", "participations")
OPENING = "opening"
"""Key of what a line says about how its round was drawn."""
REST = "rest"
"""Name of the commitment to everything else in a line: what a host noted about the round."""

_INCREASING = ("sampled", "survivors")


def encode_private(body: Mapping[str, Any]) -> bytes:
    """A round's line, including its newline.

    Args:
        body: the line's content, with ``PRIVATE_LISTS`` as lists.

    Raises:
        LedgerError: the body is not JSON, or its line would be too long to read back.
    """
    line = dict(body)
    if len(line["sampled"]) > LISTED:
        for name in PRIVATE_LISTS:
            line[name] = (pack_increasing if name in _INCREASING else pack)(line[name])
    raw = canonical(line)
    if len(raw) > MAX_PRIVATE_LINE_BYTES:
        raise LedgerError(
            f"round {line.get('round')}: its private line has {len(raw)} bytes, at most "
            f"{MAX_PRIVATE_LINE_BYTES} can be read back: the cohort is too large"
        )
    return raw + b"\n"


def parse_private(raw: bytes, where: str) -> dict[str, Any]:
    """Parses a round's line and unpacks its lists, whose contents are not checked.

    Raises:
        LedgerError: it is not canonical JSON, has no round number, or a packed list is malformed;
            the message starts with ``where``.
    """
    body = parse_object(raw, where, limit=MAX_PRIVATE_LINE_BYTES)
    if canonical(body) != raw:
        raise LedgerError(f"{where} is not in canonical form")
    number = body.get("round")
    if not isinstance(number, int) or isinstance(number, bool):
        raise LedgerError(f"{where} has no round number")
    for name in PRIVATE_LISTS:
        packed = body.get(name)
        if isinstance(packed, str):
            try:
                read = unpack_increasing if name in _INCREASING else unpack
                body[name] = read(packed).tolist()
            except LedgerError as error:
                raise LedgerError(f"{where}: {name}: {error}") from None
    return body


class PrivateRounds(Mapping[int, dict[str, Any]]):
    """Private lines by round, in the file's order; kept as text and parsed on access.

    Args:
        lines: raw lines by round, each one readable by `parse_private`.
        name: the file's name, for messages.
    """

    def __init__(self, lines: Mapping[int, bytes], name: str = "private.jsonl") -> None:
        self._lines = lines
        self._name = name

    def __getitem__(self, round: int) -> dict[str, Any]:
        return parse_private(self._lines[round], f"{self._name}, round {round}")

    def __iter__(self) -> Iterator[int]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)


def read_private(path: Path) -> tuple[PrivateRounds, bytes]:
    """The private lines by round number, and the bytes of a torn last line.

    Raises:
        LedgerError: a line is not strict JSON, has no round number, or repeats a round.
    """
    rounds: dict[int, bytes] = {}
    torn = b""
    with open_regular(path) as file:
        lines = read_lines(file, path.name, limit=MAX_PRIVATE_LINE_BYTES)
        for number, (raw, ended) in enumerate(lines, start=1):
            if not ended:
                torn = raw
                break
            found = parse_private(raw, f"{path.name} line {number}")["round"]
            if found in rounds:
                raise LedgerError(f"{path.name} line {number} repeats round {found}")
            rounds[found] = raw
    return PrivateRounds(rounds, path.name), torn


def told(line: Mapping[str, Any]) -> dict[str, Any]:
    """What a ledger commits to of a private line, by the name of each commitment.

    Args:
        line: with ``PRIVATE_LISTS`` as lists; ``salt`` and ``round`` are not committed to.
    """
    named = {name: line[name] for name in (*PRIVATE_LISTS, OPENING) if name in line}
    rest = {key: value for key, value in line.items() if key not in (*named, "round", "salt")}
    return {**named, REST: rest}


def check_commitments(record: RoundRecord, private: Mapping[str, Any]) -> None:
    """Checks a round's private line against the salted commitments in the ledger.

    Raises:
        LedgerError: the salt is malformed, or a part of the line does not match its commitment.
    """
    stated = record.body.get("commitments")
    where = f"round {record.round}"
    if not isinstance(stated, dict):
        raise LedgerError(f"{where}: the ledger holds no commitments")
    try:
        salt = bytes.fromhex(str(private.get("salt")))
    except ValueError:
        salt = b""
    if len(salt) != SALT_BYTES:
        raise LedgerError(f"{where}: the private line's salt is not {SALT_BYTES} bytes of hex")
    found = told(private)
    if REST not in stated:
        del found[REST]  # an older ledger's
    for name in sorted({*PRIVATE_LISTS, *found, *stated}):
        if name not in stated or name not in found:
            raise LedgerError(f"{where}: {name} is missing from the ledger or the private line")
        if commitment(name, found[name], salt) != stated[name]:
            raise LedgerError(f"{where}: {name} is not what the ledger committed to")
