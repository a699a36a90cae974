"""The coordinator's ledger of one job, as far as this device has checked it.

A device gets the lines that follow those it has, checks them, and keeps only where they end. They
have to be one history that continues the one it countersigned, at the price and with the model that
it was given itself.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsys.errors import LedgerError, MechanismError, ProtocolError
from fedsys.privacy import PrivacyPlan, event_from_json
from fedsys.privacy.ledger import GENESIS, Line, canonical
from fedsys.wire.limits import MAX_LINES
from fedsys.wire.terms import Terms

__all__ = ["LedgerCopy", "Sent", "event_digest", "parse_lines"]

_LEAST_LINE = 300
"""Bytes that every line exceeds by its digests and its signature."""
_MOST_RESUMES = 10_000


def event_digest(event: Mapping[str, Any]) -> str:
    """SHA-256 of a round's event, as hex: what this device keeps of the price that it was told."""
    return hashlib.sha256(canonical(dict(event))).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """What this device was sent in a round that it accepted, and what it sends along with its
    vector, until it has countersigned.

    Attributes:
        weights: SHA-256 of the model, as hex.
        event: `event_digest` of the round's event.
        nonce: 16 bytes, as hex.
    """

    weights: str
    event: str
    nonce: str


def parse_lines(raw: bytes, signer: bytes) -> list[Line]:
    """The lines in a message, which the coordinator signed; their place is not checked yet.

    The last signature covers the lines before it, as the chain shows once it is checked.

    Args:
        raw: the lines with their newlines, untrusted.
        signer: the coordinator's public key, which this device pinned when it joined.

    Raises:
        ProtocolError: they are no lines, or not the coordinator's.
    """
    if not raw.endswith(b"\n") or len(raw) > MAX_LINES or raw.count(b"\n") > len(raw) / _LEAST_LINE:
        raise ProtocolError(f"{len(raw)} bytes that are not lines of a ledger")
    try:
        lines = [Line.parse(each, n) for n, each in enumerate(raw[:-1].split(b"\n"), start=1)]
    except LedgerError as error:
        raise ProtocolError(f"lines of a ledger: {error}") from None
    if not lines[-1].signed_by(Ed25519PublicKey.from_public_bytes(signer)):
        raise ProtocolError("lines of a ledger that this device's coordinator did not sign")
    return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerCopy:
    """Where the lines that were checked end.

    Attributes:
        lines: how many there are.
        link: SHA-256 of the whole last one, as hex.
        head: the hash of the last one, as hex.
        rounds: how many rounds they reserve.
        open: whether the last line reserves a round.
        kind: of the last line; empty if there is none.
        model: SHA-256 of the weights in force, as hex.
    """

    lines: int = 0
    link: str = GENESIS
    head: str = GENESIS
    rounds: int = 0
    open: bool = False
    kind: str = ""
    model: str = ""

    def extended(
        self,
        lines: list[Line],
        terms: Terms,
        own: Mapping[int, Sent],
        *,
        answered: Container[int] = (),
    ) -> LedgerCopy:
        """The copy with further lines; those that it has already are compared and passed over.

        Args:
            lines: as `parse_lines` returns them.
            terms: the terms that this device agreed to.
            own: what it was sent in its rounds that it has not countersigned.
            answered: rounds whose sum it helped to open.

        Raises:
            LedgerError: they contradict one another, the lines before, the terms, or what this
                device was sent.
        """
        copy = self
        before: Line | None = None
        for line in lines:
            if before is not None and (line.seq, line.prev_hash) != (before.seq + 1, before.link):
                raise LedgerError(f"ledger line {before.seq + 2} does not follow the line before")
            if line.seq == self.lines - 1 and line.link != self.link:
                raise LedgerError(
                    f"ledger line {line.seq + 1} is another one than this device was shown before: "
                    f"two histories"
                )
            if line.seq == copy.lines:
                copy = copy._with(line, terms, own)
                copy._require_honest_abort(line, answered)
            before = line
        return copy

    def _with(self, line: Line, terms: Terms, own: Mapping[int, Sent]) -> LedgerCopy:
        where = f"ledger line {line.seq + 1}"
        if line.prev_hash != self.link:
            raise LedgerError(
                f"{where} does not follow the line that this device was shown before: two histories"
            )
        if line.seq > 2 * self.rounds + _MOST_RESUMES + 1:
            raise LedgerError(f"{where}: the job was resumed more than {_MOST_RESUMES} times")
        if (line.kind == "header") != (line.seq == 0) or self.kind == "closed":
            raise LedgerError(f"{where} is a {line.kind} in the wrong place")
        change: dict[str, Any] = {}
        if line.kind == "header":
            change = {"model": _header(line.body, terms)}
        elif line.kind == "reserve":
            self._reserve(line.body, terms, own, where)
            change = {"rounds": self.rounds + 1}
        elif line.kind in ("commit", "abort"):
            if not self.open or line.body.get("round") != self.rounds:
                raise LedgerError(f"{where} is a {line.kind} of a round that is not open")
            if line.kind == "commit":
                change = {"model": str(line.body.get("weights_sha256"))}
        return dataclasses.replace(
            self,
            lines=self.lines + 1,
            link=line.link,
            head=line.hash,
            open=line.kind == "reserve",
            kind=line.kind,
            **change,
        )

    def _require_honest_abort(self, line: Line, answered: Container[int]) -> None:
        """An abort that is not charged to the server's view is of a sum that nobody opened.

        Raises:
            LedgerError: this device helped to open it.
        """
        unseen = line.kind == "abort" and line.body.get("before_unmask") is True
        if unseen and self.rounds in answered:
            raise LedgerError(
                f"ledger line {line.seq + 1} says that the sum of round {self.rounds} was never "
                f"opened, and this device helped to open it"
            )

    def _reserve(
        self, body: Mapping[str, Any], terms: Terms, own: Mapping[int, Sent], where: str
    ) -> None:
        number, event = self.rounds + 1, body.get("event")
        if body.get("round") != number or number > terms.plan.rounds:
            raise LedgerError(f"{where} does not reserve round {number} of {terms.plan.rounds}")
        if not isinstance(event, dict) or not _covered(canonical(event), terms.plan):
            raise LedgerError(f"{where}: the price of round {number} is not what was agreed to")
        mine = own.get(number)
        if mine is None:
            return
        if mine.event != event_digest(event):
            raise LedgerError(
                f"{where}: round {number} has another price than this device was told"
            )
        if terms.buffering is None and mine.weights != self.model:
            raise LedgerError(
                f"{where}: in round {number} this device was sent the model {mine.weights}, the "
                f"ledger has {self.model}"
            )


@functools.lru_cache(maxsize=64)
def _covered(event: bytes, plan: PrivacyPlan) -> bool:
    try:
        return plan.covers(event_from_json(json.loads(event)))
    except (ArithmeticError, LookupError, MechanismError, TypeError, ValueError):
        return False


def _header(body: Mapping[str, Any], terms: Terms) -> str:
    """The initial model, if the header is of this job.

    Raises:
        LedgerError: it is of other terms.
    """
    population = body.get("population")
    roster = population if isinstance(population, dict) else {}
    same = (
        body.get("job") == terms.job.hex()
        and body.get("plan") == terms.plan.to_json()
        and roster.get("roster_version") == terms.roster_version
        and roster.get("roster_sha256") == terms.roster_hash
    )
    if not same:
        raise LedgerError("the ledger's header is not of the job that was agreed to")
    return str(body.get("initial_weights_sha256"))
